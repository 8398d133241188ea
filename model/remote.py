"""A model in processes of its own, for callers that want one in theirs: `generate` over several devices.

The live server does the same through `streaming.engine`, which also survives the processes; here their end is an error.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.errors import LinkError, ModelError
from model.interface import BlockRequest, BlockResult, ModelInfo, SessionInfo, SessionSpec, SessionUpdate, UpdateInfo
from model.launch import (
    Beat,
    Close,
    Done,
    Failed,
    Open,
    Opened,
    Ready,
    Refused,
    Release,
    Report,
    RingReader,
    Skipped,
    Step,
    Stop,
    Unchanged,
    Update,
    Updated,
    WorkerProcess,
)
from model.worker import SLOTS

_START_S = 1200.0
_ANSWER_S = 120.0


class RemoteModel:
    """A loaded model at the end of a pipe; calls come from one thread.

    Args:
        spec: for `launch.WorkerProcess`.

    Raises:
        ModelError: it could not be loaded; the text says what to change.
    """

    info: ModelInfo

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._process = WorkerProcess(spec, on_report=self._reports.put, on_exit=lambda: self._reports.put(None))
        self._asked: dict[tuple[str, int], BlockRequest] = {}
        self._process.start()
        ready = self._expect(Ready, _START_S)
        self.info = ready.info
        self.depth = min(ready.info.depth, int(spec.get("slots", SLOTS)))
        """Blocks that may be under way at once: the plan's, and each needs room for its pictures."""
        self._ring = RingReader(ready.ring, lambda slot: self._process.send(Release(slot)))

    def open(self, spec: SessionSpec) -> SessionInfo:
        """As `AvatarModel.open`."""
        self._process.send(Open(spec))
        return self._expect(Opened, _ANSWER_S).info

    def update(self, update: SessionUpdate) -> UpdateInfo:
        """As `AvatarModel.update`; comes between blocks."""
        assert not self._asked, "a change comes when no block is under way"
        self._process.send(Update(update))
        return self._expect(Updated, _ANSWER_S).info

    def close(self, session: str) -> None:
        """As `AvatarModel.close`."""
        self._process.send(Close(session))

    def step(self, request: BlockRequest) -> BlockResult:
        """As `AvatarModel.step`."""
        self.submit(request)
        return self.advance(_ANSWER_S)

    @property
    def num_under_way(self) -> int:
        """Blocks that were submitted and not taken."""
        return len(self._asked)

    def submit(self, request: BlockRequest) -> None:
        """Ask for a block; `advance` gives it."""
        self._asked[request.session, request.block] = request
        self._process.send(Step(request))

    def advance(self, limit_s: float = _ANSWER_S) -> BlockResult:
        """The next finished block.

        Raises:
            ModelError: it failed, or none came in time.
        """
        done = self._expect(Done, limit_s)
        del self._asked[done.session, done.block]
        frames, release = self._ring.read(done.slot)
        frames = np.array(frames)
        release()
        return BlockResult(
            session=done.session,
            block=done.block,
            epoch=done.epoch,
            frames=frames,
            stage_s=done.stage_s,
            applied=done.applied,
        )

    def stop(self) -> None:
        """End the processes."""
        self._process.send(Stop())
        if not self._process.join(3.0):
            self._process.kill()
            self._process.join(3.0)
        self._process.dispose()
        self._ring.retire()

    def _expect(self, kind: type, limit_s: float) -> Any:
        """The next report of a kind; signs of life are passed over."""
        while True:
            try:
                report = self._reports.get(timeout=limit_s)
            except queue.Empty:
                raise LinkError(f"the model's processes gave no answer for {limit_s:g} s; start again") from None
            match report:
                case None:
                    raise LinkError(f"{self._process.cause_of_death()}; start again")
                case Failed(reason, is_final=False):
                    raise LinkError(reason)
                case Failed(reason) | Refused(_, reason) | Unchanged(_, _, _, reason):
                    raise ModelError(reason)
                case Skipped():
                    raise ModelError(f"block {report.block} was not made: {report.message or report.reason}")
                case Beat():
                    pass
                case _ if isinstance(report, kind):
                    return report

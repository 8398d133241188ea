"""What the model's process does next.

A block whose deadline has passed before it begins is skipped, as is one of an older epoch or a closed session. A
session is opened when no block waits and the last one has just finished, because opening cannot be cut short and the
other sessions have the most time to spare then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from model.control import Close, Interrupt, Open, Skipped, SkipReason, Step, Update
from model.interface import BlockRequest, BlockResult

Job = Open | Update | Step | Close
_JUST_FINISHED_S = 0.05
_IDLE_S = 1.0
_OPEN_PATIENCE_S = 2.0


class Desk:
    """What was asked for and not done yet, most urgent first. Not thread-safe.

    Args:
        report: told of every block that is dropped.
    """

    def __init__(self, report: Callable[[Skipped], None]) -> None:
        self._report = report
        self._epochs: dict[str, int] = {}
        self._prompt_jobs: deque[Update | Close] = deque()
        self._steps: list[BlockRequest] = []
        self._opens: deque[tuple[float, Open]] = deque()
        self._step_ended_s = float("-inf")

    def put(self, command: Open | Update | Step | Interrupt | Close, now_s: float) -> None:
        """Accept a command."""
        match command:
            case Open(spec):
                self._epochs[spec.session] = 0
                self._opens.append((now_s, command))
            case Step(request):
                if request.epoch < self._epochs.get(request.session, 1 << 62):
                    self._skip(request, "stale")
                else:
                    self._epochs[request.session] = request.epoch
                    self._drop_stale()
                    self._steps.append(request)
            case Interrupt(session, epoch):
                if session in self._epochs:
                    self._epochs[session] = max(epoch, self._epochs[session])
                    self._drop_stale()
            case Close(session):
                self._epochs.pop(session, None)
                self._drop_stale()
                self._opens = deque(entry for entry in self._opens if entry[1].spec.session != session)
                self._prompt_jobs.append(command)
            case Update():
                self._prompt_jobs.append(command)

    def take(self, now_s: float, may_step: bool = True) -> Job | None:
        """The job to do now, if any, a block only if one may begin; those that are too late are dropped on the way."""
        if self._prompt_jobs:
            return self._prompt_jobs.popleft()
        for request in [r for r in self._steps if 0 < r.deadline_s < now_s]:
            self._steps.remove(request)
            self._skip(request, "deadline")
        if self._steps and may_step:
            request = min(self._steps, key=lambda r: (r.deadline_s, r.block))
            self._steps.remove(request)
            return Step(request)
        if self._opens and self._may_open(now_s):
            return self._opens.popleft()[1]
        return None

    def step_ended(self, now_s: float) -> None:
        """A block has just been finished."""
        self._step_ended_s = now_s

    def wait_s(self, now_s: float) -> float | None:
        """How long until `take` may have something without a new command; None: never."""
        if not self._opens:
            return None
        return max(0.001, min(self._step_ended_s + _IDLE_S, self._opens[0][0] + _OPEN_PATIENCE_S) - now_s)

    def is_current(self, request: BlockRequest | BlockResult) -> bool:
        """Whether a block is still wanted."""
        return request.epoch >= self._epochs.get(request.session, 1 << 62)

    def _may_open(self, now_s: float) -> bool:
        since_s = now_s - self._step_ended_s
        is_good_moment = since_s <= _JUST_FINISHED_S or since_s >= _IDLE_S
        return is_good_moment or now_s - self._opens[0][0] >= _OPEN_PATIENCE_S

    def _drop_stale(self) -> None:
        for request in [r for r in self._steps if not self.is_current(r)]:
            self._steps.remove(request)
            self._skip(request, "stale")

    def _skip(self, request: BlockRequest, reason: SkipReason) -> None:
        self._report(Skipped(session=request.session, block=request.block, epoch=request.epoch, reason=reason))

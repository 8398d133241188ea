"""The model's process: takes commands from a pipe, works the most urgent block first, reports back.

One thread reads the pipe, one sends signs of life, and the main thread alone calls the model. `Worker` is the part
without process, pipe and threads; tests run it in their own process. `desk` says what comes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from model.control import (
    Beat,
    Close,
    Command,
    Done,
    Failed,
    Open,
    Opened,
    Ready,
    Refused,
    Release,
    Report,
    Skipped,
    Step,
    Stop,
    Unchanged,
    Update,
    Updated,
)
from model.desk import Desk, Job
from model.errors import CheckpointError, LinkError, ModelError, UnwantedError
from model.frame_ring import RingWriter
from model.interface import AvatarModel, BlockRequest, BlockResult, SessionUpdate
from model.parallel import Plan

log = logging.getLogger(__name__)

BEAT_S = 0.5
_MAX_FAILURES = 3
SLOTS = 12
"""Blocks whose pictures may wait to be taken, unless the launch spec says otherwise."""
_LOOK_S = 0.005
"""How often commands are looked for while blocks are under way elsewhere."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Store(Protocol):
    """Where pictures go; see `frame_ring.RingWriter`."""

    def write(self, frames: np.ndarray) -> int | None: ...

    def release(self, slot: int) -> None: ...


class BrokenError(ModelError):
    """The model fails block after block; start the process again."""


class Worker:
    """Runs a model by commands.

    Args:
        model: loaded.
        store: takes the pictures.
        report: told everything that happens.
        arrived: commands that came while the model worked; asked before a result is handed out.
        now: monotonic seconds.
    """

    def __init__(
        self,
        model: AvatarModel,
        *,
        store: Store,
        report: Callable[[Report], None],
        arrived: Callable[[], Iterable[Command]] = tuple,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desk = Desk(report)
        self.is_stopped = False
        self._arrived = arrived
        self._model = model
        self._store = store
        self._report = report
        self._now = now
        self._failures = 0
        self._depth = getattr(model, "depth", 1)
        self._started_s: dict[tuple[str, int, int], float] = {}
        self._applied: dict[str, tuple[str, ...]] = {}
        """By session, changes that took effect in blocks which nobody got; the next one confirms them."""
        if hasattr(model, "is_wanted"):
            model.is_wanted = self._is_wanted

    @property
    def busy_since_s(self) -> float | None:
        """Monotonic time at which the oldest block under way began, of a model that takes several; None: none is."""
        return self._model.oldest_s if self._depth > 1 else None

    def put(self, command: Command) -> None:
        """Accept a command."""
        if isinstance(command, Release):
            self._store.release(command.slot)
        elif isinstance(command, Stop):
            self.is_stopped = True
        else:
            self.desk.put(command, self._now())

    def take(self) -> Job | None:
        """The job to do now, if any."""
        self._accept_arrived()
        may_step = self._depth == 1 or self._model.num_under_way < self._depth
        return None if self.is_stopped else self.desk.take(self._now(), may_step)

    def perform(self, job: Job) -> None:
        """Do a job; the model is called from here only.

        Raises:
            BrokenError: block after block has failed.
        """
        match job:
            case Open():
                self._open(job)
            case Update(update):
                self._update(update)
            case Close(session):
                self._applied.pop(session, None)
                self._model.close(session)
            case Step(request):
                self._step(request)

    def _accept_arrived(self) -> None:
        for command in self._arrived():
            self.put(command)

    def _is_wanted(self, request: BlockRequest) -> bool:
        """Whether the block that is being made shall be gone on with."""
        self._accept_arrived()
        return not self.is_stopped and self.desk.is_current(request)

    def _unwanted(self, key: dict[str, Any], applied: tuple[str, ...]) -> None:
        self._applied[key["session"]] = self._applied.get(key["session"], ()) + applied
        self._report(Skipped(**key, reason="stale"))

    def _open(self, job: Open) -> None:
        try:
            info = self._model.open(job.spec)
        except Exception as error:  # the session is refused, the others go on
            self._break_on(error)
            if not isinstance(error, ModelError):
                log.exception("opening session %s failed", job.spec.session)
            self._report(Refused(job.spec.session, sentence(error)))
        else:
            self._report(Opened(info))

    def _update(self, update: SessionUpdate) -> None:
        try:
            info = self._model.update(update)
        except Exception as error:  # the change is refused, the stream goes on
            self._break_on(error)
            if not isinstance(error, ModelError):
                log.exception("update of session %s failed", update.session)
            self._report(Unchanged(update.session, update.block, update.parts, sentence(error)))
        else:
            self._report(Updated(info))

    def advance(self, limit_s: float) -> None:
        """Bring blocks under way on, and hand out one that is finished.

        Raises:
            BrokenError: the processes behind the model cannot go on.
        """
        try:
            result = self._model.advance(limit_s)
        except Exception as error:  # of no block in particular: out of memory, a process that is gone
            raise BrokenError(sentence(error)) from error
        if result is not None:
            self.desk.step_ended(self._now())
            key = (result.session, result.block, result.epoch)
            self._hand_out(result, self._started_s.pop(key, self._now()))

    def _step(self, request: BlockRequest) -> None:
        started_s = self._now()
        key = {"session": request.session, "block": request.block, "epoch": request.epoch}
        try:
            if self._depth > 1:
                self._started_s[request.session, request.block, request.epoch] = started_s
                self._model.submit(request)
                return
            result = self._model.step(request)
        except UnwantedError as error:
            self._unwanted(key, error.applied)
            return
        except Exception as error:  # one block is lost, the stream goes on
            self._started_s.pop((request.session, request.block, request.epoch), None)
            self._break_on(error)
            self._fail(key, error)
            return
        finally:
            self.desk.step_ended(self._now())
        self._hand_out(result, started_s)

    def _hand_out(self, result: BlockResult, started_s: float) -> None:
        key = {"session": result.session, "block": result.block, "epoch": result.epoch}
        self._failures = 0
        self._accept_arrived()
        if not self.desk.is_current(result):
            self._unwanted(key, result.applied)
            return
        slot = self._store.write(result.frames)
        if slot is None:
            self._report(Skipped(**key, reason="no_slot"))
            return
        times = {"started_s": started_s, "finished_s": self._now()}
        applied = self._applied.pop(result.session, ()) + result.applied
        self._report(
            Done(**key, slot=slot, **times, stage_s=dict(result.stage_s), applied=applied, latents=result.latents)
        )

    def _break_on(self, error: Exception) -> None:
        """End what cannot go on: processes that have lost each other, or of which one has not done its share.

        Raises:
            BrokenError: with the error's sentence.
        """
        if isinstance(error, LinkError) or (self._depth > 1 and not isinstance(error, ModelError)):
            raise BrokenError(sentence(error)) from error

    def _fail(self, key: dict[str, Any], error: Exception) -> None:
        log.error("block %s of session %s failed: %s", key["block"], key["session"], error, exc_info=error)
        self._report(Skipped(**key, reason="failed", message=sentence(error)))
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            raise BrokenError(f"{_MAX_FAILURES} blocks in a row failed, the last with: {sentence(error)}") from error


def sentence(error: BaseException) -> str:
    """An exception as one line; our own errors say what to do, of others the kind is named too."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, ModelError) else f"{type(error).__name__}: {text}".rstrip(": ")


def plan_of(spec: Mapping[str, Any]) -> Plan:
    """The layout that a launch spec names under `plan`, as plain values; without one, one process."""
    return Plan(**spec.get("plan") or {})


def load(spec: Mapping[str, Any], peers: list[Connection] | None = None) -> AvatarModel:
    """Build the model that a launch spec names.

    Args:
        spec: `kind` is `fake` (other keys: those of `FakeConfig`) or `checkpoint` (other keys: those of
            `model.config.RunConfig`); `plan` may hold the fields of a `Plan`.
        peers: pipes to the other ranks of the plan; None: where the plan has several, their processes are started and
            this process only asks them.

    Raises:
        ModelError: the text says what to change.
    """
    if spec["kind"] == "fake":
        from model.fake import FakeConfig, FakeModel

        known = {field.name for field in fields(FakeConfig)}
        return FakeModel(FakeConfig(**{name: value for name, value in spec.items() if name in known}))
    if spec["kind"] == "checkpoint":
        plan = plan_of(spec)
        if plan.num_devices == 1:
            from model.generator import load_model

            return load_model(_run_of(spec), plan)
        if peers is None:
            from model.remote import RemoteModel

            return RemoteModel(spec)
        from model.leader import load_leader

        return load_leader(_run_of(spec), plan, peers)
    raise CheckpointError(f"model.kind is {spec['kind']!r}; write checkpoint or fake")


def _run_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    from model.config import RunConfig

    known = {field.name for field in fields(RunConfig)}
    return {name: value for name, value in spec.items() if name in known}


class _Process:
    """Pipe and threads around a `Worker`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._commands: deque[Command] = deque()
        self._something = threading.Condition()
        self._busy_since_s: float | None = None

    def report(self, report: Report) -> None:
        with self._sending, contextlib.suppress(OSError):  # the reader ends the process when the pipe has closed
            self._connection.send(report)

    def follow(self, spec: Mapping[str, Any], leader: Connection) -> int:
        """Load another rank's share, then do what the leader orders; the exit status."""
        threading.Thread(target=self._read, name="read", daemon=True).start()
        try:
            from model.config import RunConfig
            from model.rank import run_follower

            run_follower(RunConfig.from_dict(_run_of(spec)), plan_of(spec), int(spec["rank"]), leader)
        except Exception as error:
            is_final = isinstance(error, ModelError) and not isinstance(error, LinkError)
            if not isinstance(error, ModelError):
                log.exception("rank %s failed", spec["rank"])
            self.report(Failed(f"rank {spec['rank']}: {sentence(error)}", is_final=is_final))
            return 1
        return 0

    def run(self, spec: Mapping[str, Any], peers: list[Connection]) -> int:
        """Load, then work until told to stop; the exit status."""
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        threading.Thread(target=self._read, name="read", daemon=True).start()
        self._busy_since_s = time.monotonic()
        try:
            model = load(spec, peers)
            ring = RingWriter(int(spec.get("slots", SLOTS)), block_shape(model), name=spec.get("ring_name"))
        except Exception as error:
            if not isinstance(error, ModelError):
                log.exception("the model could not be loaded")
            is_final = isinstance(error, ModelError) and not isinstance(error, LinkError)
            self.report(Failed(sentence(error), is_final=is_final))
            return 1
        self._busy_since_s = None
        worker = Worker(model, store=ring, report=self.report, arrived=self._arrived)
        self.report(Ready(model.info, ring.address))
        try:
            self._work(worker)
        except BrokenError as error:
            self.report(Failed(str(error), is_final=False))
            return 1
        finally:
            ring.close()
        if peers:
            model.halt()
        return 0

    def _work(self, worker: Worker) -> None:
        while not worker.is_stopped:
            job = worker.take()
            if job is None and worker.busy_since_s is not None:
                self._busy_since_s = worker.busy_since_s
                worker.advance(_LOOK_S)
                self._busy_since_s = worker.busy_since_s
                continue
            if job is None:
                with self._something:
                    if not self._commands and not worker.is_stopped:
                        self._something.wait(worker.desk.wait_s(time.monotonic()))
                continue
            self._busy_since_s = time.monotonic()
            worker.perform(job)
            self._busy_since_s = None

    def _arrived(self) -> list[Command]:
        with self._something:
            commands = list(self._commands)
            self._commands.clear()
        return commands

    def _read(self) -> None:
        while True:
            try:
                command = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)  # the server is gone; there is nobody to report to and nothing to save
            with self._something:
                self._commands.append(command)
                self._something.notify()

    def _beat(self) -> None:
        while True:
            since_s = self._busy_since_s
            self.report(Beat(0.0 if since_s is None else time.monotonic() - since_s))
            time.sleep(BEAT_S)


def block_shape(model: AvatarModel) -> tuple[int, int, int, int]:
    """Shape of a block's pictures: frames, height, width, 3."""
    geometry = model.info.geometry
    return geometry.frames_per_block, geometry.height, geometry.width, 3


def main(connection: Connection, spec: Mapping[str, Any], peers: list[Connection]) -> None:
    """Entry of a spawned process; ends with it.

    Args:
        connection: to the server.
        spec: as for `load`; `rank` is the process's own number in its plan.
        peers: pipes to the other ranks for rank 0, for any other the one to rank 0.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the server's to handle
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # and so is a SIGTERM to its process group: it drains, which needs us
    if spec.get("threads"):
        for name in _THREAD_VARIABLES:
            os.environ[name] = str(spec["threads"])
    logging.basicConfig(level=spec.get("log_level", "WARNING").upper(), format="%(levelname)s %(name)s: %(message)s")
    process = _Process(connection)
    status = process.follow(spec, peers[0]) if spec.get("rank") else process.run(spec, peers)
    logging.shutdown()
    os._exit(status)  # not through interpreter shutdown, which waits for nothing we need and can hang in native code

"""Starts, feeds, watches and stops the model's process from the server's side. No torch, no asyncio.

Two threads serve one process: a writer, so that a full pipe never stalls the caller, and a reader, which also waits on
the process itself, so that its death is known at once. A `WorkerProcess` lives once; restarting is `streaming.engine`'s
decision.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection as pipes
from typing import Any

from model import worker
from model.control import (
    Beat,
    Close,
    Command,
    Done,
    Failed,
    Interrupt,
    Open,
    Opened,
    Ready,
    Refused,
    Release,
    Report,
    Skipped,
    SkipReason,
    Step,
    Stop,
    Unchanged,
    Update,
    Updated,
)
from model.frame_ring import RingReader, remove

__all__ = [
    "Beat",
    "Close",
    "Command",
    "Done",
    "Failed",
    "Interrupt",
    "Open",
    "Opened",
    "Ready",
    "Refused",
    "Release",
    "RUNNABLE",
    "Report",
    "RingReader",
    "SkipReason",
    "Skipped",
    "Step",
    "Stop",
    "Unchanged",
    "Update",
    "Updated",
    "WorkerProcess",
]

_LAST_WORDS_S = 0.05
"""How long a process that has ended may still be heard."""
RUNNABLE: dict[str, tuple[str, ...]] = {
    "single": ("shared", "tiled"),
    "layers": ("shared", "own", "tiled"),
    "timestep": ("shared", "own", "tiled"),
    "sequence": ("shared", "own", "tiled"),
    "offload": ("shared", "tiled"),
}
"""Kinds of plan that the processes started here can run, each with the places its decoder may have."""
RING_PREFIX = "avatarcast_"
"""Begins the name of every shared memory of ours; it lives only until the server has attached."""


class WorkerProcess:
    """One life of the model's process, or of all processes of a plan: they live and die together.

    Args:
        spec: plain values: `kind` (fake, checkpoint), `threads`, `slots`, `log_level`, `plan`, what that kind takes.
        on_report: called on the reader thread with every report, in order.
        on_exit: called on the reader thread once, when all have ended and the last report was delivered.
    """

    def __init__(
        self, spec: Mapping[str, Any], *, on_report: Callable[[Report], None], on_exit: Callable[[], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._ring_name = f"{RING_PREFIX}{secrets.token_hex(6)}"
        world = worker.plan_of(spec).num_devices
        pairs = [context.Pipe(duplex=True) for _ in range(world)]
        self._pipes, self._far_ends = [near for near, _ in pairs], [far for _, far in pairs]
        links = [context.Pipe(duplex=True) for _ in range(world - 1)]
        self._between = [end for link in links for end in link]
        peers = [[leader for leader, _ in links], *([follower] for _, follower in links)]
        spec = {**spec, "ring_name": self._ring_name}
        self._processes = [
            context.Process(
                target=worker.main,
                args=(self._far_ends[rank], {**spec, "rank": rank}, peers[rank]),
                name=f"avatarcast-model-{rank}" if rank else "avatarcast-model",
                daemon=True,
            )
            for rank in range(world)
        ]
        self._first_dead = 0
        self._outbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._on_report = on_report
        self._on_exit = on_exit
        self._threads: list[threading.Thread] = []

    @property
    def pid(self) -> int | None:
        """Of the process that the server talks to."""
        return self._processes[0].pid

    @property
    def pids(self) -> list[int | None]:
        """Of all, by rank."""
        return [process.pid for process in self._processes]

    def start(self) -> None:
        """Spawn the processes; takes some tens of milliseconds each."""
        try:
            for process in self._processes:
                process.start()
        except BaseException:
            self.kill()
            raise
        for end in (*self._far_ends, *self._between):  # so that a pipe closes when who holds its other end dies
            end.close()
        for target, name in ((self._read, "model-reader"), (self._write, "model-writer")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def send(self, command: Command) -> None:
        """Queue a command; never waits, and does nothing when the process has ended."""
        self._outbox.put(command)

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes:
            if process.pid is not None:
                process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until all have ended; call it off the event loop.

        Returns:
            Whether they have.
        """
        end_s = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0.0, end_s - time.monotonic()))
        return all(process.exitcode is not None for process in self._processes)

    def dispose(self) -> None:
        """Give back threads, pipes and process entries; call it off the event loop, after the end."""
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for end in (*self._pipes, *self._far_ends, *self._between):
            end.close()
        remove(self._ring_name)
        for process in self._processes:
            with contextlib.suppress(ValueError):  # it never started, or has not ended
                process.close()

    def cause_of_death(self) -> str:
        """How it ended, as one sentence; of several, the one that ended first."""
        code = self._processes[self._first_dead].exitcode
        who = "the model's process" if len(self._processes) == 1 else f"rank {self._first_dead} of the model's plan"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return f"{who} was ended by {name}{hint}"
        return f"{who} ended with status {code}; see its log above"

    def _read(self) -> None:
        """Deliver reports until a process ends, then end the others."""
        ranks = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        ends = {process.sentinel: rank for rank, process in enumerate(self._processes)}
        dead = None
        while dead is None:
            for source in pipes.wait([*ranks, *ends]):
                rank = ranks[source] if source in ranks else ends[source]
                if not self._deliver(self._pipes[rank]):
                    dead = rank
                    break
        self._first_dead = dead
        self._processes[dead].join()
        self.kill()
        for process in self._processes:
            process.join()
        self._outbox.put(None)
        self._on_exit()

    def _deliver(self, pipe: pipes.Connection) -> bool:
        """Hand on what a process says; False once it has nothing more to say."""
        try:
            if pipe.poll() or pipe.poll(_LAST_WORDS_S):
                self._on_report(pipe.recv())
                return True
        except (EOFError, OSError):
            pass
        return False

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                self._pipes[0].send(command)
            except OSError:  # it has ended; the reader tells
                return

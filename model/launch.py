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
    Update,
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
    "Update",
    "WorkerProcess",
]

RUNNABLE: dict[str, tuple[str, ...]] = {"single": ("shared",)}
"""Kinds of plan that the processes started here can run, each with the places its decoder may have."""
RING_PREFIX = "avatarcast_"
"""Begins the name of every shared memory of ours; it lives only until the server has attached."""


class WorkerProcess:
    """One life of the model's process.

    Args:
        spec: plain values: `kind` (fake, checkpoint), `threads`, `slots`, `log_level`, and what that kind takes.
        on_report: called on the reader thread with every report, in order.
        on_exit: called on the reader thread once, when the process has ended and the last report was delivered.
    """

    def __init__(
        self, spec: Mapping[str, Any], *, on_report: Callable[[Report], None], on_exit: Callable[[], None]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._ring_name = f"{RING_PREFIX}{secrets.token_hex(6)}"
        self._pipe, self._far_end = context.Pipe(duplex=True)
        self._process = context.Process(
            target=worker.main,
            args=(self._far_end, {**spec, "ring_name": self._ring_name}),
            name="avatarcast-model",
            daemon=True,
        )
        self._outbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._on_report = on_report
        self._on_exit = on_exit
        self._threads: list[threading.Thread] = []

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def start(self) -> None:
        """Spawn the process; takes some tens of milliseconds."""
        self._process.start()
        self._far_end.close()  # so that its end of the pipe closes when it dies
        for target, name in ((self._read, "model-reader"), (self._write, "model-writer")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def send(self, command: Command) -> None:
        """Queue a command; never waits, and does nothing when the process has ended."""
        self._outbox.put(command)

    def kill(self) -> None:
        """End the process at once."""
        if self._process.pid is not None:
            self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; call it off the event loop.

        Returns:
            Whether it has.
        """
        self._process.join(timeout_s)
        return self._process.exitcode is not None

    def dispose(self) -> None:
        """Give back threads, pipe and process entry; call it off the event loop, after the end."""
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for end in (self._pipe, self._far_end):
            end.close()
        remove(self._ring_name)
        with contextlib.suppress(ValueError):  # it never started, or has not ended
            self._process.close()

    def cause_of_death(self) -> str:
        """How it ended, as one sentence."""
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return f"the model's process was ended by {name}{hint}"
        return f"the model's process ended with status {code}; see its log above"

    def _read(self) -> None:
        sources = [self._pipe, self._process.sentinel]
        while True:
            ready = pipes.wait(sources)
            try:
                if self._pipe in ready or self._pipe.poll():
                    self._on_report(self._pipe.recv())
                    continue
            except (EOFError, OSError):
                pass
            break
        self._process.join()
        self._outbox.put(None)
        self._on_exit()

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                self._pipe.send(command)
            except OSError:  # it has ended; the reader tells
                return

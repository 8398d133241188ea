"""One life of the model's process, seen from the event loop: its start, its signs of life, its end.

A process that does not start in time, hangs in a block, or falls silent is killed here; what follows from an end is
`engine`'s decision.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model import launch
from streaming.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process ended."""

    reason: str
    is_final: bool
    lived_s: float
    """Time since it was ready; 0 if it never was."""


class Life:
    """One life of the process, on the loop's side.

    Args:
        spec: for `launch.WorkerProcess`.
        config: times.
        receive: told every report but signs of life and the announced failure.
    """

    def __init__(self, spec: Mapping[str, Any], config: EngineConfig, receive: Callable[[launch.Report], None]) -> None:
        self.ring: launch.RingReader | None = None
        self.process = launch.WorkerProcess(
            spec,
            on_report=lambda report: self._hand_over(self._report, report),
            on_exit=lambda: self._hand_over(self._exited.set),
        )
        self._config = config
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._ready_s: float | None = None
        self._has_started = False
        self._failed: launch.Failed | None = None
        self._kill_reason = ""
        self._alarm: asyncio.TimerHandle | None = None

    async def run(self) -> Death:
        """Start the process and wait for its end."""
        start = asyncio.ensure_future(asyncio.to_thread(self.process.start))
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            await start
            self._has_started = True
            raise
        except OSError as error:
            return Death(reason=f"the model's process could not be started: {error}", is_final=False, lived_s=0.0)
        self._has_started = True
        timeout_s = self._config.start_timeout_s
        self._set_alarm(timeout_s, f"the model did not start within {timeout_s:g} s; raise engine.start_timeout_s")
        await self._exited.wait()
        lived_s = 0.0 if self._ready_s is None else self._loop.time() - self._ready_s
        if self._failed is not None:
            return Death(reason=self._failed.reason, is_final=self._failed.is_final, lived_s=lived_s)
        return Death(reason=self._kill_reason or self.process.cause_of_death(), is_final=False, lived_s=lived_s)

    async def end(self, timeout_s: float) -> None:
        """Make sure the process has ended, and give back what it held."""
        if self._has_started and not self._exited.is_set():
            self.process.send(launch.Stop())
            try:
                await asyncio.wait_for(self._exited.wait(), timeout_s)
            except TimeoutError:
                self.process.kill()
                await self._exited.wait()
        if self._alarm is not None:
            self._alarm.cancel()
        await asyncio.to_thread(self.process.dispose)
        if self.ring is not None:
            self.ring.retire()

    def _hand_over(self, call: Callable[..., None], *args: object) -> None:
        """From the reader thread to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop has closed; nobody is interested any more
            self._loop.call_soon_threadsafe(call, *args)

    def _report(self, report: launch.Report) -> None:
        match report:
            case launch.Beat(busy_s):
                self._heard(busy_s)
            case launch.Failed():
                self._failed = report
            case launch.Ready():
                self._ready_s = self._loop.time()
                self.ring = launch.RingReader(report.ring, lambda slot: self.process.send(launch.Release(slot)))
                self._heard(0.0)
                self._receive(report)
            case _:
                self._receive(report)

    def _heard(self, busy_s: float) -> None:
        """A sign of life; before the model is ready the start's own alarm stands."""
        if self._ready_s is None:
            return
        if busy_s > self._config.step_timeout_s:
            self._kill(f"the model has hung in one block for {busy_s:.0f} s")
        timeout_s = self._config.heartbeat_timeout_s
        self._set_alarm(timeout_s, f"the model's process gave no sign of life for {timeout_s:g} s")

    def _set_alarm(self, delay_s: float, reason: str) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(delay_s, self._kill, reason)

    def _kill(self, reason: str) -> None:
        self._kill_reason = self._kill_reason or reason
        self.process.kill()

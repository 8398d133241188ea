"""Clocks: the real one, and one that tests move by hand.

Everything in `streaming` that waits takes a `Clock`. Times are seconds on a monotonic scale; the real clock's is that
of `time.monotonic`, which every process of this machine shares.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that has not happened yet."""

    def cancel(self) -> None:
        """Drop the call; does nothing once it has happened."""
        ...


class Clock(Protocol):
    """Now, and waiting until then."""

    def now(self) -> float:
        """Seconds, never going back."""
        ...

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        """Call back on the loop at `due_s`, or soon if that has passed."""
        ...

    async def sleep_until(self, due_s: float) -> None:
        """Return at `due_s` or just after; at once, but after one turn of the loop, if that has passed."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, due_s - time.monotonic()), callback)

    async def sleep_until(self, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))


class _VirtualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """A clock that stands still until `advance`.

    Args:
        start_s: its first reading.
        turns: turns of the event loop granted after every event, so that chains of awaits come to rest.
    """

    def __init__(self, start_s: float = 1000.0, *, turns: int = 12) -> None:
        self._now_s = start_s
        self._turns = turns
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _VirtualTimer]] = []

    def now(self) -> float:
        return self._now_s

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        timer = _VirtualTimer(callback)
        heapq.heappush(self._timers, (due_s, next(self._order), timer))
        return timer

    async def sleep_until(self, due_s: float) -> None:
        if due_s <= self._now_s:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_at(due_s, lambda: woken.done() or woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    async def settle(self) -> None:
        """Let everything that is ready run."""
        for _ in range(self._turns):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at every timer on the way so that each runs at its own time."""
        await self.advance_to(self._now_s + seconds)

    async def advance_to(self, target_s: float) -> None:
        """Move on to `target_s`, as `advance` does."""
        await self.settle()
        while self._timers and self._timers[0][0] <= target_s:
            due_s, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is None:
                continue
            self._now_s = max(self._now_s, due_s)
            callback()
            await self.settle()
        self._now_s = max(self._now_s, target_s)
        await self.settle()

"""Where on the session's sample clock a live source's sound belongs.

A source says when its frames were captured (timestamps of any origin, which wrap) and they arrive when the network
lets them. The first frame is laid at its arrival; from then on timestamps decide, so that jitter and loss move
nothing. Arrival only watches: where frames are early or late for half a second on end, as they are after a stall, a
burst, or hours of two clocks running apart, the whole source is moved, in a pause of speech if it is not urgent. So
neither latency nor loss can creep.

All counts are samples at 16 kHz.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from model.geometry import SAMPLE_RATE_HZ
from streaming.config import WindowConfig

_WRAP = 1 << 32
_WATCH = SAMPLE_RATE_HZ  # leads of the last second are kept
_JUDGE = SAMPLE_RATE_HZ // 2  # and must span this much before they are judged
_SAME_MOMENT = SAMPLE_RATE_HZ // 200  # arrivals within 5 ms are one burst; its last frame speaks for it
_EARLY = SAMPLE_RATE_HZ * 30 // 1000  # earlier than this is moved back in a pause
_TOO_EARLY = SAMPLE_RATE_HZ * 120 // 1000  # earlier than this is moved back at once


@dataclass(slots=True)
class TimelineCounters:
    """What happened to a source."""

    lost_samples: int = 0
    """Missing between timestamps."""
    restarts: int = 0
    """Jumps of the timestamps that were taken for a new start."""
    moves: int = 0
    """Times the source was moved because it came early or late."""


class Timeline:
    """Places one source.

    Args:
        config: thresholds.
    """

    def __init__(self, config: WindowConfig) -> None:
        self.counters = TimelineCounters()
        self._gap = config.gap_ms * SAMPLE_RATE_HZ // 1000
        self._jump = config.jump_ms * SAMPLE_RATE_HZ // 1000
        self._jitter = config.jitter_ms * SAMPLE_RATE_HZ // 1000
        self._cursor: int | None = None  # where the next sample of the source belongs
        self._next_ticks: int | None = None
        self._leads: deque[tuple[int, int]] = deque()  # (arrival, place - arrival)

    def place(
        self,
        num_samples: int,
        *,
        now: int,
        ticks: int | None = None,
        duration_ticks: int = 0,
        ticks_hz: float = SAMPLE_RATE_HZ,
        is_quiet: bool = True,
    ) -> int:
        """Say where a frame's sound begins.

        Args:
            num_samples: how much sound the frame gave.
            now: the session's sample clock at arrival.
            ticks: the frame's timestamp, modulo 2^32; None if the source has none.
            duration_ticks: length of the frame in ticks.
            ticks_hz: ticks a second.
            is_quiet: whether nobody is speaking, so that a move is not heard.

        Returns:
            First sample; it may lie before what was written or frozen, and that part is then to be dropped.
        """
        start = self._follow(num_samples, now, ticks, duration_ticks, ticks_hz)
        self._watch(start, now)
        move = self._move(is_quiet)
        if move:
            self.counters.moves += 1
            self._leads.clear()
            start += move
        end = start + num_samples
        self._cursor = end if self._cursor is None or move else max(end, self._cursor)
        return start

    def reset(self) -> None:
        """Forget the source; the next frame is laid at its arrival."""
        self._cursor = self._next_ticks = None
        self._leads.clear()

    def _follow(self, num_samples: int, now: int, ticks: int | None, duration: int, ticks_hz: float) -> int:
        """Place by timestamps alone."""
        if self._cursor is None:
            self._next_ticks = None if ticks is None else ticks + duration
            return now
        if ticks is None:
            self._next_ticks = None
            # Without timestamps a pause of the source shows only as lateness.
            return now if self._cursor - now < -self._jitter else self._cursor
        if self._next_ticks is None:
            self._next_ticks = ticks + duration
            return self._cursor
        delta_ticks = (ticks - self._next_ticks + _WRAP // 2) % _WRAP - _WRAP // 2
        delta = round(delta_ticks * SAMPLE_RATE_HZ / ticks_hz)
        if abs(delta) > self._jump:
            self.counters.restarts += 1
            self.reset()
            self._next_ticks = ticks + duration
            return now
        if delta >= self._gap:
            self.counters.lost_samples += delta
        elif delta > -self._gap:
            delta = 0
        if delta + num_samples > 0:
            self._next_ticks = ticks + duration
        return self._cursor + delta

    def _watch(self, start: int, now: int) -> None:
        if self._leads and now - self._leads[-1][0] < _SAME_MOMENT:
            self._leads.pop()
        self._leads.append((now, start - now))
        while self._leads[0][0] < now - _WATCH:
            self._leads.popleft()

    def _move(self, is_quiet: bool) -> int:
        """By how much the source has to be moved, 0 for not at all."""
        if self._leads[-1][0] - self._leads[0][0] < _JUDGE:
            return 0
        lead = round(statistics.median(lead for _, lead in self._leads))
        urgent = lead > _TOO_EARLY or lead < -self._jitter
        worth = lead > _EARLY or lead < -self._jitter * 2 // 3
        return -lead if urgent or (worth and is_quiet) else 0

"""Who gets in: slots, the measured capacity, and the rate of new sessions.

A slot is taken *before* anything is loaded for a session and given back in one place, so a failed load cannot leak
one and two requests at once cannot share one. Capacity is arithmetic on measurements: the engine serves sessions in
turn, so all their blocks together must fit into one block's time, with a margin (`limits.load`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.config import LimitsConfig
from server.errors import ApiError
from server.metrics import percentile
from server.rates import RateByName

UNKNOWN_SESSION_S = 60.0
"""How long a session is expected to last before any has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one session costs, as measured.

    Args:
        block_s: seconds of engine work a block.
        encode_s: seconds of encoder work a block, on one core.
        period_s: seconds of stream in a block.
        cores: processor cores the encoder can use.
        overlap: how many blocks a full engine has under way, so that a block's own time counts for that much less.
    """

    block_s: float
    encode_s: float
    period_s: float
    cores: int
    overlap: float = 1.0

    def sessions(self, limit: float) -> int:
        """How many sessions fit: at least one, because the first may always try (late blocks are held, not queued)."""
        share = (self.block_s + self.encode_s / max(1, self.cores)) / self.period_s
        return max(1, math.floor(limit / share + 1e-9)) if share > 0 else 1


class Slot:
    """One place for one session. `release` may be called again; only the first call counts.

    Args:
        since_s: when it was taken.
        leave: told once, when it is given back.
    """

    def __init__(self, since_s: float, leave: Callable[[Slot], None]) -> None:
        self.since_s = since_s
        self._leave: Callable[[Slot], None] | None = leave

    def release(self) -> None:
        """Give the place back."""
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave(self)


class Admission:
    """Hands out slots while the machine keeps up."""

    def __init__(
        self, limits: LimitsConfig, room: int | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            limits: as configured.
            room: sessions whose memory the cards hold, by the planner; None: not counted.
            now: monotonic seconds.
        """
        self._limits, self._room = limits, room
        self._now = now
        self._slots: set[Slot] = set()
        self._held_s: deque[float] = deque(maxlen=32)
        self._load: Load | None = None
        self._closed: str | None = None
        self._starts = RateByName(limits.sessions_per_minute, now=now)
        self._works: deque[float] = deque(maxlen=400)
        self._on_room: Callable[[], None] = lambda: None

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there may be a free slot."""
        self._on_room = callback

    @property
    def taken(self) -> int:
        """Slots in use, loading sessions included."""
        return len(self._slots)

    @property
    def closed(self) -> str | None:
        """Why nobody is let in any more; None while somebody may be."""
        return self._closed

    @property
    def max_sessions(self) -> int:
        """Slots there are: as configured, or as measured; one before the first measurement. Memory bounds both."""
        if self._limits.max_sessions:
            return self._in_memory(self._limits.max_sessions)
        return self.measured_sessions

    @property
    def measured_sessions(self) -> int:
        """Slots that measured times and the cards' memory allow, whatever `limits.max_sessions` says."""
        return self._in_memory(self._load.sessions(self._limits.load) if self._load else 1)

    def _in_memory(self, sessions: int) -> int:
        return sessions if self._room is None else max(1, min(sessions, self._room))

    @property
    def rtf_p95(self) -> float:
        """95th percentile of work time / stream time of the recent blocks; 0 before the first."""
        return percentile(self._works, 0.95)

    def measured(self, load: Load) -> None:
        """Take the engine's own timing at start-up."""
        self._load = load
        self._on_room()

    def observe_block(self, work_s: float) -> None:
        """Take one block's real cost; what sessions really need moves the measured block time upwards, slowly.

        One slow block says little; the median of the last ones does.
        """
        if self._load is None:
            return
        self._works.append(work_s / self._load.overlap / self._load.period_s)
        if len(self._works) >= 20 and len(self._works) % 20 == 0:
            median = percentile(list(self._works)[-100:], 0.5) * self._load.period_s
            self._load = replace(self._load, block_s=median)

    def close(self, reason: str) -> None:
        """Refuse every new session from now on: the server is leaving."""
        self._closed = reason

    def enter(self, client: str) -> None:
        """Count one wish for a session, whether there is room or not.

        Args:
            client: address of the asker, for the rate limit.

        Raises:
            ApiError: `capacity` (503) while the server leaves, or `rate_limited` (429), both with `Retry-After`.
        """
        if self._closed:
            raise ApiError("capacity", self._closed, retry_after_s=30)
        wait_s = self._starts.wait_s(client)
        if wait_s:
            most = self._limits.sessions_per_minute
            raise ApiError(
                "rate_limited",
                f"{most} sessions within a minute are the most (limits.sessions_per_minute); wait {wait_s} s.",
                retry_after_s=wait_s,
            )

    def take(self) -> Slot | None:
        """A slot, or None when all are taken."""
        if self._closed or self.taken >= self.max_sessions:
            return None
        slot = Slot(self._now(), self._left)
        self._slots.add(slot)
        return slot

    def _left(self, slot: Slot) -> None:
        self._slots.discard(slot)
        self._held_s.append(self._now() - slot.since_s)
        self._on_room()

    def refusal(self) -> ApiError:
        """`capacity` (503), with the reason why no slot is free."""
        return ApiError("capacity", self._full_sentence(), retry_after_s=15)

    def eta_s(self, position: int) -> float:
        """Expected seconds until the slot for the one at `position` (from 1) of a queue is free.

        Sessions are expected to last as long as the last ones did (a minute before any ended), and those that have
        lasted longer a quarter of that longer.
        """
        mean_s = sum(self._held_s) / len(self._held_s) if self._held_s else UNKNOWN_SESSION_S
        now = self._now()
        left = sorted(max(mean_s - (now - slot.since_s), mean_s / 4) for slot in self._slots) or [0.0]
        rounds, place = divmod(max(1, position) - 1, len(left))
        return left[place] + rounds * mean_s

    def _full_sentence(self) -> str:
        if self._room is not None and self.max_sessions >= self._room:
            sessions = "1 session" if self._room == 1 else f"{self._room} sessions"
            return f"The GPUs have memory for {sessions} (avatarcast plan shows it); try again later."
        if self._limits.max_sessions:
            return f"Every place is taken; limits.max_sessions is {self.max_sessions}. Try again later."
        if self._load is None:
            return "The engine is still starting and one session waits for it already; try again in some seconds."
        return (
            f"This machine is full: a block of {self._load.period_s * 1000:.0f} ms takes "
            f"{self._load.block_s * 1000:.0f} ms of work a session, so no more than {self.max_sessions} fit; "
            "try again later."
        )

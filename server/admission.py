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
    """One place for one session. `release` may be called again; only the first call counts."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Give the place back."""
        if self._admission is not None:
            self._admission._taken -= 1
            self._admission = None


class Admission:
    """Hands out slots while the machine keeps up."""

    def __init__(self, limits: LimitsConfig, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._taken = 0
        self._load: Load | None = None
        self._closed: str | None = None
        self._starts: dict[str, deque[float]] = {}
        self._works: deque[float] = deque(maxlen=400)

    @property
    def taken(self) -> int:
        """Slots in use, loading sessions included."""
        return self._taken

    @property
    def max_sessions(self) -> int:
        """Slots there are: as configured, or as measured; one before the first measurement."""
        measured = self._load.sessions(self._limits.load) if self._load else 1
        return min(self._limits.max_sessions, 10_000) if self._limits.max_sessions else measured

    @property
    def rtf_p95(self) -> float:
        """95th percentile of work time / stream time of the recent blocks; 0 before the first."""
        return percentile(self._works, 0.95)

    def measured(self, load: Load) -> None:
        """Take the engine's own timing at start-up."""
        self._load = load

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

    def reserve(self, client: str) -> Slot:
        """Take a slot, or say why not.

        Args:
            client: address of the asker, for the rate limit.

        Raises:
            ApiError: `capacity` (503) or `rate_limited` (429), both with `Retry-After`.
        """
        if self._closed:
            raise ApiError("capacity", self._closed, retry_after_s=30)
        self._check_rate(client)
        if self._taken >= self.max_sessions:
            raise ApiError("capacity", self._full_sentence(), retry_after_s=15)
        self._taken += 1
        return Slot(self)

    def _full_sentence(self) -> str:
        if self._limits.max_sessions:
            return f"Every place is taken; limits.max_sessions is {self.max_sessions}. Try again later."
        if self._load is None:
            return "The engine is still starting and one session waits for it already; try again in some seconds."
        return (
            f"This machine is full: a block of {self._load.period_s * 1000:.0f} ms takes "
            f"{self._load.block_s * 1000:.0f} ms of work a session, so no more than {self.max_sessions} fit; "
            "try again later."
        )

    def _check_rate(self, client: str) -> None:
        now = self._now()
        if len(self._starts) > 4096:
            self._starts = {c: s for c, s in self._starts.items() if s and now - s[-1] < 60}
        starts = self._starts.setdefault(client, deque())
        while starts and now - starts[0] >= 60:
            starts.popleft()
        if len(starts) >= self._limits.sessions_per_minute:
            wait = max(1, math.ceil(60 - (now - starts[0])))
            raise ApiError(
                "rate_limited",
                f"{len(starts)} sessions within a minute are the most (limits.sessions_per_minute); wait {wait} s.",
                retry_after_s=wait,
            )
        starts.append(now)

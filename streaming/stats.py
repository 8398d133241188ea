"""Figures of one session: what each block cost, and the summary told once a second."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

_BLOCKS = 60  # about half a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The `stats` event."""

    fps: float
    """Generated pictures sent in the last second."""
    block_ms_p50: float
    """Median time the model took for a block."""
    block_ms_p95: float
    latency_ms: float
    """From a sample's arrival until its picture leaves."""
    queue_ms: float
    """Median time a block waited for the model."""
    av_drift_ms: float
    """How much later than sound pictures leave."""
    rtf: float
    """Median block time over block length."""
    underruns: int
    """Due times with nothing to show, since the session began."""
    deadline_misses: int
    """Blocks that were not computed because their time had passed or too many were under way."""
    late_samples: int
    """Sound that came after its window had closed."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(slots=True)
class SessionCounters:
    """What happened to a session's blocks, since it began."""

    blocks: int = 0
    """Blocks that came in time for at least one of their frames to be wanted."""
    deadline_misses: int = 0
    """Blocks not computed because their time had passed or too many were under way."""
    failed_blocks: int = 0
    """Blocks the model could not compute."""
    skipped_blocks: int = 0
    """Blocks that fell into a time without a model."""


@dataclass(slots=True)
class BlockLog:
    """Times of recent blocks, in seconds."""

    took_s: deque[float] = field(default_factory=lambda: deque(maxlen=_BLOCKS))
    waited_s: deque[float] = field(default_factory=lambda: deque(maxlen=_BLOCKS))

    def add(self, *, took_s: float, waited_s: float) -> None:
        self.took_s.append(took_s)
        self.waited_s.append(waited_s)

    @property
    def usual_s(self) -> float | None:
        """Median time of a block; None before the first."""
        return statistics.median(self.took_s) if self.took_s else None


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

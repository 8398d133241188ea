"""What every kind of output tells about itself, and how it tries again."""

from __future__ import annotations

import secrets
from typing import Literal

from server.output_sinks import Target

OutputState = Literal["connecting", "live", "retrying", "failed", "ended"]
RETRY_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the next attempts; the last one repeats."""


def retry_delay_s(failures: int) -> float:
    """The pause after so many failures in a row (from 1)."""
    return RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S)) - 1]


class OutputReport:
    """The part of an output that the API shows.

    Args:
        target: where it goes.
    """

    def __init__(self, target: Target) -> None:
        self.id = secrets.token_urlsafe(8)
        self.state: OutputState = "connecting"
        self.reason: str | None = None
        self.dropped = 0
        """Pictures and pieces of sound that the target was too slow for."""
        self.attempts = 0
        """How often a connection was begun."""
        self._target = target

    @property
    def active(self) -> bool:
        """Whether it still tries; an output that reaches its target counts as a viewer of the session."""
        return self.state not in ("failed", "ended")

    def as_json(self) -> dict[str, object]:
        """What the API tells; never the full address, which may hold a stream key."""
        return {
            "output": self.id,
            "target": self._target.shown,
            "state": self.state,
            "reason": self.reason,
            "attempts": self.attempts,
            "dropped": self.dropped,
        }

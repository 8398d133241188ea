"""How many bits the shared encoder may spend: what the slowest healthy viewer can take.

Receivers tell what they lose (RTCP receiver reports) and, browsers, what they think fits (REMB). Each viewer's share
follows these as libwebrtc's loss controller does: above 10 % loss it shrinks by half the loss, below 2 % it grows by
8 % a second. The session's rate is the least of all shares above a floor: a viewer that cannot even take the floor is
not healthy, and the others are not made to suffer beyond it. An encoder is rebuilt for a new rate, with a key frame, so
small moves are left out and a rise waits.
"""

from __future__ import annotations

from dataclasses import dataclass

LOSS_HIGH, LOSS_LOW = 0.10, 0.02
GROWTH_A_SECOND = 1.08
STEP_DOWN, STEP_UP = 0.90, 1.15
"""A new rate is set when it is below, or above, the old one by this factor."""
RISE_AFTER_S = 5.0
"""A rise waits this long after the last change."""
REPORT_S = 1.0
"""Growth is counted by the second, however often reports come; loss is acted upon this often."""


@dataclass(slots=True)
class _Share:
    """What one viewer can take, in kbit/s."""

    rate_kbps: float
    limit_kbps: float
    judged_s: float


class BitrateControl:
    """The rate of one session's encoder. Times are monotonic seconds.

    Args:
        most_kbps: rate without any complaint.
        least_kbps: rate that no viewer pushes below.
    """

    def __init__(self, *, most_kbps: int, least_kbps: int) -> None:
        self._most, self._least = most_kbps, min(least_kbps, most_kbps)
        self._shares: dict[object, _Share] = {}
        self._changed_s = float("-inf")
        self.rate_kbps = most_kbps
        """The rate to encode with."""

    def report_loss(self, viewer: object, loss: float, now_s: float) -> None:
        """Take a receiver report.

        Args:
            viewer: any name for the one who reports.
            loss: share of packets lost since its last report, 0 to 1.
        """
        share = self._share(viewer, now_s)
        since_s = now_s - share.judged_s
        if since_s < REPORT_S:
            return
        share.judged_s = now_s
        if loss > LOSS_HIGH:
            share.rate_kbps = min(share.rate_kbps, self.rate_kbps) * (1 - loss / 2)
        elif loss < LOSS_LOW:
            share.rate_kbps *= GROWTH_A_SECOND ** min(since_s, 5.0)
        share.rate_kbps = min(max(share.rate_kbps, self._least), self._most)

    def report_estimate(self, viewer: object, kbps: float, now_s: float) -> None:
        """Take a REMB: the most that a receiver thinks it can take."""
        self._share(viewer, now_s).limit_kbps = max(kbps, self._least)

    def leave(self, viewer: object) -> None:
        """Forget a viewer."""
        self._shares.pop(viewer, None)

    def step(self, now_s: float) -> bool:
        """Move `rate_kbps` if it is worth a new encoder; returns whether it moved."""
        wanted = min((min(s.rate_kbps, s.limit_kbps) for s in self._shares.values()), default=float(self._most))
        wanted = round(min(max(wanted, self._least), self._most))
        falls = wanted < self.rate_kbps * STEP_DOWN or (wanted == self._least and wanted < self.rate_kbps)
        rises = wanted > self.rate_kbps * STEP_UP or (wanted == self._most and wanted > self.rate_kbps)
        if not falls and not (rises and now_s - self._changed_s >= RISE_AFTER_S):
            return False
        self.rate_kbps, self._changed_s = wanted, now_s
        return True

    def _share(self, viewer: object, now_s: float) -> _Share:
        if viewer not in self._shares:
            self._shares[viewer] = _Share(float(self._most), float("inf"), now_s - REPORT_S)
        return self._shares[viewer]

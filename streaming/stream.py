"""The running block clock of one session: which window closes when, and which block of the model it becomes.

A *slot* is a block of the sample clock: slot n is samples [n * block, (n + 1) * block). A *block* is what the model
counts. They are the same until an interrupt: then slots that were computed with the cut-off speech are computed again,
and as the model only ever goes forward, they become further blocks.
"""

from __future__ import annotations

import math

from model.geometry import SAMPLE_RATE_HZ
from model.interface import BlockRequest, ModelInfo
from streaming.config import StreamingConfig
from streaming.judge import make_judge
from streaming.windows import Window, Windows


def latency_target_s(info: ModelInfo, config: StreamingConfig) -> float:
    """How long after a sample's arrival its frame is due: block + look-ahead + jitter + compute + margin.

    Rounded up to whole frames, so that the stream's frames fall on the session's picture times. Compute counts for at
    most one block's length: a model that needs longer cannot keep up, and waiting longer would not help it. One with
    several blocks under way at once keeps up if they come often enough, however long each takes.
    """
    latency = config.latency
    compute_s = info.block_s * latency.compute_factor
    if not 0 < info.interval_s <= info.geometry.block_s:
        compute_s = min(compute_s, info.geometry.block_s)
    needed_s = (
        info.geometry.block_s
        + info.window.lookahead_samples / SAMPLE_RATE_HZ
        + config.window.jitter_ms / 1000
        + compute_s
        + latency.margin_ms / 1000
    )
    wanted_s = min(max(needed_s, latency.floor_ms / 1000), latency.ceiling_ms / 1000)
    return math.ceil(wanted_s * info.geometry.fps - 1e-9) / info.geometry.fps


def posture_of(window: Window, hint: str = "idle") -> str:
    """What the body does while a window is shown: speaking if it is, else the hint."""
    return "speaking" if window.has_speech else hint


class Stream:
    """One session's windows and their numbers.

    Args:
        session: session id.
        info: the model.
        config: settings.
        start_s: clock time of sample 0.
    """

    def __init__(self, session: str, info: ModelInfo, config: StreamingConfig, start_s: float) -> None:
        self.info = info
        self.geometry = info.geometry
        self.start_s = start_s
        self.next_slot = 0
        """The slot whose window closes next."""
        self.epoch = 0
        self.windows = Windows(info.window, config.window, config.vad, make_judge(config.vad))
        self._session = session
        self._shift = 0
        self._jitter_s = config.window.jitter_ms / 1000

    @property
    def next_block(self) -> int:
        """The model's block that `next_slot` will be."""
        return self.next_slot + self._shift

    def sample_at(self, now_s: float) -> int:
        """The sample that arrives at `now_s`."""
        return round((now_s - self.start_s) * SAMPLE_RATE_HZ)

    def close_s(self, slot: int) -> float:
        """Clock time at which a slot's window closes."""
        return self.start_s + self.windows.window_end(slot) / SAMPLE_RATE_HZ + self._jitter_s

    def slot_of(self, block: int) -> int:
        """The slot a block of the present epoch is for."""
        return block - self._shift

    def request(self, window: Window, *, posture: str, deadline_s: float) -> BlockRequest:
        """The work that a window means."""
        return BlockRequest(
            session=self._session,
            block=window.block + self._shift,
            epoch=self.epoch,
            window=window.samples,
            posture=posture,
            deadline_s=deadline_s,
        )

    def interrupt(self, from_slot: int) -> range:
        """Raise the epoch.

        Args:
            from_slot: first slot that should be computed again, as the interrupt left its window.

        Returns:
            The slots to compute again now.
        """
        self.epoch += 1
        again = range(min(from_slot, self.next_slot), self.next_slot)
        self._shift += len(again)
        return again

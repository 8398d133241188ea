"""The microphone of one session: its form, its place on the sample clock, and speech heard while it is not spoken."""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np

from streaming.config import StreamingConfig
from streaming.judge import FRAME_SAMPLES, make_judge
from streaming.resample import SpeechResampler
from streaming.timeline import Timeline
from streaming.vad import Edge, Vad


class Microphone:
    """One live source.

    Args:
        config: settings.
    """

    def __init__(self, config: StreamingConfig) -> None:
        self.is_muted = False
        """Whether nothing of it is heard."""
        self.listener: Callable[[np.ndarray], None] | None = None
        """Gets everything it hears as 16 kHz mono float32."""
        self.timeline = Timeline(config.window)
        self._resampler = SpeechResampler()
        self._ears = Vad(config.vad, make_judge(config.vad))
        self._unheard = np.zeros(0, np.float32)

    def convert(self, frame: av.AudioFrame) -> np.ndarray:
        """A frame as 16 kHz mono.

        Raises:
            AudioFormatError: as `SpeechResampler.push`.
        """
        samples = self._resampler.push(frame)
        if self.listener is not None and not self.is_muted and len(samples):
            self.listener(samples)
        return samples

    def place(self, frame: av.AudioFrame, num_samples: int, *, now: int, is_quiet: bool) -> int:
        """First sample of the frame's sound on the session's clock."""
        if frame.pts is None or not frame.time_base:
            return self.timeline.place(num_samples, now=now, is_quiet=is_quiet)
        ticks_hz = float(1 / frame.time_base)
        return self.timeline.place(
            num_samples,
            now=now,
            ticks=frame.pts,
            duration_ticks=round(frame.samples / frame.sample_rate * ticks_hz),
            ticks_hz=ticks_hz,
            is_quiet=is_quiet,
        )

    def overhear(self, samples: np.ndarray) -> list[Edge]:
        """Listen for speech in sound that is not spoken; its edges have no place on the clock."""
        self._unheard = np.concatenate([self._unheard, samples])
        edges = []
        while len(self._unheard) >= FRAME_SAMPLES:
            edge = self._ears.step(self._unheard[:FRAME_SAMPLES])
            self._unheard = self._unheard[FRAME_SAMPLES:]
            edges += [edge] if edge else []
        return edges

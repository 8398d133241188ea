"""Utterances in a stream of sound, by voice activity: for clients that stream without saying when speech begins.

Works on the stream's own time, so sound that comes faster than real time is cut just the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.config import VadConfig
from streaming.judge import FRAME_SAMPLES, make_judge
from streaming.resample import SpeechResampler
from streaming.vad import Vad

_KEPT_SAMPLES = SAMPLE_RATE_HZ  # of quiet; a segment begins less than that before it is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the stream holds next."""

    kind: Literal["started", "sound", "stopped"]
    at_ms: int
    """Stream time."""
    samples: np.ndarray | None = None
    """[n] float32, 16 kHz; with `sound` only."""


class Turns:
    """Cuts one stream into utterances.

    Args:
        config: when sound counts as speech.
    """

    def __init__(self, config: VadConfig) -> None:
        self._vad = Vad(config, make_judge(config))
        self._resampler = SpeechResampler()
        self._kept = np.zeros(0, np.float32)  # not yet handed on; ends at the newest sample
        self._unheard = 0  # of it, samples that the detector has not seen

    @property
    def is_speech(self) -> bool:
        """Whether an utterance is open."""
        return self._vad.is_speech

    def hear(self, pcm: np.ndarray, rate_hz: int) -> Iterator[Heard]:
        """Take sound; yields what it brings, in order.

        Args:
            pcm: [n] int16 mono.
            rate_hz: its rate.

        Raises:
            AudioFormatError: `unsupported_rate`.
        """
        samples = self._resampler.push_pcm(pcm, rate_hz)
        self._kept = np.concatenate([self._kept, samples])
        self._unheard += len(samples)
        while self._unheard >= FRAME_SAMPLES:
            start = len(self._kept) - self._unheard
            edge = self._vad.step(self._kept[start : start + FRAME_SAMPLES])
            self._unheard -= FRAME_SAMPLES
            if edge is not None and edge.kind == "started":
                yield Heard(kind="started", at_ms=_ms(edge.at))
                first = self._vad.position - edge.at
                self._kept = self._kept[max(0, len(self._kept) - self._unheard - first) :]
            if self._vad.is_speech or edge is not None:
                yield self._hand_on()
            if edge is not None and edge.kind == "stopped":
                yield Heard(kind="stopped", at_ms=_ms(edge.at))
        if not self._vad.is_speech:
            self._kept = self._kept[max(0, len(self._kept) - self._unheard - _KEPT_SAMPLES) :]

    def _hand_on(self) -> Heard:
        """The sound that the detector has seen and nobody has had."""
        cut = len(self._kept) - self._unheard
        samples, self._kept = self._kept[:cut], self._kept[cut:]
        return Heard(kind="sound", at_ms=_ms(self._vad.position - cut), samples=samples)


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE_HZ

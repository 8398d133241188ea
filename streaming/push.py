"""Speech that is pushed rather than spoken live: utterances in a bounded queue, laid on the sample clock as blocks need
them.

Pushed sound may come much faster than it is heard, or only just as fast. A short reserve is held back while an
utterance is still growing, so that a source of the second kind does not run dry in the middle of a word.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.errors import BufferFullError
from streaming.resample import SpeechResampler

RESERVE_SAMPLES = SAMPLE_RATE_HZ * 160 // 1000
_FULL, _LOW = 0.8, 0.5  # shares of the buffer at which the source is paused and resumed


@dataclass(slots=True)
class _Utterance:
    name: str
    resampler: SpeechResampler = field(default_factory=SpeechResampler)
    parts: deque[np.ndarray] = field(default_factory=deque)
    num_samples: int = 0
    is_complete: bool = False
    is_held: bool = False  # its maker ends it, even if another one begins meanwhile
    is_flowing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A piece of an utterance and where it lies."""

    name: str
    start: int
    samples: np.ndarray
    is_last: bool
    """Whether the utterance ends with it; `samples` may then be empty."""


class PushQueue:
    """Utterances that wait to be spoken, in order.

    Args:
        buffer_s: sound that may wait; more is refused.
    """

    def __init__(self, buffer_s: float) -> None:
        self.is_paused = False
        """Whether the source was asked to wait."""
        self._capacity = round(buffer_s * SAMPLE_RATE_HZ)
        self._waiting: deque[_Utterance] = deque()

    def __contains__(self, name: str) -> bool:
        return any(utterance.name == name for utterance in self._waiting)

    def accepts(self, name: str) -> bool:
        """Whether sound may be added to an utterance."""
        return self._open(name) is not None

    @property
    def is_active(self) -> bool:
        """Whether an utterance waits or still grows."""
        return bool(self._waiting)

    @property
    def queued_samples(self) -> int:
        """Sound that waits."""
        return sum(utterance.num_samples for utterance in self._waiting)

    def begin(self, name: str, *, is_held: bool = False) -> None:
        """Announce an utterance; those before it are complete, but for held ones.

        Args:
            name: of the utterance.
            is_held: it stays open until `end`, whatever begins meanwhile: its sound is still being made.
        """
        assert name not in self
        for utterance in self._waiting:
            if not utterance.is_held:
                self._complete(utterance)
        self._waiting.append(_Utterance(name, is_held=is_held))

    def push(self, name: str, pcm: np.ndarray, rate_hz: int) -> None:
        """Add sound to an utterance.

        Args:
            name: announced and open.
            pcm: [n] int16 or float32, mono.
            rate_hz: its rate.

        Raises:
            BufferFullError: more would wait than the buffer holds; nothing was taken.
            AudioFormatError: `unsupported_rate`.
        """
        utterance = self._open(name)
        assert utterance is not None, f"utterance {name!r} is not open"
        if self.queued_samples + len(pcm) * SAMPLE_RATE_HZ // max(1, rate_hz) > self._capacity:
            seconds = self._capacity / SAMPLE_RATE_HZ
            raise BufferFullError(f"more than {seconds:g} s of speech wait already; push on after the resume event")
        self._add(utterance, utterance.resampler.push_pcm(pcm, rate_hz))

    def end(self, name: str) -> None:
        """The utterance is complete."""
        for utterance in self._waiting:
            if utterance.name == name:
                self._complete(utterance)

    def clear(self) -> None:
        """Forget everything that waits."""
        self._waiting.clear()

    def lay(self, lo: int, hi: int, ahead: int = 0) -> list[Laid]:
        """Take what belongs on [lo, hi) of the sample clock, and what follows it without a hole before `ahead`.

        Args:
            lo: first sample that is still free.
            hi: end of what must be decided now.
            ahead: end of what may be decided now, where its sound is here already.
        """
        laid: list[Laid] = []
        while self._waiting and lo < hi:
            utterance = self._waiting[0]
            if not utterance.is_flowing and not utterance.is_complete:
                spare = utterance.num_samples - RESERVE_SAMPLES
                if spare <= 0:
                    break
                lo = max(lo, hi - spare)
            utterance.is_flowing = utterance.num_samples >= hi - lo  # run dry: it builds up its reserve again
            lo = self._lay_first(lo, hi, laid)
            if self._waiting and self._waiting[0] is utterance:
                break
        while self._waiting and lo < ahead:
            utterance = self._waiting[0]
            if not utterance.is_flowing and not utterance.is_complete:
                break
            lo = self._lay_first(lo, ahead, laid)
            if self._waiting and self._waiting[0] is utterance:
                break
        return laid

    def _lay_first(self, lo: int, hi: int, laid: list[Laid]) -> int:
        """Lay what is there of the first utterance on [lo, hi), drop it if that was all; returns where it ends."""
        utterance = self._waiting[0]
        samples = self._take(utterance, min(utterance.num_samples, hi - lo))
        is_last = utterance.is_complete and utterance.num_samples == 0
        if len(samples) or is_last:
            laid.append(Laid(name=utterance.name, start=lo, samples=samples, is_last=is_last))
        if is_last:
            self._waiting.popleft()
        return lo + len(samples)

    def pressure(self) -> bool | None:
        """Whether the source should now be told to pause (True) or resume (False); None: nothing new."""
        share = self.queued_samples / self._capacity
        if not self.is_paused and share > _FULL:
            self.is_paused = True
            return True
        if self.is_paused and share < _LOW:
            self.is_paused = False
            return False
        return None

    def _open(self, name: str) -> _Utterance | None:
        return next((u for u in self._waiting if u.name == name and not u.is_complete), None)

    def _complete(self, utterance: _Utterance) -> None:
        if not utterance.is_complete:
            utterance.is_complete = True
            self._add(utterance, utterance.resampler.flush())

    @staticmethod
    def _add(utterance: _Utterance, samples: np.ndarray) -> None:
        if len(samples):
            utterance.parts.append(samples)
            utterance.num_samples += len(samples)

    @staticmethod
    def _take(utterance: _Utterance, num_samples: int) -> np.ndarray:
        taken: list[np.ndarray] = []
        missing = num_samples
        while missing > 0:
            part = utterance.parts.popleft()
            if len(part) > missing:
                utterance.parts.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= len(part)
        utterance.num_samples -= num_samples
        return np.concatenate(taken) if taken else np.zeros(0, np.float32)

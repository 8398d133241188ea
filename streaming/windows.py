"""The session's sound on an absolute sample clock, and the window of it that each block needs.

Sample 0 is the start of the stream; block n is samples [n * block, (n + 1) * block). Sound is written where it belongs,
holes are silence, and once a window has closed, what it covered is frozen: later arrivals for it are dropped and
counted, so that lips, which follow the window, and sound, which is played from here, always agree.

A window is gated: zeros where nobody speaks, with short fades, so that noise keeps the mouth shut. The gate knows only
what the window's own samples could tell. Both rules together make windows independent of chunking and timing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from model.interface import WindowSpec
from streaming.config import VadConfig, WindowConfig
from streaming.judge import FRAME_SAMPLES, Judge
from streaming.vad import Edge, Vad


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one block hears."""

    block: int
    """Block of the sample clock."""
    samples: np.ndarray
    """[n] float32: gated sound from `left_samples` before the block to `lookahead_samples` after it, or as far as the
    future is known, `window.most_samples` at most."""
    has_speech: bool
    """Whether the gate is open anywhere in the block itself."""


@dataclass(frozen=True, slots=True)
class Speech:
    """A stretch in which the gate is open."""

    start: int
    known_at: int
    """Sample up to which one had to hear to know of it."""
    end: int | None = None
    """None while it lasts; the end is known when it is reached."""


class SampleRing:
    """The newest `capacity` samples of an endless mono stream, addressed by absolute index.

    Args:
        capacity: samples kept behind the newest one.
    """

    def __init__(self, capacity: int) -> None:
        self.end = 0
        self._samples = np.zeros(capacity, np.float32)

    def append(self, samples: np.ndarray) -> None:
        """Write at `end`."""
        kept = samples[-len(self._samples) :]
        self.end += len(samples)
        self._put(self.end - len(kept), kept)

    def extend(self, end: int) -> None:
        """Fill up to `end` with silence."""
        silent = min(end - self.end, len(self._samples))
        if silent > 0:
            self._put(end - silent, np.zeros(silent, np.float32))
        self.end = max(self.end, end)

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Samples [lo, hi) as a new array; zeros for what is not there yet or no longer."""
        out = np.zeros(hi - lo, np.float32)
        first, last = max(lo, self.end - len(self._samples), 0), min(hi, self.end)
        for at, index, length in self._runs(first, last):
            out[at - lo : at - lo + length] = self._samples[index : index + length]
        return out

    def retract(self, end: int) -> None:
        """Forget what was written from `end` on."""
        self.end = min(self.end, end)

    def silence(self, lo: int, hi: int, fade: int) -> None:
        """Silence [lo, hi), sliding down over the first `fade` samples."""
        sound = self.read(lo, hi)
        fade = min(fade, len(sound))
        sound[:fade] *= np.linspace(1, 0, fade, endpoint=False, dtype=np.float32)
        sound[fade:] = 0
        first = max(lo, self.end - len(self._samples), 0)
        self._put(first, sound[first - lo : max(0, min(hi, self.end) - lo)])

    def _put(self, start: int, samples: np.ndarray) -> None:
        for at, index, length in self._runs(start, start + len(samples)):
            self._samples[index : index + length] = samples[at - start : at - start + length]

    def _runs(self, lo: int, hi: int) -> list[tuple[int, int, int]]:
        """[lo, hi) as (absolute start, buffer index, length), at most two of them."""
        if lo >= hi:
            return []
        index = lo % len(self._samples)
        head = min(hi - lo, len(self._samples) - index)
        runs = [(lo, index, head)]
        if head < hi - lo:
            runs.append((lo + head, 0, hi - lo - head))
        return runs


class Windows:
    """Sound in, windows out.

    Args:
        window: what a block needs.
        config: clock settings.
        vad: speech settings.
        judge: gives the verdict on one frame of 20 ms.
    """

    def __init__(self, window: WindowSpec, config: WindowConfig, vad: VadConfig, judge: Judge) -> None:
        self.frozen = 0
        """Samples before this are decided for good."""
        self.late_samples = 0
        """Dropped because their window had closed."""
        self.repeated_samples = 0
        """Dropped because the place was taken."""
        self._window = window
        self._fade = config.fade_ms * SAMPLE_RATE_HZ // 1000
        self._vad = Vad(vad, judge)
        self._speech: list[Speech] = []
        self._capacity = max(math.ceil(config.history_s * SAMPLE_RATE_HZ), 2 * window.samples)
        self._ring = SampleRing(self._capacity)

    @property
    def written(self) -> int:
        """End of the newest sound."""
        return self._ring.end

    @property
    def is_speech(self) -> bool:
        """Whether speech is open at the newest sound."""
        return self._vad.is_speech

    def start(self, block: int) -> int:
        """First sample of `block` itself."""
        return block * self._window.block_samples

    def window_end(self, block: int) -> int:
        """First sample that the window of `block` does not cover."""
        return (block + 1) * self._window.block_samples + self._window.lookahead_samples

    def most_end(self, block: int) -> int:
        """First sample that the window of `block` does not cover even where all is known."""
        return self.start(block) - self._window.left_samples + self._window.most_samples

    def write(self, start: int, samples: np.ndarray) -> list[Edge]:
        """Put sound in its place.

        Args:
            start: its first sample; anything before `frozen` or `written` is dropped and counted.
            samples: [n] float32; at most half the history ahead of `frozen`.

        Returns:
            The edges of speech that are known now, in order.
        """
        late = min(max(0, self.frozen - start), len(samples))
        repeated = min(max(0, self.written - start), len(samples)) - late
        self.late_samples += late
        self.repeated_samples += max(0, repeated)
        skipped = late + max(0, repeated)
        room = self.frozen + self._capacity // 2 - (start + skipped)
        samples, start = samples[skipped : max(skipped, skipped + room)], start + skipped
        if len(samples):
            self._ring.extend(start)
            self._ring.append(samples)
        return self._listen()

    def close(self, block: int, known: int = 0) -> tuple[Window, list[Edge]]:
        """Freeze what block `block` hears. Blocks are closed in rising order.

        Args:
            block: index.
            known: sample up to which it is known already what will be heard, if that is beyond the window's end; this
                is not frozen, and shown to the model all the same.

        Returns:
            The window, and the edges of speech that closing it made known.
        """
        hi = self.window_end(block)
        assert hi > self.frozen, f"block {block} was closed before"
        self.frozen = hi
        self._ring.extend(hi)
        edges = self._listen()
        self._forget()
        return self.window(block, known), edges

    def window(self, block: int, known: int = 0) -> Window:
        """The window of a closed block, as it sounds now: later silencing shows, later speech does not."""
        left = self._window.left_samples
        lo = self.start(block) - left
        hi = max(self.window_end(block), min(known, self.most_end(block)))
        gain = self._gain(lo, hi)
        return Window(
            block=block,
            samples=self._ring.read(lo, hi) * gain,
            has_speech=bool(gain[left : left + self._window.block_samples].any()),
        )

    def read(self, lo: int, hi: int) -> np.ndarray:
        """The sound itself, not gated: samples [lo, hi), float32."""
        return self._ring.read(lo, hi)

    def silence(self, lo: int, hi: int) -> None:
        """Make [lo, hi) silent, for an interrupt; the cut slides down over the fade."""
        self._ring.silence(lo, hi, self._fade)
        kept: list[Speech] = []
        for speech in self._speech:
            if speech.start < lo:
                kept.append(replace(speech, end=min(lo, math.inf if speech.end is None else speech.end)))
            if speech.end is None or speech.end > hi:
                start = max(speech.start, hi)
                kept.append(replace(speech, start=start, known_at=max(speech.known_at, start)))
        self._speech = kept

    def retract(self) -> None:
        """Forget sound that was laid beyond what is frozen: it will not be heard."""
        end = self.frozen
        self._ring.retract(end)
        position = -(-end // FRAME_SAMPLES) * FRAME_SAMPLES
        if self._vad.position > position:
            self._note(self._vad.skip_to(position))
        self._speech = [
            replace(speech, end=None if speech.end is None else min(speech.end, end))
            for speech in self._speech
            if speech.start < end
        ]

    def skip_to(self, block: int) -> list[Edge]:
        """Go on at `block`; what lies between is silence that nobody heard."""
        start = block * self._window.block_samples
        self.frozen = max(self.frozen, start)
        self._ring.extend(self.frozen)
        position = -(-self.frozen // FRAME_SAMPLES) * FRAME_SAMPLES
        return self._note(self._vad.skip_to(position)) if self._vad.position < position else []

    def _listen(self) -> list[Edge]:
        edges = []
        while self._vad.position + FRAME_SAMPLES <= self.written:
            at = self._vad.position
            edges += self._note(self._vad.step(self._ring.read(at, at + FRAME_SAMPLES)))
        return edges

    def _note(self, edge: Edge | None) -> list[Edge]:
        if edge is None:
            return []
        if edge.kind == "started":
            self._speech.append(Speech(start=edge.at, known_at=edge.known_at))
        elif self._speech and self._speech[-1].end is None:
            self._speech[-1] = replace(self._speech[-1], end=edge.at)
        return [edge]

    def _gain(self, lo: int, hi: int) -> np.ndarray:
        """The gate over [lo, hi), 0..1, from what was known at `hi`."""
        gain = np.zeros(hi - lo, np.float32)
        ramp = np.arange(1, self._fade + 1, dtype=np.float32) / (self._fade + 1)
        for speech in self._speech:
            if speech.known_at > hi:
                continue
            end = hi if speech.end is None or speech.end > hi else speech.end
            _raise(gain, speech.start - lo, ramp)
            _raise(gain, speech.start + self._fade - lo, np.ones(max(0, end - speech.start - self._fade), np.float32))
            _raise(gain, end - lo, ramp[::-1])
        return gain

    def _forget(self) -> None:
        oldest = self.frozen - self._capacity
        while self._speech and self._speech[0].end is not None and self._speech[0].end < oldest:
            self._speech.pop(0)


def _raise(gain: np.ndarray, at: int, values: np.ndarray) -> None:
    """Lift `gain` to at least `values` from index `at` on, clipped to its ends."""
    first, last = max(0, at), min(len(gain), at + len(values))
    if first < last:
        np.maximum(gain[first:last], values[first - at : last - at], out=gain[first:last])

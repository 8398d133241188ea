"""Sound in any form to 16 kHz mono float32, and back out as 48 kHz s16 pieces.

Inwards a stateful resampler (FFmpeg's, through PyAV) follows the source's rate and layout wherever they change.
Outwards no state is kept at all: the sound to play is known well ahead, so each output sample is computed from the
samples on both sides of it, and offsets stay exact across jumps, interrupts and skipped pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import av
import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.errors import AudioFormatError

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 96_000
OUT_RATE_HZ = 48_000
UPSAMPLING = OUT_RATE_HZ // SAMPLE_RATE_HZ
TAPS_EACH_SIDE = 24
"""Input samples on each side of an output sample; a passband of 7.2 kHz with aliases 70 dB down."""


def check_rate(rate_hz: int) -> None:
    """Refuse rates that no speech source has.

    Raises:
        AudioFormatError: `unsupported_rate`.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        text = f"the sample rate is {rate_hz} Hz; send {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, best 16000, 24000 or 48000"
        raise AudioFormatError(text, code="unsupported_rate")


class SpeechResampler:
    """One source's sound as 16 kHz mono float32 in -1..1.

    The output lags the input by about a millisecond, the resampler's filter; `flush` brings the rest. Sample i of the
    output always belongs to second i / 16000 of the input, whatever the chunking.

    Args:
        any_rate: files may have rates that no live source has.
    """

    def __init__(self, *, any_rate: bool = False) -> None:
        self._any_rate = any_rate
        self._form: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def push(self, frame: av.AudioFrame) -> np.ndarray:
        """Convert one frame.

        Args:
            frame: any sample format, channel layout and rate; they may change from frame to frame, and whatever the
                old form still held then comes out first.

        Returns:
            [n] float32; n may be 0.

        Raises:
            AudioFormatError: the rate is outside MIN_RATE_HZ..MAX_RATE_HZ (unless `any_rate`), or FFmpeg does not know
                the layout.
        """
        if not self._any_rate:
            check_rate(frame.sample_rate)
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        parts = []
        try:
            if form != self._form:
                parts.append(self.flush())
                self._resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=SAMPLE_RATE_HZ)
                self._form = form
            parts.append(self._convert(frame))
        except (av.FFmpegError, ValueError) as error:
            self._form = self._resampler = None
            raise AudioFormatError(f"audio of form {form[0]}, {form[1]} cannot be converted; send s16 mono") from error
        return np.concatenate(parts)

    def push_pcm(self, pcm: np.ndarray, rate_hz: int) -> np.ndarray:
        """Convert raw mono PCM.

        Args:
            pcm: [n] int16, or float32 in -1..1.
            rate_hz: its sample rate.

        Returns:
            As `push`.

        Raises:
            AudioFormatError: as `push`.
        """
        check_rate(rate_hz)
        if len(pcm) == 0:
            return np.zeros(0, np.float32)
        kind = "s16" if pcm.dtype == np.int16 else "flt"
        samples = pcm if kind == "s16" else pcm.astype(np.float32, copy=False)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format=kind, layout="mono")
        frame.sample_rate = rate_hz
        return self.push(frame)

    def flush(self) -> np.ndarray:
        """Bring out what the filter still holds and forget the source.

        Returns:
            [n] float32.
        """
        if self._resampler is None:
            return np.zeros(0, np.float32)
        rest = self._convert(None)
        self._form = self._resampler = None
        return rest

    def _convert(self, frame: av.AudioFrame | None) -> np.ndarray:
        assert self._resampler is not None
        pts = frame.pts if frame is not None else None
        if frame is not None:
            frame.pts = None  # timestamps are `timeline`'s business; here they could only disturb
        try:
            converted = [out for out in self._resampler.resample(frame) if out is not None and out.samples]
        finally:
            if frame is not None:
                frame.pts = pts
        # Averaged here because FFmpeg mixes stereo to float with a gain of 1.41.
        parts = [out.to_ndarray().mean(axis=0, dtype=np.float32) for out in converted]
        if not parts:
            return np.zeros(0, np.float32)
        return np.clip(np.nan_to_num(np.concatenate(parts), posinf=0, neginf=0), -1, 1)


def _polyphase() -> np.ndarray:
    """Kaiser-windowed sinc as [2 * TAPS_EACH_SIDE + 1, UPSAMPLING]; phase p interpolates at p / UPSAMPLING."""
    taps = np.arange(-TAPS_EACH_SIDE, TAPS_EACH_SIDE + 1)
    phases = np.arange(UPSAMPLING) / UPSAMPLING
    distance = taps[:, None] - phases[None, :]
    edge = np.clip(distance / (TAPS_EACH_SIDE + 1), -1, 1)
    cutoff = 0.955  # of the input's Nyquist rate
    filters = cutoff * np.sinc(cutoff * distance) * np.i0(7.0 * np.sqrt(1 - edge**2)) / np.i0(7.0)
    return (filters / filters.sum(axis=0)).astype(np.float32)


_FILTERS = _polyphase()


def play_out(read: Callable[[int, int], np.ndarray], start: int, num_samples: int) -> np.ndarray:
    """Sound of the sample clock as 48 kHz s16.

    Args:
        read: samples [lo, hi) of the clock as float32, zeros where there are none.
        start: first sample, 16 kHz.
        num_samples: how many, 16 kHz.

    Returns:
        [num_samples * 3] int16; element 3 i stands exactly on sample start + i.
    """
    around = read(start - TAPS_EACH_SIDE, start + num_samples + TAPS_EACH_SIDE)
    if not around.any():
        return np.zeros(num_samples * UPSAMPLING, np.int16)
    windows = np.lib.stride_tricks.sliding_window_view(around, 2 * TAPS_EACH_SIDE + 1)
    raised = (windows @ _FILTERS).reshape(-1)
    return np.clip(np.rint(raised * 32767), -32768, 32767).astype(np.int16)

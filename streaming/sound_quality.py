"""What a sound file is like as a voice: rate, channels, level, background, clipping, leading silence.

Measured on 20 ms frames of the sound as the model hears it; clipping on the samples as they are stored. At most the
first `MEASURED_S` are read, so memory and time are bounded however long the file is.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.errors import MediaFileError
from streaming.film import read_sound, sound_length_s
from streaming.resample import SpeechResampler

MEASURED_S = 600.0
FRAME_SAMPLES = SAMPLE_RATE_HZ // 50
FULL_SCALE = 0.999
"""A sample of at least this size, beside another such, is clipped."""
FLOOR_DBFS = -100.0
ACTIVE_DB = 15.0
"""Frames that are at most this much below the loudest (their 95th percentile) carry the voice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundQuality:
    """Figures of one file."""

    rate_hz: int
    channels: int
    length_s: float
    """As the file states it, else as far as was read."""
    level_dbfs: float
    """Mean power of the frames that carry the voice."""
    snr_db: float
    """That level over the background: the quietest twentieth of all frames."""
    clipped_percent: float
    """Of all samples."""
    leading_silence_s: float
    """Until the voice begins."""


def measure_sound(path: Path) -> SoundQuality:
    """Measure a file.

    Raises:
        MediaFileError: it cannot be read or holds no sound.
    """
    resampler = SpeechResampler(any_rate=True)
    levels, waiting = array("f"), np.zeros(0, np.float32)
    samples = clipped = 0
    read_s, rate_hz, channels = 0.0, 0, 0
    for frame in read_sound(path):
        rate_hz, channels = rate_hz or frame.sample_rate, channels or frame.layout.nb_channels
        samples += frame.samples * frame.layout.nb_channels
        clipped += _clipped(frame)
        waiting = np.concatenate([waiting, resampler.push(frame)])
        whole = len(waiting) // FRAME_SAMPLES
        levels.extend(_levels_dbfs(waiting[: whole * FRAME_SAMPLES]))
        waiting = waiting[whole * FRAME_SAMPLES :]
        read_s += frame.samples / frame.sample_rate
        if read_s >= MEASURED_S:
            break
    if not samples:
        raise MediaFileError(f"{path.name} holds no sound; give another file")
    level_dbfs, snr_db, start_s = _judge(np.asarray(levels, np.float64))
    return SoundQuality(
        rate_hz=rate_hz,
        channels=channels,
        length_s=sound_length_s(path) or read_s,
        level_dbfs=level_dbfs,
        snr_db=snr_db,
        clipped_percent=100 * clipped / samples,
        leading_silence_s=start_s,
    )


def _judge(levels: np.ndarray) -> tuple[float, float, float]:
    """Level, signal to noise and start of the voice, from the levels of all frames [n] dBFS."""
    if not len(levels) or (top := float(np.percentile(levels, 95))) <= FLOOR_DBFS:
        return FLOOR_DBFS, 0.0, len(levels) / 50
    active = levels >= top - ACTIVE_DB
    level = 10 * np.log10(np.mean(10 ** (levels[active] / 10)))
    background = float(np.percentile(levels, 5))
    return float(level), float(level - background), float(np.flatnonzero(active)[0]) / 50


def _levels_dbfs(sound: np.ndarray) -> np.ndarray:
    power = np.square(sound.reshape(-1, FRAME_SAMPLES), dtype=np.float64).mean(1)
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))


def _clipped(frame: av.AudioFrame) -> int:
    """Samples at full scale that have such a neighbour in their channel."""
    sound = frame.to_ndarray()
    if not frame.format.is_planar:
        sound = sound.reshape(-1, frame.layout.nb_channels).T
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float32) - 128) / 127
    elif sound.dtype.kind == "i":
        sound = sound / np.float32(np.iinfo(sound.dtype).max)
    at_top = np.abs(sound) >= FULL_SCALE
    run = at_top[:, 1:] & at_top[:, :-1]
    is_clipped = np.zeros_like(at_top)
    is_clipped[:, 1:] |= run
    is_clipped[:, :-1] |= run
    return int(is_clipped.sum())

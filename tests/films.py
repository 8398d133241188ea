"""Readings of a finished film: is its sound the source's, its pictures on their grid, are its lips in step?

The sound track is laid over the source by cross-correlation, which is exact to a sample and shows any offset or drift
of the file's sound. Picture k must have pts k / fps. And the generated lips are compared with the sound that plays
(`tests/e2e/lipsync.py`: learned on one half, tested on the other). The last one holds the model's own lag too; it can
be read to a few milliseconds on the mean of a minute, and says nothing about a single syllable.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

from tests.e2e.lipsync import measure
from tests.e2e.serving import speech_wav

ROOT = Path(__file__).parents[1]
RATE_HZ = 48_000
FPS = 25
MOUTH = (slice(136, 200, 4), slice(84, 172, 4))
"""Rows and columns of the lower face in the gallery's portraits at 256x256, every fourth pixel."""


def make(folder: Path, seconds: float, *options: str) -> tuple[Path, Path, float]:
    """A film of recorded speech by the command.

    Returns:
        Source, film, and the most memory that the command had resident, in MB.
    """
    audio, film = speech_wav(folder / f"{seconds}.wav", repeat_to_s=seconds), folder / f"{seconds}.mp4"
    portrait = ROOT / "client_demo" / "gallery" / "sofia.png"
    command = [sys.executable, "-m", "server.cli", "generate", "--image", str(portrait), "--audio", str(audio)]
    process = subprocess.Popen([*command, "--out", str(film), *options], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return audio, film, usage.ru_maxrss / 1000


def lengths_s(film: Path) -> tuple[int, float, float]:
    """Pictures, and how long pictures and sound last."""
    with av.open(str(film)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        return video.frames, *(float(stream.duration * stream.time_base) for stream in (video, sound))


def sound_of(path: Path, start_s: float, length_s: float) -> np.ndarray:
    """A piece of a file's sound by the file's own timestamps, mono at 48 kHz."""
    out = np.zeros(int(length_s * RATE_HZ), np.float32)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
        container.seek(int(max(0.0, start_s - 1) * av.time_base))
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()[0]
                at = round((float(piece.time) - start_s) * RATE_HZ)
                lo, hi = max(0, at), min(len(out), at + len(samples))
                if lo < hi:
                    out[lo:hi] = samples[lo - at : hi - at]
            if frame.time > start_s + length_s + 0.1:
                break
    return out


def sound_offset_ms(source: Path, film: Path, start_s: float) -> float:
    """How much later the film's sound is than the source's, over 10 s."""
    a, b = sound_of(source, start_s, 10), sound_of(film, start_s, 10)
    n = 1 << (2 * len(a) - 1).bit_length()
    curve = np.fft.irfft(np.fft.rfft(b, n) * np.conj(np.fft.rfft(a, n)), n)
    lag = int(np.argmax(curve))
    assert curve[lag] > 0.9 * np.linalg.norm(a) * np.linalg.norm(b), "the film's sound is the source's"
    return 1000 * (lag - n if lag > n // 2 else lag) / RATE_HZ


def lips(film: Path, start_s: float, length_s: float = 55.0) -> tuple[float, float]:
    """Lag of the lips behind the film's own sound in ms, and how well they follow it."""
    sound = sound_of(film, start_s, length_s)
    crops = []
    with av.open(str(film)) as container:
        container.seek(int(max(0.0, start_s - 3) * av.time_base))
        for frame in container.decode(video=0):
            assert abs(frame.time * FPS - round(frame.time * FPS)) < 1e-3, "pictures stand on the grid of 25 a second"
            if start_s <= frame.time + 1e-6 < start_s + length_s:
                crops.append(frame.to_ndarray(format="gray")[MOUTH].ravel())
            if frame.time >= start_s + length_s:
                break
    step = RATE_HZ // FPS
    centres = (np.arange(len(crops)) * step + step // 2)[:, None] + np.arange(-step // 2, step // 2)
    rms = np.sqrt(np.square(sound[np.clip(centres, 0, len(sound) - 1)]).mean(1))
    found = measure(np.array(crops), rms, fps=FPS)
    return found.lag_ms, found.correlation

"""One and ten minutes of film by `avatarcast generate` and the shipped checkpoint: in step to the end, flat in memory.

Three readings of the finished files. The sound track is laid over the source by cross-correlation at its beginning and
end: that is exact to a sample and shows any offset or drift of the file's sound. Picture k must have pts k / fps. And
the generated lips are compared with the sound that plays (`tests/e2e/lipsync.py`: learned on one half, tested on the
other), in the first and in the last minute. The last one holds the model's own lag too; it can be read to a few
milliseconds on the mean of a minute, and says nothing about a single syllable.

`AVATARCAST_SOAK_FILM_S` changes the longer film's length.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.e2e.lipsync import measure
from tests.e2e.serving import speech_wav

ROOT = Path(__file__).parents[2]
SHORT_S, LONG_S = 60, int(os.environ.get("AVATARCAST_SOAK_FILM_S", "600"))
RATE_HZ = 48_000
MOUTH = (slice(136, 200, 4), slice(84, 172, 4))
"""Rows and columns of the lower face in the gallery's portraits at 256x256, every fourth pixel."""
pytestmark = [pytest.mark.soak, pytest.mark.timeout(LONG_S * 3 + 300)]


def make(folder: Path, seconds: int) -> tuple[Path, Path, float]:
    """Source, film, and the most memory that the command had resident, in MB."""
    audio, film = speech_wav(folder / f"{seconds}.wav", repeat_to_s=seconds), folder / f"{seconds}.mp4"
    portrait = ROOT / "client_demo" / "gallery" / "sofia.png"
    command = [sys.executable, "-m", "server.cli", "generate", "--image", str(portrait), "--audio", str(audio)]
    process = subprocess.Popen([*command, "--out", str(film)], cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return audio, film, usage.ru_maxrss / 1000


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
            assert abs(frame.time * 25 - round(frame.time * 25)) < 1e-3, "pictures stand on the grid of 25 a second"
            if start_s <= frame.time + 1e-6 < start_s + length_s:
                crops.append(frame.to_ndarray(format="gray")[MOUTH].ravel())
            if frame.time >= start_s + length_s:
                break
    step = RATE_HZ // 25
    centres = (np.arange(len(crops)) * step + step // 2)[:, None] + np.arange(-step // 2, step // 2)
    rms = np.sqrt(np.square(sound[np.clip(centres, 0, len(sound) - 1)]).mean(1))
    found = measure(np.array(crops), rms, fps=25)
    return found.lag_ms, found.correlation


def test_long_films_stay_in_step_and_flat_in_memory(tmp_path: Path) -> None:
    _, _, short_mb = make(tmp_path, SHORT_S)
    source, film, long_mb = make(tmp_path, LONG_S)
    with av.open(str(film)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        ends = [float(stream.duration * stream.time_base) for stream in (video, sound)]
        assert video.frames == LONG_S * 25 and abs(ends[0] - LONG_S) < 0.001 and abs(ends[1] - LONG_S) < 0.03
    track = [sound_offset_ms(source, film, at) for at in (0, LONG_S / 2, LONG_S - 12)]
    mouth = [lips(film, at) for at in (2, LONG_S - 58)]
    print(
        f"memory {short_mb:.0f} MB for {SHORT_S} s, {long_mb:.0f} MB for {LONG_S} s; sound track against its source "
        f"{[round(ms, 2) for ms in track]} ms; lips behind the sound, first and last minute "
        f"{[(round(ms, 1), round(r, 3)) for ms, r in mouth]} (ms, correlation)"
    )
    assert long_mb - short_mb < 20
    assert all(abs(ms) <= 1 for ms in track)
    assert all(abs(ms) <= 20 and r >= 0.5 for ms, r in mouth)

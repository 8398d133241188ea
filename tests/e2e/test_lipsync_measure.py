"""The lip sync measure itself: it finds lips that follow, and nothing else passes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.e2e import lipsync

FPS = 25.0
N = 1500
SIDE = 24


def speech(seed: int) -> np.ndarray:
    """[N] RMS of something like speech: syllables at 4 to 5 Hz in phrases of a few seconds with pauses."""
    rng = np.random.default_rng(seed)
    level = np.zeros(N)
    at = 0
    while at < N:
        for _ in range(rng.integers(6, 20)):
            length = rng.integers(4, 8)
            level[at : at + length] = (
                rng.uniform(0.3, 1.0) * np.hanning(length + 2)[1:-1][: len(level[at : at + length])]
            )
            at += length
        at += rng.integers(10, 40)
    return 0.15 * level + 1e-4


def face(opening: np.ndarray, seed: int) -> np.ndarray:
    """[N, d] grey pictures of a dark mouth that opens by `opening`, under head motion, lighting and coding noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    sway = 1.5 * np.sin(np.arange(N) / 37 + seed), 1.5 * np.sin(np.arange(N) / 23)
    pictures = np.empty((N, SIDE * SIDE))
    for k in range(N):
        y, x = SIDE / 2 + sway[0][k], SIDE / 2 + sway[1][k]
        inside = ((rows - y) / (0.8 + 6 * opening[k])) ** 2 + ((columns - x) / 7) ** 2 < 1
        skin = 150 + 20 * (columns - x) / SIDE + 6 * np.sin(k / 90)
        pictures[k] = np.where(inside, 50, skin).ravel()
    return pictures + rng.normal(0, 3, pictures.shape)


def test_lips_that_follow_are_found() -> None:
    rms = speech(1)
    result = lipsync.measure(face(lipsync.loudness(rms), 2), rms, fps=FPS)
    assert result.correlation > 0.85
    assert result.shifted < 0.25
    assert abs(result.lag_ms) < 20
    assert min(result.halves) > 0.8


@pytest.mark.parametrize("frames", [-3, 3])
def test_the_lag_is_measured_with_its_sign(frames: int) -> None:
    rms = speech(3)
    late = np.roll(lipsync.loudness(rms), frames)
    assert lipsync.measure(face(late, 4), rms, fps=FPS).lag_ms == pytest.approx(40 * frames, abs=25)


def test_lips_of_other_sentences_fail() -> None:
    """Unrelated speech agrees a little by chance over one minute, for better or worse; never enough to pass."""
    found = [lipsync.measure(face(lipsync.loudness(speech(100 + s)), s), speech(s), fps=FPS) for s in range(12)]
    assert max(result.correlation for result in found) < 0.4
    assert abs(np.mean([result.correlation for result in found])) < 0.15


def test_noise_and_head_motion_fail() -> None:
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(128, 20, (N, SIDE * SIDE))
        still = face(np.full(N, 0.1), seed)  # sways, never opens
        assert lipsync.measure(noise, speech(seed), fps=FPS).correlation < 0.2
        assert lipsync.measure(still, speech(seed), fps=FPS).correlation < 0.4


def test_a_frozen_picture_fails() -> None:
    assert lipsync.measure(np.full((N, SIDE * SIDE), 77.0), speech(5), fps=FPS).correlation == 0.0


def test_silence_is_refused_not_judged() -> None:
    with pytest.raises(ValueError, match="hardly varies"):
        lipsync.measure(face(np.zeros(N), 6), np.full(N, 1e-4), fps=FPS)


def test_a_short_recording_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 500"):
        lipsync.measure(np.zeros((100, 4)), np.zeros(100), fps=FPS)

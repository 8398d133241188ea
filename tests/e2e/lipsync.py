"""Do the lips in a received picture follow the received sound? Measured from pixels and loudness alone.

Nothing here knows what a mouth looks like: not the stand-in's drawn one, not a generated one. From the first half of a
recording it learns which change of the mouth region goes with loudness (ridge regression on the region's strongest
principal components), and on the second half it tests whether that same change still follows the sound; then the
other way round. What is learned by chance on one half says nothing on the other, so noise, a still picture or motion
of its own cannot pass.

Letters: n pictures, d pixels of the region, k components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COMPONENTS = 12
RIDGE = 3.0
"""Weight of the penalty, in units of a component's own variance over the number of pictures / 100."""
SMOOTH_FRAMES = 5
"""Moving average over both signals: 0.2 s at 25 fps, about a syllable."""
GUARD_FRAMES = 25
"""Left out between the halves, so that smoothing shares nothing between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LipSync:
    """How well picture and sound belong together."""

    correlation: float
    """Of held-out opening and loudness at the same moment."""
    shifted: float
    """The same with the sound of `shift_s` away: the larger of earlier and later."""
    lag_ms: float
    """Where the correlation peaks: positive when the lips come after the sound."""
    halves: tuple[float, float]
    """Correlation on each half, learned on the other."""


def loudness(rms: np.ndarray) -> np.ndarray:
    """Loudness on a decibel scale, 0 at -46 dBFS and below, 1 at -12 dBFS.

    Args:
        rms: [n] float, root mean square of the sound around each picture, full scale 1.

    Returns:
        [n] float64 in 0..1.
    """
    return np.clip((20 * np.log10(np.asarray(rms, np.float64) + 1e-9) + 46) / 34, 0, 1)


def opening(crops: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mouth opening as each half shows it to the knowledge of the other.

    Args:
        crops: [n, d] float, the mouth region of every picture, grey.
        sound: [n] float, loudness of the same moments.

    Returns:
        [n] float64 opening in units of loudness, NaN in the guard between the halves; [n] int half, 0 or 1.
    """
    n = len(crops)
    half = (np.arange(n) >= n // 2).astype(int)
    result = np.full(n, np.nan)
    for test in (0, 1):
        direction, offset = _learn(crops[half != test], sound[half != test])
        result[half == test] = crops[half == test] @ direction + offset
    result[n // 2 - GUARD_FRAMES // 2 : n // 2 + GUARD_FRAMES // 2] = np.nan
    return result, half


def measure(crops: np.ndarray, rms: np.ndarray, *, fps: float, shift_s: float = 3.0) -> LipSync:
    """Measure one recording.

    Args:
        crops: [n, d] numbers, the mouth region of n pictures in order.
        rms: [n] sound around the moment each was presented.
        fps: pictures a second.
        shift_s: how far the wrong sound is taken from.

    Raises:
        ValueError: fewer than 20 s, or the sound has no variation to follow.
    """
    if len(crops) < 20 * fps:
        raise ValueError(f"the recording has {len(crops)} pictures; at least {20 * fps:.0f} are needed")
    sound = smooth(loudness(rms))
    if sound.std() < 0.05:
        raise ValueError(f"the sound hardly varies (standard deviation {sound.std():.3f}); nothing can follow it")
    pixels = smooth(np.asarray(crops, np.float64))
    opened, half = opening(pixels, sound)
    shift = round(shift_s * fps)
    lags = range(-round(0.4 * fps), round(0.4 * fps) + 1)
    curve = np.array([correlate(opened, np.roll(sound, lag), half) for lag in lags])
    return LipSync(
        correlation=correlate(opened, sound, half),
        shifted=max(correlate(opened, np.roll(sound, shift), half), correlate(opened, np.roll(sound, -shift), half)),
        lag_ms=1000 / fps * (lags[0] + _peak(curve)),
        halves=tuple(correlate(opened[half == h], sound[half == h], half[half == h]) for h in (0, 1)),
    )


def correlate(opened: np.ndarray, sound: np.ndarray, half: np.ndarray) -> float:
    """Pearson's correlation within the halves, averaged; a constant signal counts as 0."""
    values = []
    for h in np.unique(half):
        use = (half == h) & np.isfinite(opened)
        a, b = opened[use] - opened[use].mean(), sound[use] - sound[use].mean()
        size = np.sqrt((a @ a) * (b @ b))
        values.append(float(a @ b / size) if size > 1e-9 else 0.0)
    return float(np.mean(values))


def smooth(signal: np.ndarray) -> np.ndarray:
    """Centred moving average along the first axis; the edges use what there is."""
    padded = np.pad(signal, [(SMOOTH_FRAMES // 2,) * 2] + [(0, 0)] * (signal.ndim - 1), mode="edge")
    total = np.cumsum(np.concatenate([np.zeros_like(padded[:1]), padded]), axis=0)
    return (total[SMOOTH_FRAMES:] - total[:-SMOOTH_FRAMES]) / SMOOTH_FRAMES


def _learn(crops: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction in pixels that best follows the sound: ridge regression on k principal components."""
    mean = crops.mean(0)
    _, scales, axes = np.linalg.svd(crops - mean, full_matrices=False)
    keep = scales[:COMPONENTS] > 1e-6 * max(float(scales[0]), 1e-9)
    scales, axes = scales[:COMPONENTS][keep], axes[:COMPONENTS][keep]
    components = (crops - mean) @ axes.T  # [n, k]
    penalty = RIDGE / 100 * scales**2 + 1e-12
    weights = (components.T @ (sound - sound.mean())) / (scales**2 + penalty)
    direction = axes.T @ weights
    return direction, float(sound.mean() - mean @ direction)


def _peak(curve: np.ndarray) -> float:
    """Index of the maximum, refined by a parabola through its neighbours."""
    i = int(np.argmax(curve))
    if not 0 < i < len(curve) - 1:
        return float(i)
    a, b, c = curve[i - 1 : i + 2]
    return i + (a - c) / (2 * (a - 2 * b + c)) if a - 2 * b + c < 0 else float(i)

"""Head, gaze, blink and breath: the motion that sound does not determine, made by a seeded controller.

The controller writes the model's pose condition, so the transformer does not have to guess (and blur) what no sound
tells it, and idle motion follows the session's posture. Everything is a function of (seed, frame, the window's sound):
no history is kept but the last posture, so a stream may start at any frame and two processes agree.

Letters: B streams, T pictures, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PARAMETERS = ("yaw", "pitch", "roll", "shift_x", "shift_y", "blink", "gaze_x", "gaze_y", "brow", "breath")
SCALE = np.array([0.12, 0.06, 0.045, 0.03, 0.02, 0.5, 0.3, 0.2, 0.2, 1.0], np.float32)
"""What counts as one unit of the condition, by parameter: radians, picture halves, or 0-1 amounts."""
LIMIT = np.array([0.33, 0.18, 0.13, 0.06, 0.05, 1.0, 0.8, 0.5, 0.7, 1.0], np.float32)
"""Largest absolute value of each parameter: the range the checkpoint was trained on."""

_POSTURE = {
    #             yaw   pitch  roll  sx   sy   blink gx    gy    brow  breath
    "idle": (0.00, 0.00, 0.00, 0.0, 0.0, 0.0, 0.00, 0.00, 0.00, 0.0),
    "listening": (0.00, 0.02, 0.03, 0.0, 0.01, 0.0, 0.00, 0.00, 0.10, 0.0),
    "thinking": (0.07, -0.03, -0.03, 0.0, 0.0, 0.0, 0.40, -0.28, 0.12, 0.0),
    "speaking": (0.00, 0.00, 0.00, 0.0, 0.0, 0.0, 0.00, 0.00, 0.04, 0.0),
}
_TALK_FRAMES = 25
_TALK_RMS = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionSizes:
    """How lively the controller is."""

    amplitude: float = 1.0
    """Multiplies head motion; 0 keeps the head still, 1.5 is the most the checkpoint was trained on."""
    fps: int = 25
    """Pictures a second."""

    def __post_init__(self) -> None:
        if not 0 <= self.amplitude <= 1.5:
            raise ValueError(f"amplitude is {self.amplitude}; choose a value from 0 to 1.5")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 to well-spread uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(seed: np.ndarray, channel: int, index: np.ndarray) -> np.ndarray:
    """Uniform 0..1 numbers that depend only on (seed, channel, index); the arguments broadcast."""
    with np.errstate(over="ignore"):
        key = _mix(seed.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(channel + 1))
        bits = _mix(key ^ _mix(index.astype(np.int64).astype(np.uint64) + np.uint64(0x632BE59BD9B4E019)))
    return (bits >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _normal(seed: np.ndarray, channel: int, index: np.ndarray) -> np.ndarray:
    u = np.maximum(_uniform(seed, channel, index), 1e-12)
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * _uniform(seed, channel + 7000, index))


def _walk(seed: np.ndarray, channel: int, t_s: np.ndarray, hz: float) -> np.ndarray:
    """Smooth noise of unit variance and about `hz` bandwidth: a cubic B-spline over hashed knots. [B, T]."""
    x = t_s * (2 * hz)
    k = np.floor(x)
    f = x - k
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    y = sum(w / 6 * _normal(seed, channel, k + i - 1) for i, w in enumerate(weights))
    return y / 0.69


def _blink(seed: np.ndarray, t_s: np.ndarray) -> np.ndarray:
    """Lid closure 0..1: about 16 blinks a minute, 8 % of them double."""
    period_s = 3.4
    slot = np.floor(t_s / period_s)
    lids = np.zeros_like(t_s)
    for offset in (-1, 0):
        k = slot + offset
        at = (k + 0.1 + 0.8 * _uniform(seed, 20, k)) * period_s
        happens = _uniform(seed, 21, k) < 0.92
        hold = 0.04 + 0.04 * _uniform(seed, 22, k)
        for second in (False, True):
            d = t_s - at - (0.34 if second else 0.0)
            shape = np.minimum(np.clip((d + 0.05) / 0.05, 0, 1), np.clip(1 - (d - hold) / 0.13, 0, 1))
            on = happens & (_uniform(seed, 23, k) < 0.08) if second else happens
            lids = np.maximum(lids, np.where(on, shape, 0))
    return lids


def _gaze(seed: np.ndarray, t_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixations of about a second on points near the camera, saccades between two pictures."""
    period_s = 1.3
    slot = np.floor(t_s / period_s)
    start = (slot + 0.75 * _uniform(seed, 30, slot)) * period_s
    k = np.where(t_s >= start, slot, slot - 1)
    k = np.where(_uniform(seed, 31, k) < 0.35, k - 1, k)
    home = _uniform(seed, 32, k) < 0.45
    x, y = 0.26 * _normal(seed, 33, k), 0.13 * _normal(seed, 34, k)
    return np.where(home, 0.0, x), np.where(home, 0.0, y)


def talk_activity(wave: np.ndarray, samples_per_frame: int = 640) -> tuple[np.ndarray, np.ndarray]:
    """How much the last second was speech, and a nod that follows stress; both causal and finite.

    Args:
        wave: [B, n * samples_per_frame] gated speech, -1..1.

    Returns:
        talk [B, n] in 0..1 and nod [B, n], about -1..1; the first `_TALK_FRAMES` values lack context.
    """
    rms = np.sqrt(np.mean(wave.reshape(wave.shape[0], -1, samples_per_frame).astype(np.float64) ** 2, -1))
    padded = np.pad(rms, ((0, 0), (_TALK_FRAMES, 0)))
    spoken = (padded > _TALK_RMS).cumsum(1)
    talk = (spoken[:, _TALK_FRAMES:] - spoken[:, :-_TALK_FRAMES]) / _TALK_FRAMES
    total = padded.cumsum(1)

    def mean(count: int, delay: int) -> np.ndarray:
        """Mean RMS of `count` pictures that end `delay` pictures ago."""
        end = total.shape[1] - delay
        return (total[:, _TALK_FRAMES - delay : end] - total[:, _TALK_FRAMES - delay - count : end - count]) / count

    slow = mean(20, 3)
    nod = np.clip((mean(4, 3) - slow) / np.maximum(slow, 0.02), -1, 1) * talk
    return talk, nod


def pose_tracks(
    seeds: np.ndarray, first_frame: np.ndarray, talk: np.ndarray, nod: np.ndarray, sizes: MotionSizes
) -> np.ndarray:
    """Motion of B streams without posture.

    Args:
        seeds: [B] integers. first_frame: [B] index of the first picture of each stream.
        talk, nod: [B, T] as `talk_activity` gives them.

    Returns:
        [B, T, P] in the units of `PARAMETERS`.
    """
    seed = seeds.reshape(-1, 1)
    t = (first_frame.reshape(-1, 1) + np.arange(talk.shape[1])) / sizes.fps
    amp = sizes.amplitude * (0.5 + 0.5 * talk)
    wave = lambda c, slow, fast: slow * _walk(seed, c, t, 0.3) + fast * _walk(seed, c + 1, t, 1.1)  # noqa: E731
    lean = lambda c, size: size * _walk(seed, c, t, 0.07)  # noqa: E731
    yaw = 0.105 * amp * wave(1, 0.8, 0.3) + lean(3, 0.05)
    gaze_x, gaze_y = _gaze(seed, t)
    tracks = (
        yaw,
        amp * (0.045 * wave(4, 0.8, 0.4) + 0.035 * nod) + lean(6, 0.015),
        0.035 * amp * wave(7, 0.8, 0.3) + lean(9, 0.012),
        0.018 * amp * wave(10, 0.9, 0.2) + lean(12, 0.010),
        0.011 * amp * wave(13, 0.9, 0.2) + lean(15, 0.006),
        _blink(seed, t),
        gaze_x - 0.5 * yaw,
        gaze_y,
        0.11 * _walk(seed, 16, t, 0.4) + 0.10 * talk * _walk(seed, 17, t, 1.2) + 0.12 * nod,
        np.sin(2 * np.pi * (0.25 * t + _uniform(seed, 18, np.zeros_like(t)))),
    )
    return np.clip(np.stack(tracks, -1), -LIMIT, LIMIT).astype(np.float32)


def posture_offset(posture: str) -> np.ndarray:
    """[P] what a posture adds to every parameter."""
    return np.array(_POSTURE[posture], np.float32)


def pose_condition(tracks: np.ndarray, frames_per_latent: int = 4) -> np.ndarray:
    """[B, T, P] to the condition's channels [B, P * frames_per_latent, T / frames_per_latent], in units of SCALE."""
    unit = tracks / SCALE
    unit[..., 5] -= 0.2
    batch, frames, params = unit.shape
    return (
        unit.reshape(batch, frames // frames_per_latent, frames_per_latent, params)
        .transpose(0, 3, 2, 1)
        .reshape(batch, params * frames_per_latent, -1)
    )


class MotionController:
    """One session's motion; posture changes ease over one block."""

    def __init__(
        self, sizes: MotionSizes, seed: int, samples_per_block: int = 7680, frames_per_block: int = 12
    ) -> None:
        self._sizes = sizes
        self._seed = np.array([seed])
        self._frames = frames_per_block
        self._samples_per_frame = samples_per_block // frames_per_block
        self._offset = posture_offset("idle")

    def block(self, block: int, window: np.ndarray, left_samples: int, posture: str = "idle") -> np.ndarray:
        """Pose condition of one block.

        Args:
            block: index on the session's clock.
            window: [samples] the block's gated speech; left_samples of it come before the block.
            posture: one of `model.interface.POSTURES`.

        Returns:
            [channels, latent frames] float32, constant over space.
        """
        end = left_samples + self._frames * self._samples_per_frame
        whole = end - end % self._samples_per_frame
        talk, nod = talk_activity(window[None, end - whole : end], self._samples_per_frame)
        tracks = pose_tracks(
            self._seed,
            np.array([block * self._frames]),
            talk[:, -self._frames :],
            nod[:, -self._frames :],
            self._sizes,
        )
        ease = (np.arange(1, self._frames + 1) / self._frames)[:, None]
        ease = ease * ease * (3 - 2 * ease)
        target = posture_offset(posture)
        tracks = np.clip(tracks + self._offset + (target - self._offset) * ease, -LIMIT, LIMIT)
        self._offset = target
        return pose_condition(tracks)[0].astype(np.float32)

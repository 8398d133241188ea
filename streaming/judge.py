"""Is this frame speech? The verdict on 20 ms, from a detector and three guards against noise.

webrtcvad takes steady noise for speech, above 5 dB for good. So a frame must also stand above an absolute floor and
above the steady background; and sound that is neither periodic nor modulated for a quarter of a second is noise however
loud, as a fan that is switched on. Periodicity is the peak of the autocorrelation after whitening (Boersma 1993 without
the refinements), so tilted noise does not look periodic.

Inference runs on the caller's thread: webrtcvad takes 8 us a frame, silero 60, the guards 30, all less than a
hand-over to another thread.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.config import VadConfig
from streaming.errors import StreamingError

FRAME_MS = 20
FRAME_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000
JUDGED_FRAMES = 12
"""Frames over which sound must show that it is no noise: 240 ms."""
_BAND = slice(200 * FRAME_SAMPLES // SAMPLE_RATE_HZ, 4000 * FRAME_SAMPLES // SAMPLE_RATE_HZ + 1)
_BUCKET_FRAMES = 10  # the background is tracked in buckets of 200 ms
_STEADY_DB = 1.5  # noise of any colour varies by about 0.7 dB from frame to frame, speech by 5
_PERIODIC = 0.4  # noise stays below 0.36 in 999 frames of 1000
_SILERO_SAMPLES = 512
_SILERO_CONTEXT = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one frame."""

    is_voiced: bool
    """Whether it may be speech."""
    is_certain: bool
    """Whether it cannot be steady noise; speech begins only where some frame is certain."""


Judge = Callable[[np.ndarray], Verdict]
"""Takes [FRAME_SAMPLES] float32 in -1..1, each following the one before."""


class Inference(Protocol):
    """Says of one frame whether it holds speech; may remember earlier ones."""

    def __call__(self, frame: np.ndarray) -> bool:
        """
        Args:
            frame: [FRAME_SAMPLES] float32 in -1..1, following the one before.
        """
        ...


def speech_band_power(frame: np.ndarray) -> float:
    """Mean square of the frame's part between 200 and 4000 Hz, where rumble does not reach."""
    spectrum = np.fft.rfft(frame)[_BAND]
    return 2 * float(np.vdot(spectrum, spectrum).real) / len(frame) ** 2


class LevelGate:
    """Passes frames that stand above the floor and above the steady background.

    The background is the minimum of the smoothed level over `noise_window_s`; until that much was heard it counts as
    the floor, so that speech from the first sample on is not taken for background.
    """

    def __init__(self, config: VadConfig) -> None:
        self.level_db = -120.0
        """Level of the last frame in the speech band."""
        self._floor_db = config.level_floor_dbfs
        self._margin_db = config.noise_margin_db
        num_buckets = max(1, round(config.noise_window_s * 1000 / FRAME_MS / _BUCKET_FRAMES))
        self._buckets: deque[float] = deque([self._floor_db] * num_buckets, maxlen=num_buckets)
        self._recent: deque[float] = deque(maxlen=3)
        self._bucket = np.inf
        self._count = 0

    @property
    def background_db(self) -> float:
        """Level of the steady background in dBFS, never below the floor."""
        return max(self._floor_db, min(self._buckets))

    def __call__(self, frame: np.ndarray) -> bool:
        power = speech_band_power(frame) + 1e-12
        self._recent.append(power)
        smooth_db = 10 * np.log10(sum(self._recent) / len(self._recent))
        self._bucket = min(self._bucket, smooth_db)
        self._count += 1
        if self._count == _BUCKET_FRAMES:
            self._buckets.append(self._bucket)
            self._bucket, self._count = np.inf, 0
        self.level_db = 10 * float(np.log10(power))
        background_db = min(self._buckets)
        return self.level_db > self._floor_db and (
            background_db <= self._floor_db or self.level_db > background_db + self._margin_db
        )


class Periodicity:
    """How periodic the last 40 ms are, at pitches of 70 to 400 Hz: 0 to about 1."""

    _LAGS = slice(SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 70)
    _SIZE = 4 * FRAME_SAMPLES
    _SMOOTH = 24  # bins of 12.5 Hz on each side over which the spectrum is flattened

    def __init__(self) -> None:
        self._past = np.zeros(FRAME_SAMPLES, np.float32)
        self._taper = np.hanning(2 * FRAME_SAMPLES + 2)[1:-1].astype(np.float32)
        of_taper = np.fft.irfft(np.abs(np.fft.rfft(self._taper, self._SIZE)) ** 2)[self._LAGS]
        self._share = of_taper / float(np.dot(self._taper, self._taper))
        hz = np.fft.rfftfreq(self._SIZE, 1 / SAMPLE_RATE_HZ)
        self._band = (hz >= 150) & (hz <= 4000)
        index = np.arange(len(hz))
        self._low = np.maximum(index - self._SMOOTH, 0)
        self._high = np.minimum(index + self._SMOOTH + 1, len(hz))

    def __call__(self, frame: np.ndarray) -> float:
        sound = np.concatenate([self._past, frame])
        self._past = frame
        power = np.abs(np.fft.rfft(sound * self._taper, self._SIZE)) ** 2
        total = np.concatenate([[0.0], np.cumsum(power)])
        smooth = (total[self._high] - total[self._low]) / (self._high - self._low)
        white = np.where(self._band, power / (smooth + 1e-9 * power.max() + 1e-12), 0)
        correlation = np.fft.irfft(white)
        return float((correlation[self._LAGS] / self._share).max() / (correlation[0] + 1e-12))


class NoiseJudge:
    """The detector's verdict behind the guards.

    Args:
        config: thresholds.
        inference: the detector.
    """

    def __init__(self, config: VadConfig, inference: Inference) -> None:
        self._inference = inference
        self._level = LevelGate(config)
        self._periodicity = Periodicity()
        self._levels_db: deque[float] = deque(maxlen=JUDGED_FRAMES)
        self._since_periodic = JUDGED_FRAMES
        self._run = 0  # voiced frames in a row

    def __call__(self, frame: np.ndarray) -> Verdict:
        is_loud = self._level(frame)
        is_voiced = self._inference(frame) and is_loud
        self._levels_db.append(self._level.level_db)
        is_periodic = is_loud and self._periodicity(frame) > _PERIODIC
        self._since_periodic = 0 if is_periodic else self._since_periodic + 1
        self._run = self._run + 1 if is_voiced else 0
        is_proven = self._run >= JUDGED_FRAMES
        is_steady = is_proven and float(np.std(self._levels_db)) < _STEADY_DB
        is_noise = is_steady and self._since_periodic >= JUDGED_FRAMES
        return Verdict(is_voiced and not is_noise, is_periodic or (is_proven and not is_steady))


class WebRtcInference:
    """The voice detector of WebRTC: Gaussian mixtures over six bands, with memory."""

    def __init__(self, mode: int) -> None:
        import webrtcvad

        self._vad = webrtcvad.Vad(mode)

    def __call__(self, frame: np.ndarray) -> bool:
        pcm = np.clip(frame * 32767, -32768, 32767).astype(np.int16)
        return bool(self._vad.is_speech(pcm.tobytes(), SAMPLE_RATE_HZ))


class SileroInference:
    """Silero's recurrent network through onnxruntime, on 32 ms at a time; a frame gets the newest verdict.

    The package's own loader would import torch, which this process never does; only its model file is used.
    """

    def __init__(self, threshold: float) -> None:
        try:
            import onnxruntime
        except ImportError:
            onnxruntime = None
        package = importlib.util.find_spec("silero_vad")
        if onnxruntime is None or package is None or package.origin is None:
            text = (
                "vad.kind is silero, which needs its extra: pip install 'avatarcast[silero]', or set vad.kind: webrtc"
            )
            raise StreamingError(text)
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.log_severity_level = 3
        path = Path(package.origin).parent / "data" / "silero_vad.onnx"
        self._network = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._threshold = threshold
        self._rate = np.array(SAMPLE_RATE_HZ, np.int64)
        self._state = np.zeros((2, 1, 128), np.float32)
        self._waiting = np.zeros(_SILERO_CONTEXT, np.float32)  # the context, then samples not judged yet
        self._verdict = False

    def __call__(self, frame: np.ndarray) -> bool:
        self._waiting = np.concatenate([self._waiting, frame])
        whole = _SILERO_CONTEXT + _SILERO_SAMPLES
        while len(self._waiting) >= whole:
            feed = {"input": self._waiting[None, :whole], "state": self._state, "sr": self._rate}
            probability, self._state = self._network.run(None, feed)
            self._verdict = float(probability[0, 0]) >= self._threshold
            self._waiting = self._waiting[_SILERO_SAMPLES:]
        return self._verdict


def make_judge(config: VadConfig) -> Judge:
    """The judge that the settings name.

    Raises:
        StreamingError: silero without its extra.
    """
    inference = SileroInference(config.threshold) if config.kind == "silero" else WebRtcInference(config.mode)
    return NoiseJudge(config, inference)

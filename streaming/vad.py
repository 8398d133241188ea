"""Voice activity: frames of 20 ms to speech segments.

A pure state machine (quiet, starting, speaking, stopping) over an injected inference, so that it is tested without
any model. Two guards stand before the inference: an absolute level floor, and a margin over the steady background,
because webrtcvad sticks "on" in noise of 5 dB and below. A segment without any pause is cut in the end.

Every edge says both where on the sample clock it lies and at which sample it became known; `windows` gates with what
was known when a window closed, so chunking cannot change the result. Inference runs on the caller's thread: webrtcvad
takes 3 us a frame and silero 0.3 ms, less than a hand-over to another thread.
"""

from __future__ import annotations

import enum
import importlib.util
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.config import VadConfig
from streaming.errors import StreamingError

FRAME_MS = 20
FRAME_SAMPLES = SAMPLE_RATE_HZ * FRAME_MS // 1000
_SILERO_SAMPLES = 512
_SILERO_CONTEXT = 64
_BAND = slice(200 * FRAME_SAMPLES // SAMPLE_RATE_HZ, 4000 * FRAME_SAMPLES // SAMPLE_RATE_HZ + 1)
_BUCKET_FRAMES = 10  # the background is tracked in buckets of 200 ms


class Inference(Protocol):
    """Says of one frame whether it holds speech; may remember earlier ones."""

    def __call__(self, frame: np.ndarray) -> bool:
        """
        Args:
            frame: [FRAME_SAMPLES] float32 in -1..1, following the one before.
        """
        ...


class VadState(enum.Enum):
    QUIET = "quiet"
    STARTING = "starting"
    SPEAKING = "speaking"
    STOPPING = "stopping"
    BLOCKED = "blocked"
    """After a cut: waits for a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Speech begins or ends."""

    kind: Literal["started", "stopped"]
    at: int
    """Sample at which the segment begins or ends."""
    known_at: int
    """Sample up to which the audio had to be heard to know it."""


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
        level_db = 10 * np.log10(power)
        background_db = min(self._buckets)
        return level_db > self._floor_db and (
            background_db <= self._floor_db or level_db > background_db + self._margin_db
        )


class Vad:
    """Turns frames into edges.

    Args:
        config: times and guards.
        inference: the verdict on one frame.
        position: sample at which the first frame starts.
    """

    def __init__(self, config: VadConfig, inference: Inference, *, position: int = 0) -> None:
        self.position = position
        self.state = VadState.QUIET
        self._config = config
        self._inference = inference
        self._level = LevelGate(config)
        self._run = 0  # frames in a row that argue for leaving the present state
        self._first = 0  # start of that run
        self._began = 0  # start of the present segment
        self._ended = position  # end of the last segment

    @property
    def is_speech(self) -> bool:
        """Whether a segment is open."""
        return self.state in (VadState.SPEAKING, VadState.STOPPING)

    def step(self, frame: np.ndarray) -> Edge | None:
        """Hear the next frame.

        Args:
            frame: [FRAME_SAMPLES] float32, samples [position, position + FRAME_SAMPLES).

        Returns:
            The edge that this frame decided, if any.
        """
        loud = self._level(frame)
        voiced = self._inference(frame) and loud
        start, self.position = self.position, self.position + FRAME_SAMPLES
        match self.state:
            case VadState.QUIET | VadState.STARTING:
                return self._wait(voiced, start)
            case VadState.SPEAKING | VadState.STOPPING:
                return self._speak(voiced)
            case VadState.BLOCKED:
                self._rearm(voiced)
        return None

    def skip_to(self, position: int) -> Edge | None:
        """Go on at `position`; what lay between was never heard. An open segment ends where hearing ended."""
        edge = self._stop() if self.is_speech else None
        self.position = position
        self._ended = min(self._ended, position)
        self.state, self._run = VadState.QUIET, 0
        return edge

    def _wait(self, voiced: bool, start: int) -> Edge | None:
        if not voiced:
            self.state, self._run = VadState.QUIET, 0
            return None
        if self.state is VadState.QUIET:
            self.state, self._first = VadState.STARTING, start
        self._run += 1
        if self._run * FRAME_MS < self._config.start_ms:
            return None
        self.state, self._run = VadState.SPEAKING, 0
        pre_roll = self._config.pre_roll_ms * SAMPLE_RATE_HZ // 1000
        self._began = max(self._first - pre_roll, self._ended)
        return Edge(kind="started", at=self._began, known_at=self.position)

    def _speak(self, voiced: bool) -> Edge | None:
        if voiced:
            self.state, self._run = VadState.SPEAKING, 0
        else:
            self.state = VadState.STOPPING
            self._run += 1
        if self._run * FRAME_MS >= self._config.hangover_ms:
            self.state, self._run = VadState.QUIET, 0
            return self._stop()
        if self.position - self._began >= self._config.longest_turn_s * SAMPLE_RATE_HZ:
            self.state, self._run = VadState.BLOCKED, 0
            return self._stop()
        return None

    def _rearm(self, voiced: bool) -> None:
        self._run = 0 if voiced else self._run + 1
        if self._run * FRAME_MS >= self._config.rearm_ms:
            self.state, self._run = VadState.QUIET, 0

    def _stop(self) -> Edge:
        self._ended = self.position
        return Edge(kind="stopped", at=self.position, known_at=self.position)


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


def make_inference(config: VadConfig) -> Inference:
    """The inference that the settings name.

    Raises:
        StreamingError: silero without its extra.
    """
    return SileroInference(config.threshold) if config.kind == "silero" else WebRtcInference(config.mode)

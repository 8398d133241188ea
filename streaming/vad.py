"""Voice activity: verdicts on frames of 20 ms to speech segments.

A pure state machine (quiet, starting, speaking, stopping) over an injected judge, so that it is tested without any
model. A segment begins where its first voiced frame did, though no further back than a judge needs to make up its
mind, and a segment without any pause is cut in the end.

Every edge says both where on the sample clock it lies and at which sample it became known; `windows` gates with what
was known when a window closed, so chunking cannot change the result.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.config import VadConfig
from streaming.judge import FRAME_MS, FRAME_SAMPLES, JUDGED_FRAMES, Judge, Verdict


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


class Vad:
    """Turns frames into edges.

    Args:
        config: times and guards.
        judge: gives the verdict on one frame.
        position: sample at which the first frame starts.
    """

    def __init__(self, config: VadConfig, judge: Judge, *, position: int = 0) -> None:
        self.position = position
        self.state = VadState.QUIET
        self._config = config
        self._judge = judge
        self._run = 0  # frames in a row that argue for leaving the present state
        self._is_certain = False  # whether one of them was certain
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
        verdict = self._judge(frame)
        start, self.position = self.position, self.position + FRAME_SAMPLES
        match self.state:
            case VadState.QUIET | VadState.STARTING:
                return self._wait(verdict, start)
            case VadState.SPEAKING | VadState.STOPPING:
                return self._speak(verdict.is_voiced)
            case VadState.BLOCKED:
                self._rearm(verdict.is_voiced)
        return None

    def skip_to(self, position: int) -> Edge | None:
        """Go on at `position`; what lay between was never heard. An open segment ends where hearing ended."""
        edge = self._stop() if self.is_speech else None
        self.position = position
        self._ended = min(self._ended, position)
        self.state, self._run, self._is_certain = VadState.QUIET, 0, False
        return edge

    def _wait(self, verdict: Verdict, start: int) -> Edge | None:
        if not verdict.is_voiced:
            self.state, self._run, self._is_certain = VadState.QUIET, 0, False
            return None
        if self.state is VadState.QUIET:
            self.state, self._first = VadState.STARTING, start
        self._run += 1
        self._is_certain = self._is_certain or verdict.is_certain
        if self._run * FRAME_MS < self._config.start_ms or not self._is_certain:
            return None
        self.state, self._run, self._is_certain = VadState.SPEAKING, 0, False
        pre_roll = self._config.pre_roll_ms * SAMPLE_RATE_HZ // 1000
        earliest = self.position - JUDGED_FRAMES * FRAME_SAMPLES
        self._began = max(self._first - pre_roll, earliest, self._ended)
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

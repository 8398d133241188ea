"""The door between streaming and the model: plain values and one protocol. Numpy only, no torch.

`streaming` builds a `SessionSpec` and one `BlockRequest` per block; the model answers each with a `BlockResult`.
The same protocol is served by `model.generator` (torch) and by `model.fake` (deterministic, for tests).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from model.geometry import Geometry

POSTURES = ("idle", "listening", "thinking", "speaking")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """What audio a block needs: `left` samples before it, the block, `lookahead` samples after it (16 kHz)."""

    left_samples: int
    lookahead_samples: int
    block_samples: int

    @property
    def samples(self) -> int:
        return self.left_samples + self.block_samples + self.lookahead_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model is and needs; sent once when it is ready."""

    name: str
    """Checkpoint name, for example `tiny`."""
    geometry: Geometry
    window: WindowSpec
    profile: dict[str, object]
    """What the start-up timing chose and why: dtype, steps, threads, measured block seconds. Shown by /healthz."""
    block_s: float
    """Seconds one block takes on this machine, measured at start-up (median)."""
    in_domain_psnr_db: float
    """A portrait whose reconstruction is worse than this is outside the checkpoint's domain."""
    interval_s: float = 0.0
    """Seconds between blocks where several are under way at once; 0: one is made after the other."""
    depth: int = 1
    """Blocks that may be under way at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """Everything needed to open, or to re-open after a restart, one session."""

    session: str
    image: np.ndarray
    """Portrait, [height, width, 3] uint8 RGB, any size; the model fits it (cover scale, centre crop)."""
    prompt: str = ""
    seed: int = 0
    first_block: int = 0
    """Block index at which the stream (re)starts; positions and noise continue from it."""
    sound: np.ndarray | None = None
    """For parity with the published pipelines: a whole file, [samples] float32 at 16 kHz. It is levelled and encoded at
    once, as they do, and the blocks' windows steer posture only. None: every block is heard through its window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What opening a session found out."""

    session: str
    portrait: np.ndarray
    """The fitted portrait as the stream shows it, [height, width, 3] uint8 RGB."""
    portrait_psnr_db: float
    """How well the checkpoint can reproduce this portrait."""
    in_domain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
    """A change that takes effect at the first block >= `block`. None leaves a field as it is."""

    session: str
    block: int
    prompt: str | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """One block of work."""

    session: str
    block: int
    """Index on the session's sample clock; samples [block * n, (block + 1) * n)."""
    epoch: int
    """Raised by an interrupt; every stage drops items of an older epoch."""
    window: np.ndarray
    """[window.samples] float32 in -1..1: gated speech, zeros where nobody speaks."""
    posture: str = "idle"
    """One of POSTURES; steers head and gaze motion."""
    deadline_s: float = 0.0
    """Monotonic time at which the first picture is due; orders work between sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """The pictures of one block."""

    session: str
    block: int
    epoch: int
    frames: np.ndarray
    """[frames_per_block, height, width, 3] uint8 RGB."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: audio, dit, vae."""
    applied: tuple[str, ...] = ()
    """Which parts of a SessionUpdate took effect with this block: `prompt`, `image`."""


class AvatarModel(Protocol):
    """A loaded model. Sessions take turns on one set of weights; calls come from one thread.

    Raises:
        ModelError: and its subclasses, as `model.errors` lists.
    """

    info: ModelInfo

    def open(self, spec: SessionSpec) -> SessionInfo:
        """Fit the portrait, encode the prompt, fill the condition cache."""
        ...

    def update(self, update: SessionUpdate) -> None:
        """Register a change; it is applied at the first block >= `update.block`."""
        ...

    def step(self, request: BlockRequest) -> BlockResult:
        """Produce one block. Blocks of a session come in rising order; a gap restarts nothing, positions follow
        the index."""
        ...

    def close(self, session: str) -> None:
        """Forget the session; unknown names are ignored."""
        ...

"""The door between streaming and the model: plain values and one protocol. Numpy only, no torch.

`streaming` builds a `SessionSpec` and one `BlockRequest` per block; the model answers each with a `BlockResult`.
The same protocol is served by `model.generator` (torch) and by `model.fake` (deterministic, for tests).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from model.errors import ModelError
from model.geometry import Geometry

POSTURES = ("idle", "listening", "thinking", "speaking")
MOST_SPEAKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """What audio a block needs: `left` samples before it, the block, `lookahead` samples after it (16 kHz).

    A longer look-ahead helps some encoders where it costs no time: of a file or of queued speech the future is known.
    """

    left_samples: int
    lookahead_samples: int
    """Always waited for."""
    block_samples: int
    queued_samples: int = 0
    """Samples after the block that the model takes where they are known already; below `lookahead_samples`: no more."""

    @property
    def samples(self) -> int:
        """Length of the shortest window, a microphone's."""
        return self.left_samples + self.block_samples + self.lookahead_samples

    @property
    def most_samples(self) -> int:
        """Length of the longest window, of sound whose future is known."""
        return self.left_samples + self.block_samples + max(self.lookahead_samples, self.queued_samples)

    @property
    def of_known_sound(self) -> WindowSpec:
        """What is needed of sound that is there as a whole, as a file's: the long look-ahead, always."""
        most = max(self.lookahead_samples, self.queued_samples)
        return replace(self, lookahead_samples=most, queued_samples=most)


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
    part_s: float = 0.0
    """Seconds of the longest part of a block, after which it can be called off; 0: it is always made to its end."""


MOST_PAST_LATENTS = 19
"""Latent frames that any model sees of a stream's past when it is opened again."""


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
    sound: np.ndarray | tuple[np.ndarray, ...] | None = None
    """For parity with the published pipelines: a whole file, [samples] float32 at 16 kHz, or one a speaker. It is
    levelled and encoded at once, as they do, and the blocks' windows steer posture only. None: every block is heard
    through its window."""
    speakers: int = 1
    """How many speak in the picture, each with a sound of its own, up to MOST_SPEAKERS."""
    masks: np.ndarray | None = None
    """[speakers, height, width] bool, on the portrait's own pixels: where each speaker's face is. None: the picture is
    divided into upright strips, from left to right."""
    has_pose: bool = False
    """Whether blocks bring pictures of a pose video, which steer the bodies."""
    past: np.ndarray | None = None
    """[z, frames, rows, columns] latents, oldest first, that the stream goes on from when it is opened again after a
    restart (`BlockResult.latents`); None: it begins with the portrait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What opening a session found out."""

    session: str
    portrait: np.ndarray
    """The fitted portrait as the stream shows it, [height, width, 3] uint8 RGB."""
    portrait_psnr_db: float
    """How well the checkpoint can reproduce this portrait."""
    in_domain: bool
    prompt_cut: str = ""
    """The end of the prompt that the model does not read, because the prompt is too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
    """A change that takes effect at the first block >= `block`. None leaves a field as it is."""

    session: str
    block: int
    prompt: str | None = None
    image: np.ndarray | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What it changes: `prompt`, `image`."""
        return tuple(part for part in ("prompt", "image") if getattr(self, part) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateInfo:
    """What preparing a change found out."""

    session: str
    block: int
    """As in the update."""
    portrait_psnr_db: float | None = None
    """How well the checkpoint can reproduce the new portrait; None if there is no new one."""
    in_domain: bool = True
    prompt_cut: str = ""
    """The end of the new prompt that the model does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """One block of work."""

    session: str
    block: int
    """Index on the session's sample clock; samples [block * n, (block + 1) * n)."""
    epoch: int
    """Raised by an interrupt; every stage drops items of an older epoch."""
    window: np.ndarray
    """[samples] float32 in -1..1: gated speech, zeros where nobody speaks; `window.samples` to `window.most_samples` of
    them, as far as the sound after the block is known. Of several speakers [speakers, samples]."""
    posture: str = "idle"
    """One of POSTURES; steers head and gaze motion."""
    deadline_s: float = 0.0
    """Monotonic time at which the first picture is due; orders work between sessions."""
    pose: np.ndarray | None = None
    """[frames_per_block, height, width, 3] uint8 RGB of the pose video, fitted as the portrait is; None: black, as
    after its end. Only for a session opened with `has_pose`."""


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
    latents: np.ndarray | None = None
    """[z, frames, rows, columns] float16, from which the stream could go on; None: the model has none."""


def check_window(request: BlockRequest, spec: WindowSpec, speakers: int = 1) -> None:
    """Refuse a window that does not fit.

    Raises:
        ModelError: its shape, type or values are wrong.
    """
    window, least, most = request.window, spec.samples, spec.most_samples
    lead = () if speakers == 1 else (speakers,)
    if window.shape[:-1] != lead or not least <= window.shape[-1] <= most or window.dtype != np.float32:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        each = "" if speakers == 1 else f" for each of {speakers} speakers"
        raise ModelError(
            f"the window of block {request.block} is {window.dtype} {list(window.shape)}; "
            f"send {wanted} float32 samples{each}"
        )
    if not np.isfinite(window).all():
        raise ModelError(f"the window of block {request.block} holds values that are not finite; send samples in -1..1")


def all_together(window: np.ndarray) -> np.ndarray:
    """A window as one sound: [samples], or the sum of [speakers, samples] kept in -1..1."""
    return window if window.ndim == 1 else np.clip(window.sum(0), -1, 1)


class AvatarModel(Protocol):
    """A loaded model. Sessions take turns on one set of weights; calls come from one thread.

    Raises:
        ModelError: and its subclasses, as `model.errors` lists.
    """

    info: ModelInfo

    def open(self, spec: SessionSpec) -> SessionInfo:
        """Fit the portrait, encode the prompt, fill the condition cache."""
        ...

    def update(self, update: SessionUpdate) -> UpdateInfo:
        """Register a change; it is applied at the first block >= `update.block`."""
        ...

    def step(self, request: BlockRequest) -> BlockResult:
        """Produce one block. Blocks of a session come in rising order; a gap restarts nothing, positions follow
        the index."""
        ...

    def close(self, session: str) -> None:
        """Forget the session; unknown names are ignored."""
        ...

"""Messages between the processes of a plan: the leader orders, the decoding rank reports. Plain values, picklable.

Orders reach every rank in one sequence, before the tensors that they are about, so all ranks agree on what comes over a
link next, and nothing that was ordered is ever taken back: an interrupt keeps blocks from being ordered. Arrays are
float32 on the host.

Letters: A speakers, F latent frames, h and w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.scheduler import Item

# From the leader to all


@dataclass(frozen=True, slots=True, kw_only=True)
class Meet:
    """The first message: where the group meets."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A stream begins. A session that begins anew gets another."""

    stream: int
    context: np.ndarray
    """[1, n, text_dim] the encoded prompt."""
    negative: np.ndarray | None
    """[1, n, text_dim] what guidance moves away from."""
    reference: np.ndarray
    """[1, in_dim, 1, h, w]."""
    past: np.ndarray | None
    """[1, in_dim, any, h, w]."""
    portrait: int
    """Number of the portrait, as `LookAt` gave it."""
    weights: np.ndarray | None = None
    """[1, A, F, rows, columns] of every speaker's sound for every token; None for one speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Another prompt from the next block on."""

    stream: int
    context: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """A block, prepared by every rank; its steps follow as `Item`."""

    stream: int
    block: int
    noise: np.ndarray
    """[1, in_dim, F, h, w]."""
    columns: np.ndarray
    """[1, A, audio_layers, audio_dim, 4 F] what each speaker says."""
    pose: np.ndarray | None
    """[1, cond_dim, F or 1, rows or 1, columns or 1]; None is a zero pose."""
    distance: int
    """Latent frames by which the reference is ahead."""
    sink: np.ndarray | None = None
    """[1, in_dim, 1, h, w] what the stream is conditioned on from this block on, where that changes."""
    keeps_first: bool = False
    """Whether the leader wants its first latent frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAt:
    """For the decoding rank: what does the VAE make of a portrait? Answered by `Seen`."""

    portrait: int
    """Number by which it will be known."""
    picture: np.ndarray
    """[height, width, 3] uint8."""
    past: np.ndarray | None = None
    """[z, any, h, w] latents that the stream goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The stream is over."""

    stream: int
    portraits: tuple[int, ...] = ()
    """Portraits that will not be shown."""


@dataclass(frozen=True, slots=True)
class Hurry:
    """Every rank has computed everything once: from now on waits are short."""

    limit_s: float


@dataclass(frozen=True, slots=True)
class Halt:
    """Leave in peace."""


# From the ranks to the leader


@dataclass(frozen=True, slots=True)
class Joined:
    """The rank is loaded and part of the group."""

    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the VAE made of a portrait."""

    portrait: int
    reference: np.ndarray
    """[1, in_dim, 1, h, w]."""
    past: np.ndarray
    """[1, in_dim, any, h, w]."""
    psnr_db: float
    problem: str = ""
    """Why it could not be done; empty if it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The first latent frame of a block that was ordered with `keeps_first`."""

    stream: int
    latent: np.ndarray
    """[1, in_dim, 1, h, w]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A block's pictures."""

    stream: int
    block: int
    frames: np.ndarray
    """[frames_per_block, height, width, 3] uint8."""
    latents: np.ndarray
    """[z, F, h, w] float16, what they were made of."""
    latents_s: float
    """Monotonic time at which its latents were finished."""
    pictures_s: float
    """Monotonic time at which its pictures lay in main memory."""
    submitted_s: float = 0.0
    """Monotonic time at which it was submitted; the leader's to fill in."""


Order = Meet | Start | Prompt | Begin | Item | LookAt | Forget | Hurry | Halt
Answer = Joined | Seen | First | Shown

"""All block, clip, latent, frame and sample arithmetic, in one frozen value.

Nothing else in the project multiplies strides or frame counts. Imports no torch.

Letters: a *frame* is one picture, a *latent frame* one VAE time step, a *block* the latent frames that are
denoised together.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Sizes of one stream. Every count derives from these fields."""

    width: int
    """Picture width in pixels; a multiple of `vae_stride * patch`."""
    height: int
    """Picture height in pixels; a multiple of `vae_stride * patch`."""
    fps: int = 25
    """Pictures a second."""
    vae_stride: int = 8
    """Pixels per latent cell, in both directions."""
    vae_stride_t: int = 4
    """Pictures per latent frame."""
    patch: int = 2
    """Latent cells per token, in both directions."""
    latent_channels: int = 16
    """Channels of a latent."""
    latents_per_block: int = 3
    """Latent frames denoised together."""
    blocks_per_clip: int = 4
    """Blocks sharing one noise draw in parity mode; also the ring length of the published model."""

    def __post_init__(self) -> None:
        cell = self.vae_stride * self.patch
        for name in ("width", "height"):
            value = getattr(self, name)
            if value <= 0 or value % cell:
                raise ValueError(f"{name} is {value}; it must be a positive multiple of {cell} (VAE stride x patch)")
        if self.fps <= 0 or SAMPLE_RATE_HZ % self.fps:
            raise ValueError(f"fps is {self.fps}; it must divide {SAMPLE_RATE_HZ}, for example 25 or 16")

    @property
    def frames_per_block(self) -> int:
        return self.latents_per_block * self.vae_stride_t

    @property
    def samples_per_frame(self) -> int:
        return SAMPLE_RATE_HZ // self.fps

    @property
    def samples_per_block(self) -> int:
        return self.frames_per_block * self.samples_per_frame

    @property
    def block_s(self) -> float:
        return self.frames_per_block / self.fps

    @property
    def block_ms(self) -> float:
        return 1000 * self.block_s

    @property
    def latent_height(self) -> int:
        return self.height // self.vae_stride

    @property
    def latent_width(self) -> int:
        return self.width // self.vae_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of one latent frame."""
        return self.latent_height // self.patch, self.latent_width // self.patch

    @property
    def tokens_per_latent(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def tokens_per_block(self) -> int:
        return self.tokens_per_latent * self.latents_per_block

    def block_start_sample(self, block: int) -> int:
        return block * self.samples_per_block

    def block_start_frame(self, block: int) -> int:
        return block * self.frames_per_block

    def block_of_sample(self, sample: int) -> int:
        return sample // self.samples_per_block

    def frame_pts_s(self, frame: int) -> Fraction:
        return Fraction(frame, self.fps)

"""Noise levels and one step of flow matching; seeded noise.

The model predicts v = noise - data on the straight path x = (1 - sigma) data + sigma noise (Lipman et al. 2023). The
levels are given, never recomputed from a shift while running: `published_sigmas` only says where those of the
published checkpoint come from.

Letters: C latent channels, F latent frames, h and w latent rows and columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000
_NOISE, _SINK = 0, 1


def shifted(sigma: np.ndarray | float, shift: float) -> np.ndarray | float:
    """Move noise levels towards 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def published_sigmas(steps: int, shift: float = 3.0, train_steps: int = TRAIN_STEPS) -> tuple[float, ...]:
    """The published schedule: the smallest level is shifted twice, once with the training grid and once with the steps.

    Returns:
        `steps` falling levels rounded to float32, without the final 0.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; use at least 1")
    smallest = shifted(1 / train_steps, shift)
    grid = np.linspace(train_steps, smallest * train_steps, steps) / train_steps
    return tuple(float(s) for s in shifted(grid, shift).astype(np.float32))


def timestep(sigma: float, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The value the model is told for a noise level: float32, as the published schedule rounds it."""
    return torch.tensor(sigma, dtype=torch.float32) * train_steps


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Follow the velocity from one noise level to the next.

    As published, the step is rounded to the velocity's dtype, added in float32 and rounded again. The scalar comes
    first and as a tensor, because that order decides how bfloat16 products are rounded.
    """
    step = torch.tensor(sigma_next - sigma, dtype=torch.float32)
    return (x.float() + step * velocity).to(velocity.dtype)


class NoiseSource:
    """A session's random numbers: the same for the same seed and block, whatever came before."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int, int],
        mode: Literal["block", "clip"] = "block",
        clip_blocks: int = 4,
        device: str | torch.device = "cpu",
    ) -> None:
        """
        Args:
            seed: any integer.
            shape: (C, F, h, w) of one block.
            mode: `block` counts by (seed, block) and may start anywhere; `clip` draws whole clips seeded with
                seed + clip and slices them, as the published pipelines do.
            clip_blocks: blocks of a clip.
            device: where `clip` draws; a GPU's numbers are others than a processor's, and the published pipelines draw
                bfloat16 on the GPU.
        """
        self._device = torch.device(device)
        self._seed, self._shape, self._mode, self._clip_blocks = seed, shape, mode, clip_blocks
        self._clip: tuple[int, Tensor] | None = None

    def _stream(self, block: int, purpose: int) -> np.random.Generator:
        key = np.array([self._seed % 2**64, purpose], np.uint64)
        counter = np.array([0, 0, 0, block % 2**64], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def block(self, block: int) -> Tensor:
        """Noise of one block, [1, C, F, h, w] float32; of `clip` on the device, else on the CPU."""
        if self._mode == "block":
            return torch.from_numpy(self._stream(block, _NOISE).standard_normal((1, *self._shape), np.float32))
        clip, index = divmod(block, self._clip_blocks)
        if self._clip is None or self._clip[0] != clip:
            channels, frames, height, width = self._shape
            source = torch.Generator(self._device).manual_seed(self._seed + clip)
            shape, dtype = (channels, frames * self._clip_blocks, height, width), torch.float32
            if self._device.type == "cuda":
                dtype = torch.bfloat16
            noise = torch.randn(shape, generator=source, device=self._device, dtype=dtype)
            self._clip = (clip, noise.float()[None])
        frames = self._shape[1]
        return self._clip[1][:, :, index * frames : (index + 1) * frames]

    def sink_distance(self, block: int, low: int, high: int) -> int:
        """A whole number in low..high, the same for all steps of the block."""
        return int(self._stream(block, _SINK).integers(low, high + 1))

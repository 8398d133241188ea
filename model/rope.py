"""Three-axis rotary positions without a limit: angles come from float64 positions, never from a table.

Channel pairs (2i, 2i+1) rotate together. Of the `head_dim / 2` pairs of a head, rows and columns get a third each
(rounded down) and time the rest; base 10000 per axis. Keys are stored rotated, so only differences of positions matter.

Letters: T tokens, N heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.config import MOTION_BUCKETS

BASE = 10000.0


class Rotation(NamedTuple):
    """The factors that rotate T tokens."""

    cos: Tensor
    """[..., T, d/2] float32."""
    sin: Tensor
    """[..., T, d/2] float32."""
    factor: Tensor | None
    """[..., T, 1, d/2] complex64, cos + i sin; None where the graph is compiled or differentiated."""

    def rows(self, start: int, stop: int) -> Rotation:
        """The rotation of tokens start..stop."""
        factor = None if self.factor is None else self.factor[..., start:stop, :, :]
        return Rotation(self.cos[..., start:stop, :], self.sin[..., start:stop, :], factor)


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Channel pairs for time, rows and columns."""
    third = head_dim // 2 // 3
    return head_dim // 2 - 2 * third, third, third


def angles(time: Tensor, row: Tensor, column: Tensor, head_dim: int) -> Tensor:
    """Rotary angles of positions.

    Args:
        time, row, column: [..., T], any dtype; the three broadcast against each other.

    Returns:
        [..., T, head_dim / 2] float64.
    """
    parts = []
    shape = torch.broadcast_shapes(time.shape, row.shape, column.shape)
    for position, pairs in zip((time, row, column), axis_pairs(head_dim), strict=True):
        frequency = BASE ** (-torch.arange(pairs, dtype=torch.float64, device=position.device) / pairs)
        parts.append((position.double()[..., None] * frequency).expand(*shape, pairs))
    return torch.cat(parts, -1)


def rotation(angle: Tensor, rounded: bool = False, with_complex: bool = True) -> Rotation:
    """Factors of angles [..., T, d/2] float64; `rounded` rounds them to float16 first."""
    cos, sin = angle.cos(), angle.sin()
    if rounded:
        cos, sin = cos.half(), sin.half()
    cos, sin = cos.float(), sin.float()
    return Rotation(cos, sin, torch.complex(cos, sin)[..., None, :] if with_complex else None)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate queries or keys [..., T, N, d]; computed in float32, returned in x's dtype.

    One complex product is five times faster in eager mode on a CPU; the real form compiles and differentiates.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if by.factor is not None:
        return torch.view_as_real(torch.view_as_complex(pairs) * by.factor).flatten(-2).to(x.dtype)
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def grid(start: Sequence[int], end: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """Positions of a box of tokens, sampled evenly from a finer box and truncated to integers.

    Args:
        start, end: first and past-the-last (time, row, column); their difference is the number of tokens per axis.
        target: how many positions of the fine grid the tokens span per axis.

    Returns:
        [tokens, 3] int64 in (time, row, column) order, columns fastest. A negative start in time counts towards 0.
    """
    axes = []
    for first, last, span in zip(start, end, target, strict=True):
        sign = -1 if first < 0 else 1
        fine = np.linspace(abs(first), abs(first) + sign * (span - 1), last - first)
        axes.append(sign * fine.astype(int))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def block_positions(first_frame: int, frames: int, rows: int, columns: int) -> np.ndarray:
    """[frames * rows * columns, 3] positions of the noisy tokens of a block."""
    return grid((first_frame, 0, 0), (first_frame + frames, rows, columns), (frames, rows, columns))


def reference_positions(time: int, rows: int, columns: int) -> np.ndarray:
    """[rows * columns, 3] positions of the reference tokens."""
    return grid((time, 0, 0), (time + 1, rows, columns), (1, rows, columns))


def motion_positions(latent_height: int, latent_width: int, patch: int) -> np.ndarray:
    """Positions of the frame packer's tokens: fixed, negative in time, coarser in every bucket."""
    rows, columns = latent_height // patch, latent_width // patch
    parts, start = [], 0
    for i, frames in enumerate(MOTION_BUCKETS):
        start -= frames
        cell = patch << i
        end = (start + (frames >> i), latent_height // cell, latent_width // cell)
        parts.append(grid((start, 0, 0), end, (frames, rows, columns)))
    return np.concatenate(parts)


def rotation_of(
    positions: np.ndarray, head_dim: int, device: torch.device | str = "cpu", rounded: bool = False
) -> Rotation:
    """Factors of integer positions [T, 3]."""
    time, row, column = torch.from_numpy(positions).to(device).unbind(-1)
    return rotation(angles(time, row, column, head_dim), rounded)

"""Which states of the speech encoder (50 a second) a picture is conditioned on. Arithmetic only, no weights.

The published pipeline stretches the 50 Hz states of a whole file to 30 Hz (ends aligned) and picks one per picture;
that depends on the file's length, so no stream can reproduce it. Live, state k of the 30 Hz grid is at exactly k x 5/3
of the 50 Hz grid. Both are here: `columns_of_file` for parity, `live_positions` for streams.

Letters: T states at 50 Hz, L states at 30 Hz, D width, N pictures.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STATE_HZ = 50
GRID_HZ = 30
HOP_SAMPLES = 320
"""Samples between two states."""
SUPPORT_SAMPLES = 400
"""Samples that one state covers."""


def num_states(samples: int) -> int:
    """States that a wave of so many samples gives."""
    return max(0, (samples - SUPPORT_SAMPLES) // HOP_SAMPLES + 1)


def to_grid(states: Tensor) -> Tensor:
    """[layers, T, D] at 50 Hz to [layers, L, D] at 30 Hz, first and last state kept."""
    length = int(states.shape[1] / STATE_HZ * GRID_HZ)
    stretched = F.interpolate(states.transpose(1, 2), size=length, mode="linear", align_corners=True)
    return stretched.transpose(1, 2)


def num_clips(grid_states: int, frames_per_clip: int, fps: int) -> int:
    """Clips that a file fills, by the published rule: always one more than fit."""
    return int(grid_states / (frames_per_clip * GRID_HZ / fps)) + 1


def grid_indices(num_frames: int, fps: int) -> np.ndarray:
    """State of the 30 Hz grid that every picture takes, [N] int64, by the published rule."""
    seconds = num_frames / fps
    at = np.round(np.linspace(0, seconds, num_frames, endpoint=False) * GRID_HZ).astype(np.int64)
    return np.minimum(at, int(np.ceil(GRID_HZ * seconds)) - 1)


def columns_of_file(grid: Tensor, frames_per_clip: int, fps: int, neighbours: int = 0) -> Tensor:
    """Columns of all clips of a file.

    Args:
        grid: [layers, L, D] at 30 Hz.
        frames_per_clip: pictures in a clip.
        fps: pictures a second.
        neighbours: states on either side that are stacked beside each; 0 for the published model.

    Returns:
        [1, layers, (2 neighbours + 1) D, N]; columns beyond the end of the file are zero.
    """
    layers, length, width = grid.shape
    at = torch.from_numpy(grid_indices(frames_per_clip * num_clips(length, frames_per_clip, fps), fps))
    step = GRID_HZ // fps
    offsets = torch.arange(-neighbours, neighbours + 1) * step
    taken = (at[:, None] + offsets).clamp(0, length - 1)
    columns = grid[:, taken.to(grid.device)].reshape(layers, len(at), len(offsets) * width)
    columns = columns * (at < length).to(grid.device, grid.dtype)[:, None]
    return columns.transpose(1, 2)[None]


def live_positions(first_frame: int, num_frames: int, fps: int) -> list[Fraction]:
    """Position on the absolute 50 Hz clock of each picture's column, exact at any picture number."""
    frames = range(first_frame, first_frame + num_frames)
    return [round(Fraction(GRID_HZ * frame, fps)) * Fraction(STATE_HZ, GRID_HZ) for frame in frames]


def columns_at(states: Tensor, positions: list[Fraction], first_state: int = 0) -> Tensor:
    """Linear mix of the two states around every position.

    Args:
        states: [B, layers, T, D] at 50 Hz.
        positions: on the clock on which `states` starts at `first_state`.

    Returns:
        [B, layers, D, N].
    """
    last = states.shape[2] - 1
    below = [min(max(int(p) - first_state, 0), last) for p in positions]
    above = [min(max(int(-(-p // 1)) - first_state, 0), last) for p in positions]
    share = torch.tensor([float(p - int(p)) for p in positions], device=states.device, dtype=states.dtype)[:, None]
    return (states[:, :, below] * (1 - share) + states[:, :, above] * share).transpose(2, 3)

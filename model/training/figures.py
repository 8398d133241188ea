"""Figures of merit shared by the stages: PSNR, SSIM, correlation, lag, and picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """Over the last three axes, pictures in 0..1."""
    return -10 * torch.log10((a - b).square().mean((-3, -2, -1)).clamp_min(1e-10))


def masked_psnr_db(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """mask [..., H, W] beside pictures [..., 3, H, W]."""
    mask = mask[..., None, :, :]
    error = ((a - b).square() * mask).sum((-3, -2, -1)) / (3 * mask.sum((-3, -2, -1))).clamp_min(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim_map(a: Tensor, b: Tensor, window: int = 7) -> Tensor:
    """Box-window SSIM of pictures [N, C, H, W] in 0..1."""
    mean = lambda x: F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson over the last axis."""
    a, b = a.float() - a.float().mean(-1, keepdim=True), b.float() - b.float().mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)


def lag_ms(measured: Tensor, truth: Tensor, fps: int = 25, reach: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """[N, T] each: correlation at 0, the best within `reach` pictures, and its lag (positive: measured is late)."""
    n = measured.shape[1]
    table = torch.stack(
        [
            correlation(measured[:, reach + k : n - reach + k], truth[:, reach : n - reach])
            for k in range(-reach, reach + 1)
        ],
        -1,
    )
    peak = table.argmax(-1).clamp(1, 2 * reach - 1)
    left, top, right = (table.gather(-1, (peak + o)[:, None])[:, 0] for o in (-1, 0, 1))
    offset = 0.5 * (left - right) / (left - 2 * top + right).clamp(max=-1e-6)
    return table[:, reach], table.amax(-1), (peak - reach + offset.clamp(-1, 1)) * 1000 / fps


def save_png(path: Path, picture: Tensor) -> None:
    """picture [3, H, W] in 0..1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (picture.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    Image.fromarray(array).save(path, optimize=True)


def sheet(rows: list[list[Tensor]]) -> Tensor:
    """Pictures [3, H, W] laid out in rows."""
    return torch.cat([torch.cat([p.float().cpu() for p in row], 2) for row in rows], 1)

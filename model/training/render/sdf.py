"""Shapes and paint: signed distances, smooth unions, coverage, compositing.

A signed distance is negative inside. Lengths are picture units: the picture spans -1..1, x right, y down.
B is the batch, H and W the picture's rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def ellipse(x: Tensor, y: Tensor, cx: Tensor | float, cy: Tensor | float, rx: Tensor | float, ry: Tensor | float):
    """Approximate signed distance to an axis-aligned ellipse with centre (cx, cy) and radii (rx, ry)."""
    px, py = (x - cx) / rx, (y - cy) / ry
    k0 = torch.sqrt(px * px + py * py + 1e-9)
    k1 = torch.sqrt((px / rx) ** 2 + (py / ry) ** 2 + 1e-9)
    return k0 * (k0 - 1) / k1


def round_box(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float, radius: Tensor | float) -> Tensor:
    """Exact signed distance to a box around the origin, half sizes (rx, ry), corners rounded by `radius`."""
    dx, dy = x.abs() - rx + radius, y.abs() - ry + radius
    outside = torch.sqrt(dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2 + 1e-12)
    return outside + torch.maximum(dx, dy).clamp_max(0) - radius


def smooth_min(a: Tensor, b: Tensor, k: Tensor | float) -> Tensor:
    """Union of two shapes, blended over a length `k`."""
    h = (0.5 + 0.5 * (b - a) / k).clamp(0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def smooth_max(a: Tensor, b: Tensor, k: Tensor | float) -> Tensor:
    """Intersection of two shapes, blended over a length `k`."""
    return -smooth_min(-a, -b, k)


def ramp(start: float | Tensor, end: float | Tensor, x: Tensor) -> Tensor:
    """0 at `start`, 1 at `end`, smooth between and flat outside; `start` may lie above `end`."""
    t = ((x - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def glow(x: Tensor, y: Tensor, cx: Tensor | float, cy: Tensor | float, sx: Tensor | float, sy: Tensor | float):
    """A soft round spot: 1 at its centre, 1/e at (sx, sy)."""
    return torch.exp(-(((x - cx) / sx) ** 2) - ((y - cy) / sy) ** 2)


class Grain(NamedTuple):
    """How fine a grid samples, so that soft edges look alike at every picture size."""

    fine: float
    """Size of one sample."""
    base: float
    """Size of the same sample in a picture of 256 pixels; what `soft` counts in."""


def cover(distance: Tensor, grain: Grain, soft: float = 1.0) -> Tensor:
    """Share of each sample that a shape covers, 0..1; `soft` widens its edge to that many samples of 256 pixels."""
    return (0.5 - distance / (grain.fine + (soft - 1.0) * grain.base)).clamp(0, 1)


def paint(img: Tensor, mask: Tensor, color: Tensor) -> Tensor:
    """Lay `color` [B, 3, 1, 1] or [B, 3, H, W] over `img` [B, 3, H, W] where `mask` [B, H, W] is 1."""
    return img + (color - img) * mask[:, None]


def shade(img: Tensor, mask: Tensor, amount: float) -> Tensor:
    """Multiply `img` by 1 - `amount` where `mask` is 1."""
    return img * (1 - amount * mask)[:, None]


def tint(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A constant colour [1, 3, 1, 1] on the device of `like`, without a copy from the host."""
    one = torch.ones(1, 1, 1, 1, device=like.device)
    return torch.cat([one * red, one * green, one * blue], 1)

"""Where a pixel lies on the head: coordinates of the picture, of the head and of the face, and small boxes.

The head turns as an upright cylinder (yaw) and a barrel (pitch): a pixel is turned back before the front features
are evaluated, which gives foreshortening and parallax for a few operations a pixel.

Letters: B batch, H and W rows and columns, S the picture's side in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.training.render.sdf import Grain

Table = dict[str, Tensor]
PIVOT_Y = 0.45
"""The head rolls and is scaled about this height (bottom of the chin), in picture units."""
HEAD_Y = 0.010
"""Where the head's origin hangs in the picture."""
BARREL_Y, BARREL_R = 0.02, 0.62
"""Centre and radius of the barrel that pitch turns."""
BASE_SIZE = 256
"""Picture side that soft edges are tuned for."""
NOD = 0.75
"""Share of the pitch that moves the features; the chin follows with the rest."""
OVERSAMPLE = 2
"""Samples a pixel, in each direction, inside the mouth and eye boxes."""


class View(NamedTuple):
    """One sampling grid in three coordinate systems, each [B, H, W]."""

    X: Tensor
    Y: Tensor
    """Picture, -1..1."""
    x: Tensor
    y: Tensor
    """Head: scaled, shifted and rolled with it, but seen flat."""
    xf: Tensor
    yf: Tensor
    """Face: turned back by yaw and pitch; 0, 0 is between the eyes."""
    pixel: Grain
    """Size of one sample in head units, at a middling head scale."""
    flat: Grain
    """Size of one sample in picture units."""


def spread(table: Table) -> Table:
    """Make a table of [B] values and [B, 3] colours broadcast over pictures: [B, 1, 1] and [B, 3, 1, 1]."""
    return {k: v[:, None, None] if v.dim() == 1 else v[:, :, None, None] for k, v in table.items()}


def cylinder(i: Table) -> Tensor:
    """Radius of the cylinder that yaw turns, a little wider than the head."""
    return i["width"] * 1.16


def view(X: Tensor, Y: Tensor, size: int, oversample: int, i: Table, m: Table) -> View:
    """Coordinates of picture points X, Y [B, H, W] under spread identity `i` and motion `m`.

    The picture has `size` pixels a side, each sampled `oversample` times in both directions.
    """
    hx, hy = m["tx"], HEAD_Y + m["ty"] + 0.004 * m["breath"]
    px, py = (X - hx) / i["scale"], (Y - hy - PIVOT_Y) / i["scale"]
    cos, sin = torch.cos(m["roll"]), torch.sin(m["roll"])
    x, y = px * cos + py * sin, py * cos - px * sin + PIVOT_Y
    radius, half = cylinder(i), math.pi / 2
    a = torch.asin((x / radius).clamp(-0.999, 0.999))
    xf = radius * torch.sin((a - m["yaw"]).clamp(-half, half)) + (x - torch.minimum(torch.maximum(x, -radius), radius))
    up = y - BARREL_Y
    b = torch.asin((up / BARREL_R).clamp(-0.999, 0.999))
    yf = (
        BARREL_Y
        + BARREL_R * torch.sin((b - NOD * m["pitch"]).clamp(-half, half))
        + (up - up.clamp(-BARREL_R, BARREL_R))
    )
    flat = Grain(2 / size / oversample, 2 / BASE_SIZE / oversample)
    return View(X, Y, x, y, xf, yf, Grain(flat.fine / 1.1, flat.base / 1.1), flat)


def to_picture(xf: Tensor, yf: Tensor, i: Table, m: Table) -> Tensor:
    """Picture position [B, 2] (x, y in -1..1) of a face point; the inverse of `view`."""
    radius = cylinder(i)
    x = radius * torch.sin(torch.asin((xf / radius).clamp(-0.999, 0.999)) + m["yaw"])
    y = BARREL_Y + BARREL_R * torch.sin(
        torch.asin(((yf - BARREL_Y) / BARREL_R).clamp(-0.999, 0.999)) + NOD * m["pitch"]
    )
    cos, sin = torch.cos(m["roll"]), torch.sin(m["roll"])
    px, py = x * cos - (y - PIVOT_Y) * sin, x * sin + (y - PIVOT_Y) * cos
    X = m["tx"] + px * i["scale"]
    Y = HEAD_Y + m["ty"] + 0.004 * m["breath"] + PIVOT_Y + py * i["scale"]
    return torch.cat([X.flatten(1), Y.flatten(1)], 1)


def picture_view(size: int, i: Table, m: Table) -> View:
    """The view of every pixel of a picture of `size` x `size`."""
    batch, device = i["scale"].shape[0], i["scale"].device
    at = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    X, Y = at[None, None, :].expand(batch, size, size), at[None, :, None].expand(batch, size, size)
    return view(X, Y, size, 1, i, m)


class Box(NamedTuple):
    """A box of whole pixels around a moving feature, different for every picture of the batch."""

    rows: Tensor
    """[B, h] picture rows."""
    cols: Tensor
    """[B, w] picture columns."""
    view: View
    """[B, h * OVERSAMPLE, w * OVERSAMPLE] sample points."""


def box_at(center: Tensor, half_w: float, half_h: float, size: int, i: Table, m: Table) -> Box:
    """The box around `center` [B, 2] with half sizes in picture units, kept inside the picture."""
    w, h = min(size, math.ceil(half_w * size)), min(size, math.ceil(half_h * size))
    first = (center + 1) / 2 * size - 0.5 * torch.stack(
        [torch.full_like(center[:, 0], w), torch.full_like(center[:, 1], h)], 1
    )
    first = first.round().long()
    col0, row0 = first[:, 0].clamp(0, size - w), first[:, 1].clamp(0, size - h)
    k = OVERSAMPLE
    fine = lambda start, n: (start[:, None] + (torch.arange(n * k, device=center.device) + 0.5) / k) / size * 2 - 1  # noqa: E731
    X, Y = fine(col0, w)[:, None, :].expand(-1, h * k, -1), fine(row0, h)[:, :, None].expand(-1, -1, w * k)
    rows = row0[:, None] + torch.arange(h, device=center.device)
    cols = col0[:, None] + torch.arange(w, device=center.device)
    return Box(rows, cols, view(X, Y, size, k, i, m))


def cut_out(img: Tensor, box: Box) -> Tensor:
    """The picture [B, 3, S, S] inside the box, each pixel repeated: [B, 3, h * OVERSAMPLE, w * OVERSAMPLE]."""
    pick = torch.arange(img.shape[0], device=img.device)[:, None, None]
    part = img[pick, :, box.rows[:, :, None], box.cols[:, None, :]].permute(0, 3, 1, 2)
    return part.repeat_interleave(OVERSAMPLE, 2).repeat_interleave(OVERSAMPLE, 3)


def put_back(img: Tensor, part: Tensor, box: Box) -> Tensor:
    """Average the oversampled part down and lay it into the picture."""
    k, (b, c, h, w) = OVERSAMPLE, part.shape
    small = part.reshape(b, c, h // k, k, w // k, k).mean((3, 5)).permute(0, 2, 3, 1)
    pick = torch.arange(b, device=img.device)[:, None, None]
    out = img.clone()
    out[pick, :, box.rows[:, :, None], box.cols[:, None, :]] = small
    return out

"""The mouth: curves shared by lips, beard and measurements, drawn oversampled in its own box."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.training.render.body import skin_tones
from model.training.render.frame import Table, View, box_at, cut_out, put_back, to_picture
from model.training.render.head import JAW_DROP
from model.training.render.sdf import cover, ellipse, glow, paint, ramp, shade, tint

BOX = (0.350, 0.250)
"""Half width and half height of the mouth's box, picture units."""
REST_SMILE = 0.45
"""The friendly curve of a mouth at rest, added to the motion's smile."""


class Mouth(NamedTuple):
    """Curves of the mouth on one view; lengths in head units, y down from the seam."""

    x: Tensor
    y: Tensor
    half: Tensor
    """Half width of the opening."""
    s: Tensor
    """-1..1 from corner to corner."""
    upper: Tensor
    lower: Tensor
    """Edges of the opening."""
    outer_up: Tensor
    outer_low: Tensor
    """Outer edges of the lips."""
    rise: Tensor
    sink: Tensor
    """Opening above and below the seam at the middle."""
    bend: Tensor
    """Height of the seam."""
    lip_low: Tensor
    """Thickness of the lower lip at the middle."""


def curves(v: View, i: Table, m: Table) -> Mouth:
    """Turn motion values into curves."""
    rounding, wide = m["round"].clamp(0, 1), m["width"].clamp(-1, 1.2)
    press, tuck = m["press"].clamp(0, 1), m["ftuck"].clamp(0, 1)
    smile = (1.2 * m["smile"] + REST_SMILE * (1 - 0.7 * rounding)).clamp(-0.9, 1.4)
    opening = 0.140 * m["open"].clamp(0, 1.25) * (1 - 0.05 * rounding)
    x = v.xf - 0.022 * torch.sin(m["yaw"])
    y = v.yf - i["mouth_y"] - 0.30 * JAW_DROP * m["jaw"]
    half = i["mouth_w"] * (
        1 + 0.22 * wide + 0.10 * smile.clamp(0, 1) - 0.50 * rounding - 0.05 * m["open"].clamp(0, 1.25)
    )
    rise = 0.30 * opening + 0.0005
    sink = 0.70 * opening + 0.0005 + 0.012 * m["jaw"] * ramp(0.0, 0.3, m["open"])
    power = 0.78 - 0.30 * rounding
    seam = lambda s: smile * (0.014 - 0.050 * s.abs() ** 2.3)  # noqa: E731
    s = (x / half).clamp(-1, 1)
    q = (1 - s * s).clamp_min(1e-6)
    wide_half = half * 1.04 + 0.006
    s2 = (x / wide_half).clamp(-1, 1)
    q2 = (1 - s2 * s2).clamp_min(1e-6)
    lip_up = i["lip_up"] * (1 + 0.55 * rounding) * (1 - 0.60 * press) * (1 - 0.30 * m["smile"].clamp(0, 1))
    lip_low = (
        i["lip_low"]
        * (1 + 0.40 * rounding)
        * (1 - 0.50 * press)
        * (1 - 0.55 * tuck)
        * (1 - 0.12 * m["smile"].clamp(0, 1))
    )
    bow = 1 - 0.24 * torch.exp(-((x / (0.16 * half)) ** 2)) * (1 - 0.5 * rounding)
    outer_up = seam(s2) - rise * q2**power - lip_up * bow * q2**0.95
    outer_low = seam(s2) + sink * q2**power + lip_low * q2**0.72 - 0.010 * tuck * q2
    upper, lower = seam(s) - rise * q**power, seam(s) + sink * q**power - 0.010 * tuck * q
    return Mouth(x, y, half, s, upper, lower, outer_up, outer_low, rise, sink, seam(s), lip_low)


def mouth_center(i: Table, m: Table) -> Tensor:
    """Picture position [B, 2] of the mouth's middle, in -1..1."""
    y = i["mouth_y"] + 0.30 * JAW_DROP * m["jaw"] + 0.25 * 0.14 * m["open"].clamp(0, 1.25)
    return to_picture(0.022 * torch.sin(m["yaw"]), y, i, m)


def aperture(i: Table, m: Table) -> Tensor:
    """Height of the opening at the middle, in head units, [B]."""
    opening = 0.140 * m["open"].clamp(0, 1.25) * (1 - 0.05 * m["round"].clamp(0, 1))
    return (opening + 0.001 + 0.012 * m["jaw"] * ramp(0.0, 0.3, m["open"])).flatten()


def mouth(img: Tensor, center: Tensor, i: Table, m: Table) -> Tensor:
    """Lips, cavity, teeth and tongue."""
    box = box_at(center, *BOX, img.shape[-1], i, m)
    v, part = box.view, cut_out(img, box)
    c = curves(v, i, m)
    part = _around(part, c, i, m)
    part = _lips(part, v, c, i, m)
    part = _inside(part, v, c, m)
    return put_back(img, part, box)


def _around(img: Tensor, c: Mouth, i: Table, m: Table) -> Tensor:
    """Soft shadow under the lower lip, dimples at the corners."""
    tone, deep, _ = skin_tones(i["skin"])
    bare = 1 - i["beard"]
    under = c.sink + c.lip_low + 0.026
    img = paint(img, glow(c.x, c.y, 0.0, under, c.half * 0.60, 0.020) * 0.50 * bare, tone * 0.8 + deep * 0.2)
    for side in (-1.0, 1.0):
        corner = -0.036 * (m["smile"] + REST_SMILE)
        spot = glow(c.x, c.y, side * (c.half * 1.05 + 0.010), corner, 0.018, 0.018)
        img = paint(img, spot * 0.42, deep)
    return img


def _lips(img: Tensor, v: View, c: Mouth, i: Table, m: Table) -> Tensor:
    """Both lips, the upper in shade, the lower with a highlight, and the seam of a closed mouth."""
    px, skin = v.pixel, i["skin"]
    dim = skin.mean(1, keepdim=True)
    natural = torch.cat([skin[:, :1] * 0.88, skin[:, 1:2] * 0.655, skin[:, 2:] * 0.66], 1)
    rouge = (
        torch.cat([0.80 * (0.40 + 0.60 * dim), 0.33 * (0.40 + 0.60 * dim), 0.36 * (0.40 + 0.60 * dim)], 1) + 0.06 * skin
    )
    color = natural + (rouge - natural) * i["lipstick"][:, None]
    lips = torch.maximum(torch.maximum(c.outer_up - c.y, c.y - c.outer_low), c.x.abs() - c.half * 1.04 - 0.006)
    middle = 0.5 * (c.upper + c.lower)
    toned = color * (1 - 0.15 * ramp(0.006, -0.006, c.y - middle))[:, None]
    img = paint(img, cover(lips, px, 2.0) * 0.97, toned)
    shine = glow(c.x, c.y, 0.02 * i["light"], c.sink + c.lip_low * 0.45, c.half * 0.42, c.lip_low * 0.26 + 0.003)
    img = paint(img, cover(lips, px) * shine * 0.38 * (1 - 0.6 * m["ftuck"].clamp(0, 1)), color * 0.5 + 0.5)
    seam = torch.maximum((c.y - middle).abs() - 0.0055 * (1 - 0.55 * c.s**2), c.x.abs() - c.half * 1.02)
    return paint(img, cover(seam, px, 2.0) * 0.85, color * 0.42)


def _inside(img: Tensor, v: View, c: Mouth, m: Table) -> Tensor:
    """Dark cavity, tongue, both rows of teeth; for F and V the upper teeth rest on the lower lip."""
    px, teeth, tongue, tuck = v.pixel, m["teeth"].clamp(0, 1), m["tongue"].clamp(0, 1), m["ftuck"].clamp(0, 1)
    gap = torch.maximum(torch.maximum(c.upper - c.y, c.y - c.lower), c.x.abs() - c.half)
    tall = c.rise + c.sink
    mask = cover(gap, px, 1.5) * ramp(0.004, 0.012, tall)
    depth = ramp(0.0, 1.0, (c.y + c.rise) / (tall + 0.004))
    img = paint(img, mask, tint(img, 0.27, 0.075, 0.095) * (0.72 + 0.5 * depth)[:, None])
    bottom = c.sink + 0.014 * (m["smile"] + REST_SMILE)
    muscle = ellipse(
        c.x, c.y, 0.0, bottom + 0.004 - 0.50 * tongue * tall, c.half * 0.62, 0.020 + 0.014 * tongue + 0.16 * tall
    )
    pink = tint(img, 0.82, 0.40, 0.42) * (0.80 + 0.20 * ramp(-0.03, 0.03, -muscle))[:, None]
    img = paint(img, mask * cover(muscle, px, 4) * ramp(0.02, 0.05, tall), pink)
    ivory, row = tint(img, 0.965, 0.950, 0.925), c.half * 0.86
    edge = -c.rise + (0.012 + 0.030 * teeth) + 0.30 * (c.upper + c.rise)
    upper = torch.maximum(torch.maximum(c.y - edge, -0.2 - c.y), c.x.abs() - row)
    img = paint(img, mask * cover(upper, px, 2) * ramp(0.05, 0.25, teeth), ivory * (1 - 0.20 * c.s**2)[:, None])
    lower = torch.maximum(c.sink - 0.016 * teeth + 0.6 * (c.lower - c.sink) - c.y, c.x.abs() - row * 0.85)
    img = paint(img, mask * cover(lower, px, 3) * ramp(0.5, 0.9, teeth) * ramp(0.03, 0.05, tall), ivory * 0.90)
    bite = torch.maximum(
        torch.maximum(c.bend - 0.006 - c.rise - c.y, c.y - c.bend - 0.018 * (1 - (c.x / (c.half * 0.62)) ** 2)),
        c.x.abs() - c.half * 0.62,
    )
    img = paint(img, cover(bite, px, 2) * ramp(0.25, 0.8, tuck) * 0.97, ivory)
    return shade(img, mask * ramp(0.020, 0.0, c.y - c.upper), 0.40)

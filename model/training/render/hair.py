"""Hair behind and in front of the head, buns, beards. Smooth masses with broad soft strands, clear outlines."""

from __future__ import annotations

import torch
from torch import Tensor

from model.training.render import mouth
from model.training.render.frame import Table, View
from model.training.render.head import head_shape
from model.training.render.sdf import cover, ellipse, paint, ramp, shade, smooth_max, smooth_min


def _lobes(v: View, i: Table) -> Tensor:
    """Offset of the outline: rounded lobes around the head, for waves and curls."""
    angle = torch.atan2(v.x, -v.y)
    return i["hair_curl"] * (torch.cos(i["hair_curl_n"] * angle + i["curl_phase"]).abs() - 0.5) * 1.6


def _has_back(i: Table) -> Tensor:
    return (i["hair_back_w"] > 0).float()


def _is_long(i: Table) -> Tensor:
    return (i["hair_back_len"] > 0.2).float()


def _fall(v: View, i: Table, m: Table) -> tuple[Tensor, Tensor, Tensor]:
    """Hair falling straight down behind the head: shape, its sideways coordinate, its half width."""
    x = v.x - 0.10 * m["yaw"]
    half = i["hair_back_w"].clamp_min(0.05) * i["width"] / 0.43
    swing = i["hair_curl"] * 0.9 * torch.sin(i["hair_curl_n"] * 1.3 * v.y + 2.0)
    side = (x + swing).abs() - half * 0.99 + 0.05 * (v.y - i["hair_back_y"]).clamp(0, 1)
    end = i["hair_back_len"] - 0.5 * (x.abs() - 0.3).clamp_min(0) ** 2
    return smooth_max(torch.maximum(side, i["hair_back_y"] - v.y), v.y - end, 0.10), x + swing, half


def hair_back(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """The mass behind the head."""
    fall, x, half = _fall(v, i, m)
    top = ellipse(v.x - 0.10 * m["yaw"], v.y, 0.0, i["hair_back_y"], half, i["hair_back_h"].clamp_min(0.05))
    mass = torch.where(i["hair_back_len"] > -1.0, smooth_min(top, fall, 0.06), top) - _lobes(v, i)
    light = 0.64 + 0.14 * ramp(0.2, -0.7, v.y)
    return paint(img, cover(mass, v.pixel) * _has_back(i), i["hair"] * light[:, None])


def bun(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """A bun on the crown, behind the cap of hair."""
    knot = ellipse(v.x, v.y, -0.25 * m["yaw"], -0.685 - 0.06 * m["pitch"], 0.155, 0.125)
    glow_ = 0.80 + 0.26 * ramp(0.05, -0.12, knot + 0.3 * (v.y + 0.685))
    return paint(img, cover(knot, v.pixel) * i["hair_bun"], i["hair"] * glow_[:, None])


def _hairline(v: View, i: Table) -> Tensor:
    """Height of the hairline above each face point; hair is where y is smaller."""
    x = v.xf.clamp(-0.47, 0.47)
    u = x - i["part"]
    slope = torch.where(u < 0, i["hair_left"], i["hair_right"])
    locks = 0.8 * i["hair_curl"] * (torch.cos(i["hair_curl_n"] * 1.5 * x + i["curl_phase"]).abs() - 0.5)
    return (
        locks
        + i["hair_line"]
        + slope * (u.abs() + 1e-4) ** i["hair_power"]
        + i["hair_temple"] * ramp(0.28, 0.44, x.abs())
    )


def hair_front(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """The cap of hair over the skull down to the hairline, with its soft shadow on the forehead."""
    volume, line = i["hair_volume"], _hairline(v, i)
    on = (volume > -0.2).float()
    scalp = ellipse(
        v.x, v.y, 0.0, -0.115 - volume * 0.62, i["width"] + 0.012 + volume * 0.55, i["crown"] + volume * 0.55
    )
    scalp = scalp - 0.7 * _lobes(v, i)
    below = (v.yf - line) * 0.80
    cap = smooth_max(smooth_max(scalp, below, 0.02), v.y - 0.07 - 0.40 * (i["hair_back_len"] > 0).float(), 0.06)
    shaved = (volume < 0.03).float()
    mask = (
        cover(cap, v.pixel, 1.3) * (1 - shaved)
        + 0.90 * cover(scalp, v.pixel, 1.3) * cover(cap, v.pixel, 9) ** 0.5 * shaved
    ) * on
    forehead = cover(head_shape(v, i, m), v.pixel) * on * (1 - mask) * ramp(0.08, -0.06, v.y)
    img = shade(img, cover(below - 0.030, v.pixel, 9) * forehead, 0.20)
    return paint(img, mask, _lit(v, i, below))


def _lit(v: View, i: Table, below: Tensor) -> Tensor:
    """Hair colour under light: broad strands that fan out from the parting, one bright band, darker roots."""
    fan = torch.atan2(v.xf - i["part"] * 1.2, 0.80 + v.yf)
    strands = 1 + 0.055 * i["hair_texture"] * (
        torch.sin(15 * fan + 2.0 * v.yf) + 0.6 * torch.sin(27 * fan - 3.0 * v.yf)
    )
    out = torch.sqrt(v.x**2 + (v.y + 0.10) ** 2)
    band = torch.exp(-(((out - 0.47) / 0.055) ** 2)) * torch.exp(
        -(((torch.atan2(v.x, -v.y) - 0.5 * i["light"]) / 0.75) ** 2)
    )
    color = i["hair"] * (strands * (0.90 + 0.16 * ramp(0.2, -0.6, v.y)) * (1 - 0.13 * ramp(-0.09, 0.0, below)))[:, None]
    return (color + (band * (0.30 * i["hair_texture"] + 0.06))[:, None] * (0.10 + i["hair"] * 0.55)).clamp(0, 1)


def hair_locks(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Long hair in front of the shoulders, framing the face."""
    fall, x, half = _fall(v, i, m)
    on = _has_back(i) * _is_long(i)
    opening = i["width"] * (0.985 - 0.24 * ramp(-0.05, 0.60, v.y)) - 0.05 * ramp(0.5, 1.0, v.y)
    crown = ellipse(
        x, v.y, 0.0, i["hair_back_len"] * 0.42 - 0.02, half * 1.04, (i["hair_back_len"] * 0.5).clamp_min(0.1) + 0.36
    )
    inner = opening - x.abs()
    lock = torch.maximum(torch.maximum(smooth_max(fall, crown, 0.10), inner), -0.16 - v.y)
    light = 0.90 + 0.05 * i["hair_texture"] * torch.sin(34 * x.abs() + 3 * v.y)
    light = light - 0.16 * ramp(-0.10, 0.0, inner) * ramp(-0.2, 0.1, v.y) + 0.08 * ramp(0.5, -0.2, v.y)
    return paint(img, cover(lock, v.pixel, 1.3) * on, i["hair"] * light[:, None])


def _warm(color: Tensor) -> Tensor:
    """Beards are a little redder than the hair, unless it is grey."""
    colored = ramp(0.03, 0.10, color.amax(1, keepdim=True) - color.amin(1, keepdim=True))
    warm = torch.cat([color[:, :1] * 1.03, color[:, 1:2] * 0.93, color[:, 2:] * 0.90], 1)
    return color + (warm - color) * colored


def beard(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Stubble, full beard, goatee or moustache: clear shapes around the lips that follow the jaw."""
    c, head = mouth.curves(v, i, m), head_shape(v, i, m)
    shape = _beard_shape(v, c, head, i)
    stubble = (i["beard"] < 0.5).float()
    edge = cover(shape, v.pixel, 3.0) * (1 - stubble) + cover(shape, v.pixel, 9) * stubble
    hair = _warm(i["brow_color"] * 0.40 + i["hair"] * 0.55) * (1.02 - 0.14 * ramp(0.0, -0.16, head))[:, None]
    img = paint(img, edge * i["beard"] * ramp(-0.13, -0.03, v.yf), hair)
    upper = cover(_moustache_shape(c), v.pixel, 3.0)
    return paint(img, upper * i["moustache"] * cover(head, v.pixel), hair * 0.96)


def _beard_shape(v: View, c: mouth.Mouth, head: Tensor, i: Table) -> Tensor:
    """From the sideburns along the cheek line to under the nose, down past the chin, without the lips."""
    across = v.xf.abs()
    full = (i["beard"] > 0.5).float()
    cheek = 0.212 + 0.022 * ramp(0.05, 0.16, across) - 0.34 * ramp(0.20, 0.43, across)
    shape = smooth_max(head - 0.020 * full, cheek - v.yf, 0.03)
    goatee = smooth_max(shape, across - c.half - 0.028 + 0.45 * (v.yf - 0.31).clamp_min(0), 0.06)
    shape = torch.where(i["goatee"] > 0.5, goatee, shape)
    tall = torch.maximum(c.outer_up + 0.004 - c.y, c.y - c.outer_low - 0.010)
    lips = torch.maximum(tall, c.x.abs() - c.half * 1.06 - 0.012)
    return smooth_max(shape, -lips, 0.012)


def _moustache_shape(c: mouth.Mouth) -> Tensor:
    """Two wings over the upper lip with a notch under the nose."""
    thick = 0.030 * (1 - 0.45 * (c.x / (c.half * 1.1)).clamp(-1, 1) ** 2)
    ridge = c.outer_up - 0.029 + 0.012 * torch.exp(-((c.x / 0.022) ** 2))
    return torch.maximum((c.y - ridge).abs() - thick * 0.62, c.x.abs() - c.half * 1.02)

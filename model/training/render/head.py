"""The head itself: ears, skull and jaw, soft light on the skin, nose. Lengths are head units."""

from __future__ import annotations

import torch
from torch import Tensor

from model.training.render.body import skin_tones
from model.training.render.frame import Table, View
from model.training.render.sdf import cover, ellipse, glow, paint, ramp, smooth_min, tint

JAW_DROP = 0.060
"""How far the chin sinks at jaw 1."""


def head_shape(v: View, i: Table, m: Table) -> Tensor:
    """Signed distance to the head's outline: a cranium and a jaw that opens and follows the turn."""
    drop = JAW_DROP * m["jaw"]
    cranium = ellipse(v.x, v.y, 0.0, -0.10, i["width"], i["crown"])
    jaw_x = v.x - 0.16 * m["yaw"] * ramp(-0.1, 0.6, v.y)
    jaw = ellipse(jaw_x, v.y, 0.0, 0.115 + drop * 0.55, i["jaw_w"], i["chin"] - 0.115 + drop * 0.45 + 0.22 * m["pitch"])
    return smooth_min(cranium, jaw, i["jaw_blend"])


def ears(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Both ears; they slide behind the head when it turns."""
    tone, deep, _ = skin_tones(i["skin"])
    shown = 1 - (i["hair_back_len"] > 0.2).float()
    gold = tint(img, 0.95, 0.83, 0.50)
    for side in (-1.0, 1.0):
        cx = side * i["width"] * 0.985 * torch.cos(m["yaw"] * 0.8) - m["yaw"] * 0.06
        cy = 0.020 - 0.10 * m["pitch"]
        ear = ellipse(v.x, v.y, cx, cy, 0.058 * (1 - 0.5 * side * m["yaw"]).clamp(0.4, 1.3), 0.100)
        img = paint(img, cover(ear, v.pixel) * shown, tone * 0.45 + i["skin"] * 0.55)
        inner = ellipse(v.x, v.y, cx + side * 0.008, cy + 0.005, 0.030, 0.060)
        img = paint(img, cover(inner, v.pixel, 5) * 0.45 * shown, deep)
        stud = ellipse(v.x, v.y, cx + side * 0.010, cy + 0.115, 0.021, 0.021)
        img = paint(img, cover(stud, v.pixel) * i["earring"] * shown, gold)
    return img


def skin(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """The face as one softly lit surface, with blush, sockets, chin and folds."""
    tone, deep, light = skin_tones(i["skin"])
    shape = head_shape(v, i, m)
    mask, sun = cover(shape, v.pixel), i["light"]
    turned = ramp(-0.05, 0.75, -v.x * sun * 0.75 + 0.36 * v.y + 0.08)
    color = i["skin"] + (tone - i["skin"]) * (0.55 * turned)[:, None]
    rim = torch.exp(shape.clamp(-1, 0) / 0.07)
    color = color + (tone - color) * (0.45 * rim)[:, None]
    color = color + (light - color) * (0.50 * glow(v.xf, v.yf, 0.10 * sun, -0.22, 0.24, 0.16))[:, None]
    for side in (-1.0, 1.0):
        apple = glow(v.xf, v.yf, side * 0.20, 0.095 - 0.012 * m["smile"], 0.075, 0.05)
        color = color + (light - color) * (0.30 * apple)[:, None]
    img = paint(img, mask, color)
    dim = i["skin"].mean(1, keepdim=True)
    rose = torch.cat([0.93 * (0.42 + 0.58 * dim), 0.45 * (0.42 + 0.58 * dim), 0.42 * (0.42 + 0.58 * dim)], 1)
    for side in (-1.0, 1.0):
        cheek = glow(v.xf, v.yf, side * 0.245, 0.150 - 0.015 * m["smile"], 0.100, 0.075)
        img = paint(img, mask * cheek * i["blush"] * 0.50, rose)
        ex, ey = v.xf - side * i["eye_dx"], v.yf - i["eye_y"]
        img = paint(img, mask * glow(ex, ey, -side * 0.015, -0.035, 0.120, 0.070) * 0.30, tone)
        bag = glow(ex, ey, 0.0, 0.075, 0.075, 0.014)
        img = paint(img, mask * bag * (0.10 + 0.40 * i["age"]), tone)
        img = _fold(img, v, i, m, side, mask, tone * 0.75 + deep * 0.25)
    return img


def _fold(img: Tensor, v: View, i: Table, m: Table, side: float, mask: Tensor, color: Tensor) -> Tensor:
    """The soft crease from nose to mouth corner; deeper with a smile and with age."""
    along = (v.yf - 0.165) / 0.13
    line = side * (
        0.085 + (i["mouth_w"] - 0.035) * along.clamp(0, 1) ** 0.8 * (1 + 0.10 * m["smile"] + 0.08 * m["width"])
    )
    near = torch.exp(-(((v.xf - line) / 0.017) ** 2)) * ramp(-0.05, 0.25, along) * ramp(0.95, 0.45, along)
    depth = (0.06 + 0.30 * i["age"] + 0.28 * m["smile"].clamp(0, 1) + 0.12 * m["width"].clamp(0, 1)) * (
        1 - 0.6 * m["round"]
    )
    return paint(img, mask * near * depth.clamp(0, 0.55), color)


def nose(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """A nose of light and shadow: bridge, tip, wings, nostrils."""
    tone, deep, light = skin_tones(i["skin"])
    mask = cover(head_shape(v, i, m), v.pixel)
    x, y, sun = v.xf - 0.06 * torch.sin(m["yaw"]), v.yf - 0.03 * torch.sin(m["pitch"]), i["light"]
    tip, half = i["eye_y"] + i["nose_len"] + 0.02, i["nose_w"]
    side = torch.where(sun > 0, -1.0, 1.0)
    img = paint(img, mask * glow(x, y, side * 0.036, tip - 0.085, 0.026, 0.085) * 0.38, tone)
    img = paint(img, mask * glow(x, y, -side * 0.004, tip - 0.075, 0.016, 0.075) * 0.35, light)
    img = paint(img, mask * glow(x, y, 0.0, tip + 0.012, half * 1.1, 0.034) * 0.35, tone)
    under = glow(x, y, 0.0, tip + 0.034, half * 0.80, 0.014)
    img = paint(img, mask * under * 0.60, tone * 0.45 + deep * 0.55)
    img = paint(img, mask * glow(x, y, -side * 0.008, tip - 0.008, 0.026, 0.022) * 0.70, light)
    for sign in (-1.0, 1.0):
        nostril = ellipse(x, y, sign * half * 0.48, tip + 0.028, 0.015, 0.0075)
        img = paint(img, mask * cover(nostril, v.pixel, 2.2) * 0.60, deep * 0.70)
        wing = ellipse(x, y, sign * half * 0.74, tip + 0.012, 0.030, 0.028).abs() - 0.004
        outer = ramp(0.0, 0.02, x * sign - half * 0.82)
        img = paint(img, mask * cover(wing, v.pixel, 3) * outer * 0.45, deep)
    return img

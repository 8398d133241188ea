"""What is behind and below the head: background, neck, clothes. Each layer takes and returns the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from model.training.render.frame import HEAD_Y, PIVOT_Y, Table, View
from model.training.render.sdf import Grain, cover, ellipse, glow, paint, ramp, round_box, shade


def skin_tones(skin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shadow, deep shadow and light tone [B, 3, 1, 1] of a skin colour; shadows are warmer, not greyer."""
    factor = lambda r, g, b: torch.cat([skin[:, :1] * r, skin[:, 1:2] * g, skin[:, 2:] * b], 1)  # noqa: E731
    return factor(0.83, 0.725, 0.70), factor(0.62, 0.48, 0.46), skin + 0.30 * (1.04 - skin) * (0.4 + 0.6 * skin)


def background(v: View, i: Table) -> Tensor:
    """A plain wall with soft light, and one of: nothing, two discs, a window, a slanted band."""
    X, Y, px = v.X, v.Y, v.flat
    down = ((Y + 1) / 2)[:, None]
    img = i["back1"] * (1 - down) + i["back2"] * down
    img = img + (0.16 * glow(X, Y, 0.0, -0.2, 0.9, 0.9))[:, None] * (1 - img)
    kind = lambda n: (i["back_kind"] == n).float()  # noqa: E731
    side = torch.where(i["back_a"] > 0.5, 1.0, -1.0)
    disc = ellipse(X, Y, side * (0.55 + 0.3 * i["back_b"]), -0.6 + 0.9 * i["back_c"], 0.42, 0.42)
    img = paint(img, cover(disc, px, 2) * kind(1) * 0.35, i["back2"] * 0.75 + 0.25 * i["cloth2"])
    disc = ellipse(X, Y, -side * (0.65 + 0.2 * i["back_d"]), -0.3 + 0.9 * i["back_b"], 0.28, 0.28)
    img = paint(img, cover(disc, px, 2) * kind(1) * 0.35, i["back1"] * 0.5 + 0.5)
    wx, wy = X - side * (0.80 + 0.1 * i["back_b"]), Y + 0.40
    pane = round_box(wx, wy, 0.34, 0.50, 0.03)
    img = paint(img, cover(pane, px) * kind(2) * 0.75, i["back1"] * 0.45 + 0.55)
    bars = torch.minimum(torch.minimum(wx.abs(), (wy + 0.06).abs()) - 0.014, -pane - 0.022)
    img = paint(img, cover(torch.maximum(bars, pane - 0.022), px) * kind(2), i["back2"] * 0.82)
    band = (X * side * 0.75 + Y + 0.6 * i["back_c"] - 0.3).abs() - 0.38
    return paint(img, cover(band, px, 4) * kind(3) * 0.30, i["back1"] * 0.55 + 0.45)


def hood_back(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """The hood's inside, behind the neck."""
    bx, by = _body(v, m)
    on = (i["collar"] == 4).float()
    return paint(img, cover(ellipse(bx, by, 0.0, 0.585, 0.345, 0.215), v.pixel) * on, i["cloth"] * 0.68)


def neck(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Neck and chest with the shadow that the head throws on them."""
    tone, deep, _ = skin_tones(i["skin"])
    bx, by = _body(v, m)
    lean = 0.5 * m["tx"] + 0.04 * m["yaw"]
    half = 0.165 * i["jaw_w"] / 0.355
    shape = torch.maximum(
        (bx - lean * (1 - ramp(0.3, 0.8, by))).abs() - half - 0.30 * ramp(0.46, 0.95, by) ** 2, 0.1 - by
    )
    mask = cover(shape, v.pixel)
    round_ = ramp(0.35, 1.0, (bx - lean).abs() / half) * ramp(0.75, 0.5, by)
    img = paint(img, mask, i["skin"] * 0.60 + tone * 0.40)
    img = paint(img, mask * round_ * 0.55, tone)
    chin = HEAD_Y + m["ty"] + PIVOT_Y + i["scale"] * (i["chin"] - PIVOT_Y + 0.055 * m["jaw"])
    cast = ramp(0.15, 0.0, by - chin + 0.35 * (bx - m["tx"]) ** 2)
    return paint(img, mask * cast * 0.72, deep * 0.45 + tone * 0.55)


def _body(v: View, m: Table) -> tuple[Tensor, Tensor]:
    """Shoulder coordinates: they follow the head's shift a little, and the breath."""
    return v.X - 0.35 * m["tx"], v.Y - 0.30 * m["ty"] - 0.008 * m["breath"]


def clothes(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Shoulders and one of six garments."""
    bx, by = _body(v, m)
    px, cloth, ax = v.flat, i["cloth"], bx.abs()
    kind = lambda *n: sum((i["collar"] == k).float() for k in n)  # noqa: E731
    shoulder = 0.585 + 0.20 * ramp(0.10, 0.80, ax) + 0.30 * (ax - 0.52).clamp_min(0) ** 1.6
    body = (shoulder - by) * 0.93
    crew = -ellipse(bx, by, 0.0, 0.560, 0.225, 0.175)
    vee = -torch.maximum((ax * 1.15 + (by - 0.97)) * 0.66, 0.4 - by)
    deep_vee = -torch.maximum((ax * 1.5 + (by - 1.06)) * 0.56, 0.4 - by)
    hole = crew * kind(0, 3, 4) + vee * kind(1, 2) + deep_vee * kind(5)
    inner = torch.maximum(body, crew)
    img = paint(img, cover(inner, px) * kind(5), i["cloth2"] * 0.35 + 0.62)
    color = cloth * (1 - 0.13 * ramp(0.0, 0.9, -bx * i["light"].sign() + 0.25))[:, None]
    color = (
        color * (1 - 0.10 * glow(ax, by, 0.60, 1.02, 0.07, 0.20))[:, None] * (1.04 - 0.10 * ramp(0.6, 1.0, by))[:, None]
    )
    img = paint(img, cover(torch.maximum(body, hole), px), color)
    edge = cover(hole.abs() - 0.019, px) * cover(body - 0.02, px)
    img = paint(img, edge * kind(0, 1), cloth * 0.83)
    img = _shirt_collar(img, bx, by, cloth, kind(2), px)
    img = _lapels(img, bx, by, cloth, kind(5), px)
    img = _turtleneck(img, bx - 0.2 * m["tx"], by, i, kind(3), px)
    return _hood(img, bx, by, crew, cloth, kind(4), px)


def _shirt_collar(img: Tensor, bx: Tensor, by: Tensor, cloth: Tensor, on: Tensor, px: Grain) -> Tensor:
    ax = bx.abs()
    flap = torch.maximum(torch.maximum(ax * 0.55 - (by - 0.53), (by - 0.78) - 0.55 * (0.26 - ax)), ax - 0.29)
    flap = torch.maximum(torch.maximum(flap, 0.45 - by + 0.42 * ax), -((ax * 1.15 + (by - 0.92)) * 0.68))
    img = paint(img, cover(flap - 0.012, px, 3) * on * 0.25, cloth * 0.4)
    return paint(img, cover(flap, px) * on, cloth * 0.55 + 0.43)


def _lapels(img: Tensor, bx: Tensor, by: Tensor, cloth: Tensor, on: Tensor, px: Grain) -> Tensor:
    ax = bx.abs()
    inner = (ax * 1.5 + (by - 1.06)) * 0.56
    lapel = torch.maximum(torch.maximum(-inner, inner - 0.085 - 0.05 * (by - 0.75)), 0.60 - by + 0.10 * ax)
    img = paint(img, cover(lapel - 0.010, px, 3) * on * 0.30, cloth * 0.4)
    return paint(img, cover(lapel, px) * on, cloth * 0.80 + 0.06)


def _turtleneck(img: Tensor, bx: Tensor, by: Tensor, i: Table, on: Tensor, px: Grain) -> Tensor:
    half = 0.165 * i["jaw_w"] / 0.355 + 0.020
    tube = torch.maximum(
        bx.abs() - half - 0.05 * ramp(0.55, 0.75, by), torch.maximum(0.515 - by - 0.4 * bx**2, by - 0.80)
    )
    round_ = (1.0 - 0.16 * ramp(0.3, 1.0, bx.abs() / half))[:, None]
    img = paint(img, cover(tube, px) * on, i["cloth"] * 1.02 * round_)
    fold = (by - 0.605 + 0.35 * bx**2).abs() - 0.007
    return shade(img, cover(torch.maximum(fold, tube), px, 2) * on, 0.16)


def _hood(img: Tensor, bx: Tensor, by: Tensor, crew: Tensor, cloth: Tensor, on: Tensor, px: Grain) -> Tensor:
    hood = torch.maximum(torch.maximum(ellipse(bx, by, 0.0, 0.60, 0.345, 0.235), crew), 0.545 - by + 0.10 * bx.abs())
    img = shade(img, cover(hood - 0.02, px, 6) * on, 0.16)
    img = paint(img, cover(hood, px) * on, cloth * (0.94 - 0.14 * ramp(0.02, -0.05, crew))[:, None])
    cord = torch.maximum((bx.abs() - 0.10 - 0.02 * (by - 0.8)).abs() - 0.012, torch.maximum(0.79 - by, by - 0.96))
    return paint(img, cover(cord, px) * on, cloth * 0.35 + 0.60)

"""Eyes, brows and glasses. Eyes are drawn oversampled in a small box each, so lids and irises stay crisp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.training.render.body import skin_tones
from model.training.render.frame import Table, View, box_at, cut_out, cylinder, put_back, to_picture
from model.training.render.head import head_shape
from model.training.render.sdf import cover, paint, ramp, round_box, shade, tint

BOX = (0.150, 0.120)
"""Half width and half height of an eye's box, picture units."""


def eye_centers(i: Table, m: Table) -> Tensor:
    """Picture positions [B, 2 eyes, 2 (x, y)]; the picture's left eye first."""
    return torch.stack([to_picture(side * i["eye_dx"], i["eye_y"], i, m) for side in (-1.0, 1.0)], 1)


def eyes(img: Tensor, centers: Tensor, i: Table, m: Table) -> Tensor:
    """Both eyes."""
    for k, side in enumerate((-1.0, 1.0)):
        box = box_at(centers[:, k], *BOX, img.shape[-1], i, m)
        img = put_back(img, _eye(cut_out(img, box), box.view, side, i, m), box)
    return img


class Eye(NamedTuple):
    """One eye on its grid; lengths in head units around the eye's centre, [B, h, w]."""

    x: Tensor
    y: Tensor
    out: Tensor
    """-1 at the nose, 1 at the temple."""
    rest: Tensor
    """Height of the open upper lid."""
    upper: Tensor
    lower: Tensor
    """Lids as they are now."""
    blink: Tensor
    seen: Tensor
    """0 where the head has turned the eye away."""


def _shape(v: View, side: float, i: Table, m: Table) -> Eye:
    """Lids follow gaze and smile; the closed lid lies on the lower one."""
    x = v.xf - side * i["eye_dx"]
    y = v.yf - i["eye_y"] + i["eye_tilt"] * side * x
    smile, blink = m["smile"].clamp(0, 1), m["blink"].clamp(0, 1)
    t = (x - side * 0.006) / i["eye_rx"]
    arc = (1 - t.clamp(-1, 1) ** 2).clamp_min(1e-6)
    look = 0.014 * m["gaze_y"]
    raised = 1 + 0.16 * m["brow"].clamp(-0.7, 1) - 0.06 * smile
    rest = -i["eye_up"] * raised * arc**0.62 + look * arc
    low = i["eye_low"] * (1 - 0.26 * smile) * arc**0.80 + 0.3 * look * arc
    upper = rest + (low - rest) * blink
    lower = low - 0.08 * i["eye_low"] * blink * arc
    return Eye(x, y, t * side, rest, upper, lower, blink, cover((v.x.abs() - i["width"] * 1.01), v.pixel))


def _eye(img: Tensor, v: View, side: float, i: Table, m: Table) -> Tensor:
    """One eye: lid, ball, lashes."""
    e = _shape(v, side, i, m)
    img = _lid(img, v, e, i)
    gap = torch.maximum(torch.maximum(e.upper - e.y, e.y - e.lower), (e.out.abs() - 1) * i["eye_rx"])
    mask = cover(gap, v.pixel, 1.2) * e.seen * ramp(1.0, 0.93, e.blink)
    img = _ball(img, v, e, mask, i, m)
    return _lashes(img, v, e, i)


def _lid(img: Tensor, v: View, e: Eye, i: Table) -> Tensor:
    """Skin of the lid as it comes down, and the crease above it."""
    tone, deep, _ = skin_tones(i["skin"])
    along = e.x.abs() / i["eye_rx"]
    lid = torch.maximum(e.rest - 0.020 - e.y, e.y - e.upper - 0.003)
    mask = cover(lid, v.pixel, 2) * ramp(1.06, 0.94, along) * e.seen * (0.35 + 0.5 * e.blink)
    img = paint(img, mask, tone * 0.65 + i["skin"] * 0.35)
    crease = (e.y - (e.rest - 0.022)).abs() - 0.0028
    return paint(img, cover(crease, v.pixel, 3) * ramp(1.0, 0.6, along) * e.seen * (0.50 - 0.25 * e.blink), deep)


def _ball(img: Tensor, v: View, e: Eye, mask: Tensor, i: Table, m: Table) -> Tensor:
    """White, iris, pupil and two catch lights, shadowed by the upper lid."""
    dim = i["skin"].mean(1, keepdim=True)
    img = paint(img, mask, tint(img, 0.975, 0.970, 0.965) * (0.86 + 0.14 * dim))
    x, y = e.x - 0.034 * m["gaze_x"], e.y + 0.003 - 0.018 * m["gaze_y"]
    r, radius = torch.sqrt(x * x + y * y + 1e-9), i["iris_r"]
    iris = i["iris"] * (0.72 + 0.50 * ramp(-0.8, 0.9, y / radius))[:, None]
    img = paint(img, mask * cover(r - radius, v.pixel, 1.5), i["iris"] * 0.42)
    img = paint(img, mask * cover(r - radius + 0.008, v.pixel, 3), iris.clamp(0, 1))
    img = paint(img, mask * cover(r - radius * 0.48, v.pixel, 1.5), tint(img, 0.045, 0.04, 0.045))
    img = shade(img, mask * ramp(0.026, 0.0, e.y - e.upper), 0.42)
    sun = torch.where(i["light"] > 0, 1.0, -1.0)
    spot = torch.sqrt((x - 0.016 * sun) ** 2 + (y + 0.017) ** 2)
    img = paint(img, mask * cover(spot - 0.0125, v.pixel, 1.5), tint(img, 1.0, 1.0, 1.0))
    fill = torch.sqrt((x + 0.016 * sun) ** 2 + (y - 0.017) ** 2)
    return paint(img, mask * cover(fill - 0.007, v.pixel, 2) * 0.45, tint(img, 1.0, 1.0, 1.0))


def _lashes(img: Tensor, v: View, e: Eye, i: Table) -> Tensor:
    """A tapered line on the upper lid, thickest outside, and a faint lower rim."""
    deep = skin_tones(i["skin"])[1]
    thick = i["lash"] * (0.45 + 0.55 * ramp(-1.0, 0.7, e.out)) * (1 + 0.15 * e.blink)
    line = torch.maximum((e.y - e.upper + 0.3 * thick).abs() - thick * 0.55, (e.out.abs() - 1.04) * i["eye_rx"])
    img = paint(img, cover(line, v.pixel, 1.5) * e.seen * 0.95, i["brow_color"] * 0.30 + 0.02)
    rim = torch.maximum((e.y - e.lower - 0.001).abs() - 0.0025, (e.out.abs() - 0.86) * i["eye_rx"])
    return paint(img, cover(rim, v.pixel, 3) * e.seen * 0.40 * (1 - e.blink), deep * 0.75)


def brows(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Brows: fullest at the inner third, gently arched, thinning to the temple."""
    mask = cover(head_shape(v, i, m), v.pixel)
    for side in (-1.0, 1.0):
        u = (v.xf - side * (i["eye_dx"] + 0.006)) * side / i["brow_len"]
        bow = torch.where(u > 0.25, 0.052, 0.010) * (u - 0.25) ** 2 * i["brow_arch"]
        mid = i["brow_y"] - 0.034 * m["brow"] + bow + 0.030 * m["brow_tilt"] * u
        thick = i["brow_t"] * (1 - 0.65 * ramp(-0.1, 1.0, u)) * (0.70 + 0.30 * ramp(-1.0, -0.55, u))
        line = torch.maximum((v.yf - mid).abs() - thick * 0.58, (u.abs() - 1) * i["brow_len"])
        img = paint(img, cover(line, v.pixel, 2.6) * mask * 0.90, i["brow_color"])
    return img


def glasses(img: Tensor, v: View, i: Table, m: Table) -> Tensor:
    """Dark full-rim frames with a bridge, temples and a hint of glare."""
    on, px = i["glasses"], v.pixel
    x, y = v.xf - 0.025 * torch.sin(m["yaw"]), v.yf - i["eye_y"] - 0.012
    gap = i["eye_dx"] + 0.004
    corner = i["glass_ry"] * i["glass_round"]
    lens = torch.minimum(*(round_box(x - s * gap, y, i["glass_rx"], i["glass_ry"], corner) for s in (-1.0, 1.0)))
    bridge = torch.maximum(
        (y + 0.030 - 0.8 * x * x).abs() - 0.008, x.abs() - (gap - i["glass_rx"]).clamp_min(0.01) - 0.004
    )
    arm = torch.maximum(gap + i["glass_rx"] - x.abs(), x.abs() - cylinder(i) * 0.97)
    arm = torch.maximum((y + 0.035).abs() - 0.010, arm)
    rim = torch.minimum(torch.minimum(lens.abs() - 0.0105, bridge), arm)
    inside = cover(lens, px)
    face = cover(head_shape(v, i, m) - 0.03, px)
    glare = ramp(0.05, 0.0, (x * 0.9 + y + 0.02).abs() - 0.03) * inside
    img = paint(img, (inside * 0.05 + glare * 0.09) * on, tint(img, 1.0, 1.0, 1.0))
    img = shade(img, cover(rim - 0.012, px, 8) * on * face * (1 - cover(rim, px)), 0.10)
    dark = i["cloth2"] * 0.22 + 0.07
    on_dark_skin = ramp(0.46, 0.38, i["skin"].mean(1, keepdim=True))
    return paint(img, cover(rim, px, 1.2) * on * face, dark + (tint(img, 0.74, 0.61, 0.42) - dark) * on_dark_skin)

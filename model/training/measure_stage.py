"""Stage `measure`: networks that read a picture. One may serve losses, the other only evaluation.

A meter returns the renderer's motion parameters and an identity vector. The evaluation meter has its own seed and
widths, and nothing is ever trained against it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.training import render
from model.training.clips import Renderer, draw_identities, random_motion
from model.training.figures import correlation
from model.training.sitting import DEVICE, Sitting, adamw, autocast, load_shards, save_shards, set_rate

READ = (
    "jaw", "open", "width", "round", "press", "ftuck", "teeth", "smile", "blink", "gaze_x", "gaze_y",
    "brow", "brow_tilt", "yaw", "pitch", "roll", "tx", "ty", "aperture",
)  # fmt: skip
SCALE = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0.3, 1, 1, 0.3, 0.15, 0.1, 0.05, 0.05, 0.1])
IDENTITY = 64
BEARD_SHARE = 0.2
CLASSES = "classes"
"""Name under which the identities' directions are stored beside the meter's weights, for --resume."""
CROP = (96, 224, 64, 192)
"""Mouth region of a 256 px picture: top, bottom, left, right."""


def _conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(8, b), nn.SiLU())


class Meter(nn.Module):
    """[N, 3, 256, 256] in 0..1 to motion parameters [N, len(READ)] and identity vectors [N, 64]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.face = nn.Sequential(
            _conv(48, w), _conv(w, w), _conv(w, w + w // 2, 2), _conv(w + w // 2, w + w // 2),
            _conv(w + w // 2, 2 * w, 2), _conv(2 * w, 2 * w), _conv(2 * w, 3 * w, 2), _conv(3 * w, 3 * w),
        )  # fmt: skip
        self.mouth = nn.Sequential(
            _conv(12, w), _conv(w, w, 2), _conv(w, w + w // 2), _conv(w + w // 2, 2 * w, 2), _conv(2 * w, 2 * w, 2)
        )
        self.read = nn.Sequential(nn.Linear((3 * w + 2 * w) * 64, 256), nn.SiLU(), nn.Linear(256, len(READ)))
        self.who = nn.Sequential(nn.Linear(3 * w * 64, 256), nn.SiLU(), nn.Linear(256, IDENTITY))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        if picture.shape[-1] != 256:
            picture = F.interpolate(picture, (256, 256), mode="bilinear", antialias=True)
        x = (picture * 2 - 1).contiguous(memory_format=torch.channels_last)
        top, bottom, left, right = CROP
        face = self.face(F.pixel_unshuffle(x, 4)).flatten(1)
        mouth = self.mouth(F.pixel_unshuffle(x[..., top:bottom, left:right], 2)).flatten(1)
        return self.read(torch.cat([face, mouth], 1)) * SCALE.to(x.device), F.normalize(self.who(face), dim=1)


def blemish(x: Tensor) -> Tensor:
    """What a decoder does to a picture: blur, gain, noise."""
    n = x.shape[0]
    k = 2 + int(torch.randint(0, 2, ()))
    soft = F.interpolate(F.avg_pool2d(x, k), x.shape[-1], mode="bilinear")
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, device=x.device))
    x = x * (1 + 0.05 * torch.randn(n, 3, 1, 1, device=x.device))
    return x + 0.03 * torch.randn_like(x) * torch.rand(n, 1, 1, 1, device=x.device)


def _render_set(count: int, identities: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8, truth [n, len(READ)], identity index."""
    gen = torch.Generator(DEVICE).manual_seed(seed)
    renderer = Renderer(256, batch)
    table = draw_identities(identities, seed, hero_share=0.0, beard_share=BEARD_SHARE)
    pictures = torch.empty(count, 3, 256, 256, dtype=torch.uint8, device=DEVICE)
    truth, who = torch.empty(count, len(READ), device=DEVICE), torch.empty(count, dtype=torch.long, device=DEVICE)
    for low in range(0, count, batch):
        part = slice(low, min(count, low + batch))
        n = part.stop - part.start
        index = torch.randint(0, identities, (n,), generator=gen, device=DEVICE)
        motion = random_motion(n, gen)
        image, _, _, aperture = renderer.frames(render.take(table, index), motion)
        pictures[part], who[part] = image, index
        truth[part] = torch.stack([motion[k] for k in READ[:-1]] + [aperture], 1)
    return pictures, truth, who


def run(
    work: Path, seconds: float, smoke: bool = False, resume: bool = False, evaluation: bool = True
) -> dict[str, float]:
    """Train one meter; `evaluation` picks the seed and widths of the ruler."""
    name = "meter_eval" if evaluation else "meter"
    torch.manual_seed(4242 if evaluation else 77)
    count, identities, batch = (48, 8, 8) if smoke else (240_000, 3000, 64)
    pictures, truth, who = _render_set(count, identities, batch, 771 if evaluation else 772)
    print(f"{name}: {count} frames rendered", flush=True)
    held = max(batch, count // 50)
    meter = Meter(64 if evaluation else 48).to(DEVICE, memory_format=torch.channels_last)
    classes = nn.Parameter(F.normalize(torch.randn(identities, IDENTITY, device=DEVICE), dim=1))
    if resume:
        stored, _ = load_shards(work / name)
        classes.data = stored.pop(CLASSES).to(DEVICE)
        meter.load_state_dict(stored)
    optimiser = adamw([*meter.parameters(), classes])
    sitting, unit = Sitting(name, seconds), 1 / SCALE.to(DEVICE)
    size = 8 if smoke else 192
    while not sitting.done:
        i = torch.randint(held, count, (size,), device=DEVICE) if count > held else torch.arange(size, device=DEVICE)
        x = pictures[i].float() / 255
        if sitting.iteration % 2:
            x = blemish(x)
        set_rate(optimiser, sitting.rate(1e-3))
        with autocast():
            read, vector = meter(x)
            logits = 16 * vector @ F.normalize(classes, dim=1).T
        loss = F.smooth_l1_loss(read.float() * unit, truth[i] * unit, beta=0.1)
        loss = loss + 0.03 * F.cross_entropy(logits.float(), who[i])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if sitting.tick(loss):
            sitting.report()
    meter.eval()
    figures = _held_out(meter, pictures[:held], truth[:held], who[:held])
    sitting.report(str(figures))
    save_shards(work / name, meter.state_dict() | {CLASSES: classes}, figures | {"width": 64 if evaluation else 48})
    return figures


@torch.no_grad()
def _held_out(meter: Meter, pictures: Tensor, truth: Tensor, who: Tensor) -> dict[str, float]:
    with autocast():
        out = [meter(p.float() / 255) for p in pictures.split(64)]
    read, vector = torch.cat([o[0] for o in out]).float(), torch.cat([o[1] for o in out]).float()
    figures = {k: round(correlation(read[:, i], truth[:, i]).item(), 3) for i, k in enumerate(READ)}
    cosine, same = vector @ vector.T, who[:, None] == who[None]
    off = ~torch.eye(len(who), dtype=torch.bool, device=who.device)
    if (same & off).any():
        figures["cosine_same"] = round(cosine[same & off].mean().item(), 3)
    figures["cosine_other"] = round(cosine[~same].mean().item(), 3)
    return figures

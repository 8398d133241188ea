"""Streams through the real path (rings, steps, streaming decoder), many at once, read by the evaluation meter.

Letters: B streams, n blocks, T = 12 n pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.config import ModelConfig
from model.denoiser import Denoiser
from model.sampler import NoiseSource
from model.seams import soften_seam
from model.training.measure_stage import Meter
from model.training.sitting import DEVICE, autocast
from model.training.teacher import Student
from model.vae import LightVAE


@dataclass(frozen=True, slots=True)
class Rollout:
    """What was measured of B streams."""

    read: Tensor
    """[B, T, len(READ)] the meter's readings."""
    who: Tensor
    """[B, n, 64] identity vector of one picture a block."""
    inside: Tensor
    """[B, n] mean picture difference within a block, 0..1."""
    seam: Tensor
    """[B, n] picture difference across the block's start."""
    sharpness: Tensor
    """[B, n] Laplacian energy of one picture a block."""
    colour: Tensor
    """[B, n, 9] medians of background, skin and clothes patches, 0..255."""
    kept: dict[int, Tensor]
    """Pictures [B, 12, 3, S, S] uint8 of the asked blocks."""


def laplacian(pictures: Tensor) -> Tensor:
    """Mean squared Laplacian of the grey picture: [B, 3, H, W] to [B]."""
    g = pictures.mean(1)
    edge = 4 * g[:, 1:-1, 1:-1] - g[:, :-2, 1:-1] - g[:, 2:, 1:-1] - g[:, 1:-1, :-2] - g[:, 1:-1, 2:]
    return edge.square().mean((1, 2))


def _patches(pictures: Tensor) -> Tensor:
    """Medians of background, skin and clothes: [B, 3, H, W] to [B, 9], 0..255."""
    s = pictures.shape[-1]
    boxes = ((0.0, 0.10, 0.02, 0.12), (0.50, 0.58, 0.45, 0.55), (0.92, 1.0, 0.3, 0.7))
    parts = [pictures[:, :, int(a * s) : int(b * s), int(c * s) : int(d * s)].flatten(2) for a, b, c, d in boxes]
    return torch.cat([p.median(2).values for p in parts], 1) * 255


@torch.inference_mode()
def roll(
    student: Student,
    vae: LightVAE,
    meter: Meter,
    config: ModelConfig,
    references: Tensor,
    prompts: list[str],
    features: Tensor,
    pose: Tensor,
    sigmas: tuple[float, ...],
    keep: frozenset[int] = frozenset(),
    history: str | None = None,
    seed: int = 1,
) -> Rollout:
    """Generate n blocks for B streams.

    Args:
        references: [B, z, 1, h, w]. features: [B, layers, dim, 12 n]. pose: [B, channels, 3 n].
        sigmas: denoising levels. keep: blocks whose pictures are handed back. history: overrides the ring policy.
    """
    stream = replace(config.stream, history=history or config.stream.history)
    batch, blocks = features.shape[0], features.shape[-1] // 12
    height, width = references.shape[-2:]
    noise = [NoiseSource(seed + i, (references.shape[1], 3, height, width)) for i in range(batch)]
    rows: dict[str, list[Tensor]] = {k: [] for k in ("read", "who", "inside", "seam", "sharpness", "colour")}
    kept, last = {}, None
    with autocast():
        denoiser = Denoiser(student.dit, stream, sigmas, height, width)
        text = student.dit.text_kv(student.text(student.text.token_ids(prompts).to(DEVICE)))
        state = denoiser.start(text, references.float())
        memory, before = vae.primed_state(references.float()), None
        for b in range(blocks):
            sound = student.dit.audio_condition(features[:, None, :, :, 12 * b : 12 * b + 12].float())
            turn = pose[:, :, 3 * b : 3 * b + 3, None, None].float()
            added = student.dit.pose(turn, 3, height, width)
            start = torch.cat([s.block(b) for s in noise]).to(DEVICE)
            z = denoiser.block(state, b, start, sound, added, int(stream.sink_distance)).float()
            y, memory = vae.decode(z, memory)
            y, before = soften_seam(y.float(), before, stream.seam_frames, stream.seam_threshold)
            y = (y.float().transpose(1, 2) / 2 + 0.5).clamp(0, 1)
            read, who = meter(y.flatten(0, 1))
            step = (y[:, 1:] - y[:, :-1]).abs().mean((2, 3, 4))
            rows["read"].append(read.float().unflatten(0, (batch, 12)))
            rows["who"].append(who.float().unflatten(0, (batch, 12))[:, 5])
            rows["inside"].append(step.mean(1))
            rows["seam"].append(step.mean(1) if last is None else (y[:, 0] - last).abs().mean((1, 2, 3)))
            rows["sharpness"].append(laplacian(y[:, 5]))
            rows["colour"].append(_patches(y[:, 5]))
            last = y[:, -1]
            if b in keep:
                kept[b] = (y * 255).round().to(torch.uint8).cpu()
    pile = {k: torch.stack(v, 1) for k, v in rows.items() if k != "read"}
    return Rollout(read=torch.cat(rows["read"], 1), kept=kept, **pile)

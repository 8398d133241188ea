"""Clips as latents: what the transformer is trained on, made once on the device and kept there.

Letters: N clips, n blocks, F latent frames per block, z latent channels, h and w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.audio import AudioEncoder
from model.training import render
from model.training.audio_stage import WINDOW
from model.training.augment import damage
from model.training.clips import (
    MOODS,
    ClipPlan,
    Renderer,
    SpeechSet,
    box_mask,
    draw_identities,
    plan_clips,
    random_motion,
)
from model.training.sitting import DEVICE, autocast
from model.vae import LightVAE

WARM_FRAMES = 8
"""Still pictures in front of a clip, so that its first latents are steady."""
REFERENCES = 6


@dataclass(slots=True)
class LatentSet:
    """Training material in device memory."""

    latents: Tensor
    """[N, n, z, F, h, w] float16, normalised."""
    references: Tensor
    """[N, REFERENCES, z, 1, h, w] float16; the first is a neutral portrait."""
    weight: Tensor
    """[N, n, F, h, w] float16 loss weight: mouth and eyes."""
    features: Tensor
    """[V, N, layers, dim, 12 n] float16, variant 0 undamaged."""
    pose: Tensor
    """[N, channels, F n] pose condition."""
    prompts: list[str]
    """N prompts."""
    plan: ClipPlan


@torch.no_grad()
def encode_clips(vae: LightVAE, video: Tensor) -> Tensor:
    """Video uint8 [B, T, 3, H, W] to latents [B, z, T/4, h, w] float16, after a still lead."""
    x = torch.cat([video[:, :1].expand(-1, WARM_FRAMES, -1, -1, -1), video], 1).float() / 127.5 - 1
    with autocast():
        return vae.encode(x.transpose(1, 2))[0][:, :, WARM_FRAMES // 4 :].half()


@torch.no_grad()
def encode_portraits(vae: LightVAE, pictures: Tensor) -> Tensor:
    """Pictures uint8 [N, 3, H, W] to reference latents [N, z, 1, h, w] float16."""
    with autocast():
        return torch.cat([vae.reference_latent(p.float() / 127.5 - 1).half() for p in pictures.split(32)])


@torch.no_grad()
def block_features(encoder: AudioEncoder, wave: Tensor, blocks: int, batch: int = 512) -> Tensor:
    """Features exactly as live windows give them.

    Args:
        wave: [B, left + blocks * 7680 + look-ahead] gated sound.

    Returns:
        [B, layers, dim, 12 * blocks] float16.
    """
    windows = wave.unfold(1, WINDOW.samples, WINDOW.block_samples)[:, :blocks].flatten(0, 1)
    with autocast():
        parts = [encoder.window_features(w).half() for w in windows.split(batch)]
    return torch.cat(parts).unflatten(0, (-1, blocks)).permute(0, 2, 3, 1, 4).flatten(3)


def window_wave(plan: ClipPlan, damaged: bool) -> Tensor:
    """Gated sound of a plan, trimmed to whole windows: [B, samples]."""
    wave = damage(plan.wave) if damaged else plan.wave
    return (wave * plan.gate)[:, : plan.wave.shape[1]]


def choose_prompts(mood: Tensor, seed: int) -> list[str]:
    gen = torch.Generator().manual_seed(seed)
    words = [m[1] for m in MOODS.values()]
    return [words[m][int(torch.randint(0, len(words[m]), (), generator=gen))] for m in mood.tolist()]


def neutral_motion(count: int, gen: torch.Generator) -> dict[str, Tensor]:
    """The expression of a portrait: at rest, looking at the viewer, with some smile."""
    motion = render.neutral(count, DEVICE)
    motion["smile"] = 0.35 * torch.rand(count, generator=gen, device=DEVICE)
    return motion


@torch.no_grad()
def build(
    vae: LightVAE,
    encoder: AudioEncoder,
    speech: SpeechSet,
    count: int,
    blocks: int,
    size: int,
    seed: int,
    variants: int,
    hero_share: float,
    keep_video: bool = False,
    beard_share: float = 0.0,
    quiet_gain: float = 1.0,
) -> tuple[LatentSet, dict[str, Tensor], Tensor | None]:
    """Plan, render and encode `count` clips; also the identities, and the pictures where asked for.

    Args:
        hero_share, beard_share: see `draw_identities`.
        quiet_gain: factor on the mouth's loss weight in latent frames where nobody speaks.
    """
    renderer, gen = Renderer(size), torch.Generator(DEVICE).manual_seed(seed + 5)
    plan = plan_clips(speech, count, blocks * 12, seed)
    identity, motion = draw_identities(count, seed + 1, hero_share, beard_share), plan.motion()
    latents, references, weights, videos = [], [], [], []
    chunk = 32
    for low in range(0, count, chunk):
        part = slice(low, min(low + chunk, count))
        own = {k: v[part] for k, v in identity.items()}
        n = part.stop - part.start
        video, mouth, eyes, _ = renderer.clips(own, {k: v[part] for k, v in motion.items()})
        z = encode_clips(vae, video)
        latents.append(z.unflatten(2, (blocks, 3)).transpose(1, 2))
        gain = torch.where(still_mouth(plan.curves[part]), quiet_gain, 1.0)
        weights.append(latent_weights(mouth, eyes, z.shape[-1], gain).unflatten(1, (blocks, 3)))
        again = torch.arange(n, device=DEVICE).repeat_interleave(REFERENCES)
        poses, calm = random_motion(n * REFERENCES, gen), neutral_motion(n * REFERENCES, gen)
        first = (torch.arange(n * REFERENCES, device=DEVICE) % REFERENCES) == 0
        poses = {k: torch.where(first, calm[k], v) for k, v in poses.items()}
        stills = renderer.frames(render.take(own, again), poses)[0]
        references.append(encode_portraits(vae, stills).unflatten(0, (n, REFERENCES)))
        if keep_video:
            videos.append(video)
    features = []
    for variant in range(variants):
        torch.manual_seed(seed + variant)
        waves = window_wave(plan, variant > 0)
        features.append(torch.cat([block_features(encoder, w, blocks) for w in waves.split(64)]))
    data = LatentSet(
        torch.cat(latents), torch.cat(references), torch.cat(weights), torch.stack(features), plan.pose,
        choose_prompts(plan.mood, seed), plan,
    )  # fmt: skip
    return data, identity, torch.cat(videos) if keep_video else None


def still_mouth(curves: Tensor) -> Tensor:
    """Latent frames [B, T/4] bool whose mouth rests all the time; curves [B, T, 8]."""
    return curves[..., :5].abs().amax(-1).unflatten(1, (-1, 4)).amax(2) < 0.02


def latent_weights(mouth: Tensor, eyes: Tensor, grid: int, mouth_gain: Tensor) -> Tensor:
    """Mouth x6, times `mouth_gain` [B, T/4], and eyes x3 in latent cells.

    Centres [B, T, 2], [B, T, 2, 2] to [B, T/4, grid, grid] float16.
    """
    mouth, eyes = mouth.unflatten(1, (-1, 4)).mean(2), eyes.unflatten(1, (-1, 4)).mean(2)
    box = torch.maximum(box_mask(eyes[..., 0, :], grid, 0.08, 0.07), box_mask(eyes[..., 1, :], grid, 0.08, 0.07))
    lips = (6 * mouth_gain - 1)[..., None, None] * box_mask(mouth, grid, 0.16, 0.12)
    return (1 + lips + 2 * box).half()

"""Stage `vae`: the light VAE on rendered clips.

Trained eager (one captured graph a step), since a compiled decoder was seen to spoil training on CUDA, and with Muon:
in 70 s on the same clips and layout it reached 32.7 dB where AdamW reached 29.5 (one run each).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from model.training.clips import Renderer, SpeechSet, box_mask, draw_identities, plan_clips
from model.training.figures import masked_psnr_db, psnr_db, save_png, sheet, ssim_map
from model.training.optimiser import Muon
from model.training.sitting import (
    DEVICE,
    Average,
    CapturedStep,
    Sitting,
    autocast,
    load_shards,
    save_shards,
)
from model.vae import LightVAE

FRAMES = 16
"""Pictures a sample; the first four may be a still, as at the start of a stream."""


class VideoPool:
    """Rendered clips in device memory, and random windows of them."""

    def __init__(self, speech: SpeechSet, count: int, frames: int, size: int, seed: int, hero_share: float) -> None:
        renderer = Renderer(size)
        plan = plan_clips(speech, count, frames, seed)
        self.video = torch.empty(count, frames, 3, size, size, dtype=torch.uint8, device=DEVICE)
        self.mouth = torch.empty(count, frames, 2, device=DEVICE)
        self.eyes = torch.empty(count, frames, 2, 2, device=DEVICE)
        identity, motion = draw_identities(count, seed + 1, hero_share), plan.motion()
        for low in range(0, count, 64):
            part = slice(low, min(low + 64, count))
            own = {k: v[part] for k, v in identity.items()}
            out = renderer.clips(own, {k: v[part] for k, v in motion.items()})
            self.video[part], self.mouth[part], self.eyes[part] = out[:3]

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Video [B, 3, T, S, S] in -1..1 and loss weights [B, T, S, S] (mean 1)."""
        count, length = self.video.shape[:2]
        i = torch.randint(0, count, (batch, 1), device=DEVICE)
        start = torch.randint(0, length - FRAMES + 1, (batch, 1), device=DEVICE)
        t = start + torch.arange(FRAMES, device=DEVICE)
        still = torch.rand(batch, 1, device=DEVICE) < 0.5
        t = torch.where(still, t.clamp(min=start + 4), t)
        x = self.video[i, t].float() / 127.5 - 1
        mouth, eyes = self.mouth[i, t], self.eyes[i, t]
        flip = torch.rand(batch, device=DEVICE) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1, 1), x.flip(-1), x)
        mirror = lambda c: torch.stack([1 - c[..., 0], c[..., 1]], -1)  # noqa: E731
        mouth = torch.where(flip.view(-1, 1, 1), mirror(mouth), mouth)
        eyes = torch.where(flip.view(-1, 1, 1, 1), mirror(eyes), eyes)
        return x.transpose(1, 2), region_weights(mouth, eyes, x.shape[-1])


def region_weights(mouth: Tensor, eyes: Tensor, grid: int) -> Tensor:
    """Mouth x5, eyes x3 on a grid, mean 1: [..., grid, grid]."""
    mask = 1 + 4 * box_mask(mouth, grid, 0.15, 0.11)
    mask = mask + 2 * torch.maximum(
        box_mask(eyes[..., 0, :], grid, 0.075, 0.06), box_mask(eyes[..., 1, :], grid, 0.075, 0.06)
    )
    return mask / mask.mean((-2, -1), keepdim=True)


def reconstruction_loss(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y, x [B, 3, T, S, S] in -1..1; weight [B, T, S, S]."""
    a, b = y.transpose(1, 2).flatten(0, 1).float(), x.transpose(1, 2).flatten(0, 1)
    w = weight.flatten(0, 1)[:, None]
    d = a - b
    gx, gy = d[..., 1:] - d[..., :-1], d[..., 1:, :] - d[..., :-1, :]
    dt = d.unflatten(0, weight.shape[:2])
    dt = (dt[:, 1:] - dt[:, :-1]).flatten(0, 1)
    wt = weight[:, 1:].flatten(0, 1)[:, None]
    similarity = 1 - ssim_map(a * 0.5 + 0.5, b * 0.5 + 0.5)
    loss = (d.abs() * w).mean() + 2 * (d.square() * w).mean() + 0.3 * (similarity * w).mean()
    loss = loss + 0.5 * (gx.abs() * w[..., 1:]).mean() + 0.5 * (gy.abs() * w[..., 1:, :]).mean()
    return loss + 0.5 * (dt.abs() * wt).mean()


@torch.no_grad()
def evaluate(vae: LightVAE, pool: VideoPool, frames: int = 24) -> dict[str, float]:
    whole, mouth, eyes, similar = [], [], [], []
    for low in range(0, pool.video.shape[0], 4):
        x = pool.video[low : low + 4, :frames].float() / 255
        with autocast():
            y = vae.decode(vae.encode((x * 2 - 1).transpose(1, 2))[0])[0].transpose(1, 2).float()
        x, y = x[:, 8:], (y / 2 + 0.5).clamp(0, 1)[:, 8:]
        m, e = pool.mouth[low : low + 4, 8:frames], pool.eyes[low : low + 4, 8:frames]
        whole.append(psnr_db(y, x))
        mouth.append(masked_psnr_db(y, x, box_mask(m, x.shape[-1], 0.15, 0.11)))
        eyes.append(masked_psnr_db(y, x, box_mask(e[..., 0, :], x.shape[-1], 0.075, 0.06)))
        similar.append(ssim_map(y.flatten(0, 1), x.flatten(0, 1)).mean((1, 2, 3)))
    figures = dict(psnr=whole, mouth=mouth, eye=eyes, ssim=similar)
    return {k: round(torch.cat(v).mean().item(), 4) for k, v in figures.items()}


def run(work: Path, seconds: float, smoke: bool = False, resume: bool = False, clips: int = 1600) -> dict[str, float]:
    size, count, frames, held, batch = (64, 4, 32, 2, 2) if smoke else (256, clips, 96, 48, 16)
    speech, held_speech = SpeechSet.load(work / "speech.npz"), SpeechSet.load(work / "speech_held.npz")
    pool = VideoPool(speech, count, frames, size, 11, 0.1)
    test = VideoPool(held_speech, held, frames, size, 900_001, 0.0)
    print(f"vae: {count * frames} frames rendered", flush=True)
    vae = LightVAE().to(DEVICE, memory_format=torch.channels_last)
    if resume:
        vae.load_state_dict(load_shards(work / "vae")[0])
        vae.mean.zero_(), vae.std.fill_(1)
    optimiser = Muon(vae, 0.02, 2e-3, exclude=("conv_in", "conv_out"))
    noise = torch.full((1,), 0.02, device=DEVICE)
    loss_fn = torch.compile(reconstruction_loss) if DEVICE.type == "cuda" else reconstruction_loss

    def step(x: Tensor, weight: Tensor) -> Tensor:
        with autocast():
            z, _ = vae.encode(x)
            spread = z.detach().float().std((0, 2, 3, 4), keepdim=True).to(z.dtype)
            y, _ = vae.decode(z + torch.randn_like(z) * spread * noise.to(z.dtype))
        loss = loss_fn(y.float(), x, weight) + 1e-4 * z.float().square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    def prepare(sitting: Sitting) -> None:
        noise.fill_(0.02 if sitting.share < 0.4 and not resume else 0.08)

    captured = capture(step, optimiser, pool.sample(batch))
    sitting = Sitting("vae", seconds, 20 if not smoke else 3)
    peak = 0.5 if resume else 1.0
    fit(vae, captured, optimiser, sitting, lambda: pool.sample(batch), lambda: evaluate(vae, test), peak, prepare)
    measure_latents(vae, pool)
    figures = evaluate(vae, test)
    sitting.report(f"final {figures}")
    save_shards(work / "vae", vae.state_dict(), figures | {"steps": sitting.iteration, "seconds": seconds})
    save_pictures(vae, test, work / "pictures" / "vae_heldout.png")
    return figures


def capture(step: Callable[..., Tensor], optimiser: Muon, batch: tuple[Tensor, ...]) -> CapturedStep:
    """The step as one graph; it is warmed up at a small rate."""
    optimiser.set_rates(0.01)
    return CapturedStep(step, batch)


def fit(
    module: nn.Module,
    captured: CapturedStep,
    optimiser: Muon,
    sitting: Sitting,
    sample: Callable[[], tuple[Tensor, ...]],
    judge: Callable[[], dict[str, float]],
    peak: float,
    prepare: Callable[[Sitting], None] = lambda sitting: None,
) -> None:
    """Train `module` for the sitting; it is left with its last or its averaged weights, whichever `judge` prefers.

    Args:
        sample: a batch of the captured step. judge: figures, of which `psnr` decides.
        peak: share of the optimiser's peak rates. prepare: called before every step.
    """
    average = Average(module, 0.03)
    while not sitting.done:
        optimiser.set_rates(sitting.rate(peak, 100))
        prepare(sitting)
        loss = captured(*sample())
        if sitting.iteration % 4 == 0:
            average.update()
        if sitting.tick(loss):
            sitting.report(str(judge()))
    live, live_psnr = {k: v.clone() for k, v in module.state_dict().items()}, judge()["psnr"]
    module.load_state_dict(average.values)
    averaged_psnr = judge()["psnr"]
    print(f"{sitting.name}: live {live_psnr} dB, averaged {averaged_psnr} dB", flush=True)
    if live_psnr > averaged_psnr:
        module.load_state_dict(live)


@torch.no_grad()
def measure_latents(vae: LightVAE, pool: VideoPool) -> None:
    """Freeze the per-channel mean and std of the latents."""
    vae.mean.zero_(), vae.std.fill_(1)
    parts = []
    for low in range(0, min(256, pool.video.shape[0]), 8):
        x = pool.video[low : low + 8, :32].float() / 127.5 - 1
        with autocast():
            parts.append(vae.encode(x.transpose(1, 2))[0].float())
    z = torch.cat(parts)
    vae.mean.copy_(z.mean((0, 2, 3, 4)))
    vae.std.copy_(z.std((0, 2, 3, 4)))
    print(f"latent std by channel: {vae.std.min().item():.3f} to {vae.std.max().item():.3f}", flush=True)


@torch.no_grad()
def save_pictures(vae: LightVAE, pool: VideoPool, path: Path) -> None:
    """Rendered pictures above decoded ones."""
    k = min(8, pool.video.shape[0])
    x = pool.video[:k, :24].float() / 255
    with autocast():
        y = (vae.decode(vae.encode((x * 2 - 1).transpose(1, 2))[0])[0].transpose(1, 2).float() / 2 + 0.5).clamp(0, 1)
    save_png(path, sheet([list(x[:, 20]), list(y[:, 20])]))

"""Stage `decoder`: a second, smaller decoder for the light VAE's finished latents, for machines without wide vectors.

The encoder and the full decoder stay as they are; the small one learns to draw what the encoder saw, with noise on the
latents as the transformer leaves some.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.training.clips import SpeechSet
from model.training.optimiser import Muon
from model.training.sitting import DEVICE, Sitting, autocast, load_shards, save_shards
from model.training.vae_stage import VideoPool, capture, evaluate, fit, reconstruction_loss, save_pictures
from model.vae import LightVAE

WIDTHS, BLOCKS = (128, 64, 32), (3, 2, 1)
NOISE = 0.08
"""Standard deviation of the noise on latents of deviation one."""


def run(work: Path, seconds: float, smoke: bool = False, resume: bool = False, clips: int = 1600) -> dict[str, float]:
    """Train the small decoder on rendered clips; leaves `decoder` shards beside the VAE's in `work`."""
    size, count, frames, held, batch = (64, 4, 32, 2, 2) if smoke else (256, clips, 96, 48, 16)
    pool = VideoPool(SpeechSet.load(work / "speech.npz"), count, frames, size, 12, 0.1)
    test = VideoPool(SpeechSet.load(work / "speech_held.npz"), held, frames, size, 900_001, 0.0)
    print(f"decoder: {count * frames} frames rendered", flush=True)
    vae = LightVAE(small_widths=WIDTHS, small_blocks=BLOCKS).to(DEVICE, memory_format=torch.channels_last)
    vae.load_state_dict(load_shards(work / "vae")[0], strict=False)
    full = evaluate(vae, test)
    decoder, vae.uses_small = vae.small_decoder, True
    if resume:
        decoder.load_state_dict(load_shards(work / "decoder")[0])
    optimiser = Muon(decoder, 0.02, 2e-3, exclude=("conv_in", "conv_out"))
    loss_fn = torch.compile(reconstruction_loss) if DEVICE.type == "cuda" else reconstruction_loss

    def step(x: Tensor, weight: Tensor) -> Tensor:
        with autocast():
            with torch.no_grad():
                z, _ = vae.encode(x)
            y, _ = vae.decode(z + NOISE * torch.randn_like(z))
        loss = loss_fn(y.float(), x, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    captured = capture(step, optimiser, pool.sample(batch))
    sitting = Sitting("decoder", seconds, 20 if not smoke else 3)
    peak = 0.5 if resume else 1.0
    fit(decoder, captured, optimiser, sitting, lambda: pool.sample(batch), lambda: evaluate(vae, test), peak)
    figures = evaluate(vae, test)
    sitting.report(f"final {figures}; the full decoder {full}")
    note = {"full": full, "steps": sitting.iteration, "seconds": seconds}
    save_shards(work / "decoder", decoder.state_dict(), figures | note)
    save_pictures(vae, test, work / "pictures" / "decoder_heldout.png")
    return figures

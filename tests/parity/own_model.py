"""A random model and a run over it, recorded once our implementation agreed with the published one.

The recording stands in for the golden folder in clones that lack it: it says that what agreed then is still what runs.
It covers the rings past their wrap, frame packing, two speakers, pose, sink replacement and both history policies.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.config import DiTConfig, StreamConfig
from model.denoiser import Denoiser
from model.dit import DiT
from model.sampler import published_sigmas

RECORDED = Path(__file__).parent / "own" / "stream.safetensors"
FRAMES, HEIGHT, WIDTH, BLOCKS, RING = 3, 8, 8, 5, 2
CONFIG = DiTConfig(
    dim=32,
    ffn_dim=40,
    num_heads=2,
    num_layers=2,
    in_dim=4,
    out_dim=4,
    freq_dim=16,
    text_dim=12,
    text_len=6,
    audio_dim=6,
    audio_layers=3,
    audio_inject_layers=(0, 1),
    cond_dim=3,
)
RUNS = {
    "same_step": StreamConfig(ring_blocks=RING),
    "replaced": StreamConfig(ring_blocks=RING, replace_sink=True),
    "clean": StreamConfig(ring_blocks=RING, history="clean"),
}


def make_weights() -> dict[str, Tensor]:
    """Every parameter random, as float16: small in the file and exact in float32."""
    g = torch.Generator().manual_seed(20)
    weights = {}
    for name, p in DiT(CONFIG).state_dict().items():
        scale = 0.3 if p.dim() < 2 or "modulation" in name or "token" in name else 0.9 * p[0].numel() ** -0.5
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[name] = (centre + scale * torch.randn(p.shape, generator=g)).half()
    return weights


def make_inputs() -> dict[str, Tensor]:
    """Noise, sound of two speakers with a mask, prompt, portrait, past and pose; float16 as well."""
    g = torch.Generator().manual_seed(21)
    c, size = CONFIG, (HEIGHT, WIDTH)
    shapes = {
        "noise": (BLOCKS, 1, c.in_dim, FRAMES, *size),
        "audio": (BLOCKS, 1, 2, c.audio_layers, c.audio_dim, 4 * FRAMES),
        "mask": (1, 2, FRAMES, HEIGHT // 2, WIDTH // 2),
        "text": (1, 4, c.text_dim),
        "reference": (1, c.in_dim, 1, *size),
        "motion": (1, c.in_dim, 7, *size),
        "pose": (BLOCKS, 1, c.cond_dim, FRAMES, *size),
    }
    return {name: torch.randn(shape, generator=g).half() for name, shape in shapes.items()}


@torch.inference_mode()
def run(weights: dict[str, Tensor], inputs: dict[str, Tensor], stream: StreamConfig) -> Tensor:
    """Latents of all blocks, [BLOCKS, channels, frames, h, w]."""
    dit = DiT(CONFIG).eval()
    dit.load_state_dict({k: v.float() for k, v in weights.items()})
    x = {k: v.float() for k, v in inputs.items()}
    denoiser = Denoiser(dit, stream, published_sigmas(3), HEIGHT, WIDTH)
    state = denoiser.start(dit.text_kv(x["text"]), x["reference"], x["motion"])
    out = []
    for b in range(BLOCKS):
        audio = dit.audio_condition(x["audio"][b], x["mask"])
        pose = dit.pose(x["pose"][b], FRAMES, HEIGHT, WIDTH)
        out.append(denoiser.block(state, 9 * b, x["noise"][b], audio, pose, 4 + b))
    return torch.cat(out)

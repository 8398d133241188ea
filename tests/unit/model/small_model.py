"""A complete model small enough for unit tests: every part real, every number tiny."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from model.config import (
    AudioConfig,
    DiTConfig,
    ModelConfig,
    MotionConfig,
    SamplerConfig,
    StreamConfig,
    TextConfig,
    VAEConfig,
)
from model.generator import Generator
from model.interface import BlockRequest, SessionSpec
from model.profile import Profile
from model.weights import build_modules


def config(**changes: Any) -> ModelConfig:
    """Sizes of the small model; `stream`, `dit` and so on take a dict of changes to that part."""
    parts: dict[str, Any] = {
        "dit": DiTConfig(
            dim=32,
            ffn_dim=48,
            num_heads=2,
            num_layers=3,
            in_dim=8,
            out_dim=8,
            freq_dim=16,
            text_dim=16,
            text_len=6,
            audio_dim=16,
            audio_layers=2,
            audio_inject_layers=(0, 2),
            cond_dim=40,
            enable_framepack=False,
        ),
        "stream": StreamConfig(ring_blocks=2, sink_distance=8),
        "sampler": SamplerConfig(sigmas=(1.0, 0.5), light_sigmas=(1.0,)),
        "vae": VAEConfig(z_dim=8, stride=(4, 16, 16), encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)),
        "audio": AudioConfig(
            conv_width=8, dim=16, layers=1, heads=2, position_kernel=4, position_groups=4, left_samples=3200
        ),
        "text": TextConfig(dim=16, heads=2, vocab=64, max_len=6),
        "motion": MotionConfig(enabled=True),
    }
    plain = {k: changes.pop(k) for k in list(changes) if k not in parts}
    parts = {k: dataclasses.replace(v, **changes.get(k, {})) for k, v in parts.items()}
    return ModelConfig(**{"name": "small", "width": 64, "height": 64, **parts, **plain})


def modules(cfg: ModelConfig, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Random modules whose transformer really answers to its inputs."""
    torch.manual_seed(seed)
    built = build_modules(cfg)
    for name, p in built["dit"].named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3 if p.dim() < 2 else 0.9 * p[0].numel() ** -0.5)
    return built


def generator(cfg: ModelConfig | None = None, noise: str = "block", **changes: Any) -> Generator:
    """A small generator without the start-up timing."""
    cfg = cfg or config(**changes)
    return Generator(cfg, modules(cfg), Profile.untimed(cfg), noise)


def portrait(seed: int = 0, height: int = 80, width: int = 72) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def spec(session: str = "a", *, face: int = 0, **changes: Any) -> SessionSpec:
    return SessionSpec(**{"session": session, "image": portrait(face), "prompt": "calm", "seed": 7, **changes})


def request(cfg: ModelConfig, block: int, session: str = "a", sound: int | None = None, **changes: Any) -> BlockRequest:
    """Request of a block whose window is seeded noise; the same block hears the same."""
    rng = np.random.default_rng(block if sound is None else sound)
    window = (0.1 * rng.standard_normal(cfg.window.samples)).astype(np.float32)
    return BlockRequest(**{"session": session, "block": block, "epoch": 0, "window": window, **changes})

"""The published 14B as one `ModelConfig`. Imports no torch."""

from __future__ import annotations

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import DiTConfig, ModelConfig, SamplerConfig, StreamConfig


def published(
    dit: DiTConfig | None = None,
    vae: WanVAEConfig | None = None,
    audio: XLSRAudioConfig | None = None,
    text: UMT5TextConfig | None = None,
    name: str = "Wan2.2-S2V-14B",
) -> ModelConfig:
    """The published model's policies around the published sizes, or around others of the same kinds.

    Args:
        dit, vae, audio, text: sizes as read from a folder; what is left out is the 14B's.
        name: shown to users.
    """
    return ModelConfig(
        name=name,
        width=704,
        height=384,
        fps=25,
        in_domain_psnr_db=0.0,  # the published VAE reproduces any picture
        dit=dit or DiTConfig(),
        stream=StreamConfig(
            frames_per_block=3,
            ring_blocks=4,
            history="same_step",
            sink_distance="random",
            sink_range=(4, 30),
            sink_time=30,
            replace_sink=True,
            evict="slot",
        ),
        sampler=SamplerConfig(),
        vae=vae or WanVAEConfig(),
        audio=audio or XLSRAudioConfig(),
        text=text or UMT5TextConfig(),
    )

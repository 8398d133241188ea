"""The published 14B as one `ModelConfig`, and the sizes that random weights come in. Imports no torch."""

from __future__ import annotations

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import DiTConfig, ModelConfig, SamplerConfig, StreamConfig
from model.errors import CheckpointError


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


def forged_config(size: str) -> ModelConfig:
    """Sizes of a forged model: the published ones, or numbers a laptop runs.

    Raises:
        CheckpointError: the name is unknown.
    """
    if size == "14b":
        return published(name="random:14b")
    if size != "mini":
        raise CheckpointError(f"the size {size!r} is unknown; choose mini or 14b")
    return published(
        dit=DiTConfig(
            dim=64,
            ffn_dim=96,
            num_heads=2,
            num_layers=4,
            freq_dim=32,
            text_dim=32,
            text_len=32,
            audio_dim=32,
            audio_layers=4,
            audio_inject_layers=(0, 2),
        ),
        vae=WanVAEConfig(base_width=8, width_multipliers=(1, 2, 2, 2)),
        audio=XLSRAudioConfig(
            conv_width=16, dim=32, ffn_dim=64, layers=3, heads=2, position_kernel=16, position_groups=2
        ),
        text=UMT5TextConfig(vocab=64, dim=32, head_dim=8, heads=4, ffn_dim=64, layers=2, max_len=32),
        name="random:mini",
    )

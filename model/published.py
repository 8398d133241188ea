"""The published 14B as one `ModelConfig`, the same in small, and sizes read from a folder's texts. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import DiTConfig, ModelConfig, SamplerConfig, StreamConfig
from model.errors import CheckpointError

CONFIG = "config.json"
SPEECH = "wav2vec2-large-xlsr-53-english"
RANDOM = "random:"
"""In front of the size of a forged model that is drawn in place."""


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


def early_config(checkpoint: str) -> ModelConfig:
    """What a stream of `random:…` or of a released folder is like, before anything is loaded.

    Only the folder's two configurations are read: sizes that weights alone tell are the published ones, and do not
    matter to pictures, pace and window.

    Raises:
        CheckpointError: a file is missing or describes another model; one sentence.
    """
    if checkpoint.startswith(RANDOM):
        return forged_config(checkpoint.removeprefix(RANDOM))
    folder = Path(checkpoint).expanduser()
    path = folder / SPEECH / CONFIG
    try:
        speech = XLSRAudioConfig.from_published(read_json(path))
        path = folder / CONFIG
        dit = DiTConfig.from_published(read_json(path), audio_layers=speech.layers + 1)
        text = UMT5TextConfig(dim=dit.text_dim, max_len=dit.text_len)
        return published(dit, audio=speech, text=text, name=folder.name)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}; copy the released file") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; copy the released file") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from the released checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy the released file")
    return values

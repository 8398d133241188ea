"""The sizes of whatever `model.checkpoint` names, read from its headers alone, as the planner takes them. No torch."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

from model.component_config import XLSRAudioConfig
from model.config import DiTConfig, ModelConfig, RunConfig, chosen_stream, tiny
from model.errors import UnsupportedError
from model.memory import Setting
from model.published import forged_config, published
from model.sampling import chosen_size

_RANDOM = "random:"
_LARGEST_HEADER = 100_000_000


def model_sizes(checkpoint: str) -> ModelConfig:
    """Configuration of a checkpoint; that of the published 14B where a folder is not there (yet) or tells nothing.

    Raises:
        CheckpointError: the random size is unknown.
        UnsupportedError: a file's own configuration cannot be read.
    """
    if checkpoint == "tiny":
        return tiny()
    if checkpoint.startswith(_RANDOM):
        return forged_config(checkpoint.removeprefix(_RANDOM))
    path = Path(checkpoint).expanduser()
    if checkpoint.endswith(".safetensors"):
        return _of_file(path)
    try:
        dit = DiTConfig.from_published(json.loads((path / "config.json").read_text(encoding="utf-8")))
        speech = next(path.glob("wav2vec2*/config.json"), None)
        audio = XLSRAudioConfig()
        if speech is not None:
            audio = XLSRAudioConfig.from_published(json.loads(speech.read_text(encoding="utf-8")))
        return published(dit=replace(dit, audio_layers=audio.layers + 1), audio=audio)
    except (OSError, ValueError, KeyError, TypeError):
        return published()


def _of_file(path: Path) -> ModelConfig:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(size))
        return ModelConfig.from_dict(json.loads(header["__metadata__"]["config"]))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UnsupportedError(f"checkpoint {path} cannot be read for planning ({error}); check the path") from error


def setting_of(run: RunConfig) -> Setting:
    """What a run configuration asks for, as the planner takes it.

    Raises:
        CheckpointError, UnsupportedError: as `model_sizes`, or size and model do not go together.
    """
    config = model_sizes(run.checkpoint)
    try:
        size = chosen_size(run.size, run.size_rule)
        if size is not None:
            config = replace(config, width=size[0], height=size[1])
        if run.fps:
            config = replace(config, fps=run.fps)
        config = replace(config, stream=chosen_stream(config, run))
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    light = run.steps == "light" and config.sampler.light_sigmas
    steps = run.num_steps or len(config.sampler.light_sigmas if light else config.sampler.sigmas)
    return Setting(config=config, steps=steps, guided=run.is_guided, text_on_host=run.text_device == "cpu")

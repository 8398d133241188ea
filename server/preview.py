"""What the stream will be like, known before the model's process has loaded: sizes, pace, and an expected latency.

A session's portrait is shown within a second of the first offer, while torch may still be importing. So the server
reads the sizes from the checkpoint's header, or a released folder's configurations (no weights, no torch). A missing or
foreign file is found here, at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.config import ModelConfig
from model.errors import CheckpointError
from model.geometry import Geometry
from model.interface import ModelInfo, WindowSpec
from model.published import RANDOM, early_config
from model.sampling import chosen_size
from server.config import ModelSection
from streaming.config import StreamingConfig
from streaming.stream import latency_target_s

ASSUMED_LOAD = 0.5
"""Share of a block's length that its computation is taken to need before it has been measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The stream to come."""

    geometry: Geometry
    window: WindowSpec

    def latency_s(self, config: StreamingConfig, info: ModelInfo | None) -> float:
        """Expected latency: by the model's own measurement if there is one."""
        if info is None:
            info = ModelInfo(
                name="",
                geometry=self.geometry,
                window=self.window,
                profile={},
                block_s=ASSUMED_LOAD * self.geometry.block_s,
                in_domain_psnr_db=0.0,
            )
        return latency_target_s(info, config)


def is_known_early(model: ModelSection) -> bool:
    """Whether sizes can be read from the checkpoint's header, as from our own; released folders have their loader."""
    name = model.checkpoint
    return model.kind == "fake" or not (name.startswith("random:") or _path(name).is_dir())


def preview_stream(model: ModelSection) -> Preview:
    """Look ahead.

    Raises:
        CheckpointError: the file is missing, broken, or no checkpoint; the text names it and the remedy.
    """
    if model.kind == "fake":
        return Preview(geometry=model.fake.geometry, window=model.fake.window)
    path = _path(model.checkpoint)
    is_ours = not (model.checkpoint.startswith(RANDOM) or path.is_dir())
    config = _read_config(path) if is_ours else early_config(model.checkpoint)
    try:
        if (size := chosen_size(model.size, model.size_rule)) is not None:
            width, height = size
            config = ModelConfig.from_dict(config.to_dict() | {"width": width, "height": height})
        return Preview(geometry=config.geometry, window=config.window)
    except ValueError as error:
        raise CheckpointError(f"model.size is {model.size}, which {path.name} cannot make: {error}") from error


def _path(name: str) -> Path:
    """Bare names are files of the package `model.checkpoints`; anything else is a path."""
    if "/" not in name and "\\" not in name and not name.endswith(".safetensors"):
        return Path(str(resources.files("model.checkpoints"))) / f"{name}.safetensors"
    return Path(name).expanduser()


def _read_config(path: Path) -> ModelConfig:
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist; check model.checkpoint")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the checkpoint {path} is broken ({error}); fetch or export it again") from error
    if "config" not in metadata:
        raise CheckpointError(f"{path} carries no configuration; use a checkpoint that 'avatarcast train export' wrote")
    try:
        return ModelConfig.from_dict(json.loads(metadata["config"]))
    except ValueError as error:
        raise CheckpointError(f"the configuration inside {path} does not fit this version: {error}") from error

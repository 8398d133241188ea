"""Recorded fixtures of the published implementation: where they are, who reads them, and what was read.

`GOLDEN_DIR` names the folder (default: `../shared/golden` beside the repository). It is not part of the repository.
A fixture is `NAME.json` plus, mostly, `NAME.safetensors`. Every size comes from the fixtures themselves.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import DiTConfig

READERS = {
    "weights": "every module below",
    "a_rope": "test_rope",
    "b_framepack": "test_parts",
    "c_audio_encoder": "test_parts",
    "d_audio_injector": "test_parts",
    "e_block": "test_block",
    "f_dit_rollout": "test_rollout",
    "g_generate_single": "test_loop",
    "h_generate_tpp": "test_loop",
    "i_scheduler": "test_sampler_parity",
    "j_size": "test_picture_size",
    "k_lora": "test_lora",
}
"""Which test module reads which fixture of the `dit` folder; one that is not listed fails `test_registry`."""

COMPONENT_READERS = {
    "vae": "test_components_vae",
    "t5": "test_components_text",
    "wav2vec2": "test_components_audio",
    "image": "test_components_image",
}
"""The same for the `components` folder, where a fixture is NAME.json, NAME_io.safetensors and NAME's weights."""

ATOL, RTOL = 2e-5, 1e-5


def golden_dir() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "golden"
    return Path(os.environ.get("GOLDEN_DIR") or default)


class Fixture:
    """One fixture: JSON values as `info`, tensors by name; remembers which tensors were asked for."""

    def __init__(self, folder: Path, name: str) -> None:
        assert name in READERS, f"add {name} to READERS"
        self.name = name
        self.info: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        file = folder / f"{name}.safetensors"
        self.tensors = load_file(file) if file.exists() else {}
        self.unread = set(self.tensors)

    def __getitem__(self, key: str) -> Tensor:
        self.unread.discard(key)
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with `prefix`, without it."""
        names = [k for k in self.tensors if k.startswith(prefix)]
        return {k[len(prefix) :]: self[k] for k in names}


class Component(Fixture):
    """One part of the `components` folder; its weights carry the names of the released files."""

    def __init__(self, folder: Path, name: str) -> None:
        assert name in COMPONENT_READERS, f"add {name} to COMPONENT_READERS"
        self.name = name
        self.info = json.loads((folder / f"{name}.json").read_text())
        self.tensors = load_file(folder / f"{name}_io.safetensors")
        self.unread = set(self.tensors)
        self.released = folder / name
        files = [f for f in (folder / f"{name}_weights.safetensors", self.released / "model.safetensors") if f.exists()]
        self.weights = load_file(files[0]) if files else {}

    def numbered(self, pattern: str) -> dict[str, re.Match[str]]:
        """Names of the tensors that a pattern matches in full."""
        found = {name: re.fullmatch(pattern, name) for name in self.tensors}
        return {name: match for name, match in found.items() if match}


def config_of(info: dict[str, Any], weights: Fixture, **changes: Any) -> DiTConfig:
    """The transformer that a fixture was recorded with."""
    published = info.get("model_config") or weights.info["model_config"]
    layers = weights.tensors["casual_audio_encoder.weights"].shape[1]
    return DiTConfig.from_published({**published, **changes}, audio_layers=layers)


def close(got: Tensor, wanted: Tensor, atol: float = ATOL, rtol: float = RTOL) -> None:
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)

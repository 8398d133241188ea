"""Checkpoints: what goes in comes out; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.config import RunConfig, tiny
from model.errors import CheckpointError
from model.weights import PARTS, checkpoint_path, load_checkpoint, read_metadata, save_checkpoint
from tests.unit.model.small_model import config, modules


@pytest.fixture(scope="module")
def built() -> tuple:
    cfg = config()
    return cfg, modules(cfg)


@pytest.fixture(scope="module")
def saved(built: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, built[1], built[0], {"lips": 0.8}, int8=True)
    return path


def rewrite(saved: Path, target: Path, change) -> Path:
    """A copy of a checkpoint with its tensors or metadata changed."""
    with safe_open(saved, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize(("int8", "tolerance"), [(False, 1e-3), (True, 1e-2), (("dit",), 1e-2)])
def test_round_trip(built: tuple, tmp_path: Path, int8, tolerance: float) -> None:
    cfg, parts = built
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, parts, cfg, {"lips": 0.8}, int8)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    read_cfg, read = load_checkpoint(path)
    assert read_cfg == cfg
    assert read_metadata(path) == (cfg, {"lips": 0.8})
    assert tuple(read) == PARTS
    for part in PARTS:
        own = parts[part].state_dict()
        for name, value in read[part].state_dict().items():
            assert value.dtype == own[name].dtype, name
            error = (value.float() - own[name].float()).abs().max() / own[name].float().abs().max().clamp_min(1e-9)
            assert error < tolerance, name
        assert not read[part].training
        assert not any(p.requires_grad for p in read[part].parameters())


def test_int8_halves_the_linear_layers(built: tuple, tmp_path: Path) -> None:
    cfg, parts = built
    sizes = {}
    for name, int8 in (("none", False), ("dit", ("dit",)), ("all", True)):
        save_checkpoint(tmp_path / name, parts, cfg, {}, int8)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["all"] < sizes["dit"] < sizes["none"]


def test_configuration_survives_json() -> None:
    cfg = tiny()
    assert type(cfg).from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t, m: t.pop("dit.head.head.bias"), "lacks 1 tensors .* dit.head.head.bias"),
        (lambda t, m: t.update({"dit.extra": torch.zeros(1)}), "1 tensors too many, first dit.extra"),
        (lambda t, m: t.update({"other.x": torch.zeros(1)}), "unknown tensor other.x"),
        (lambda t, m: t.update({"dit.head.modulation": torch.zeros(1, 2, 5)}), r"dit.head.modulation .* \[1, 2, 5\]"),
        (lambda t, m: t.pop("dit.head.head.weight.scale"), "dit.head.head.weight .* without one scale"),
        (lambda t, m: t["text.norm.weight"].fill_(float("nan")), "text.norm.weight .* not finite"),
        (lambda t, m: m.pop("format"), "not a checkpoint of this program"),
        (lambda t, m: m.update(format="other-9"), "format other-9"),
        (lambda t, m: m.pop("config"), "cannot be read"),
        (lambda t, m: m.update(config="{"), "cannot be read"),
        (lambda t, m: m.update(config=m["config"].replace('"eps"', '"epz"')), "unknown key dit.epz; did you mean eps"),
        (lambda t, m: m.update(config=m["config"].replace('"dim": 32', '"dim": 36')), "dit.dim|is .* not"),
    ],
)
def test_what_does_not_fit_is_named(saved: Path, tmp_path: Path, change, text: str) -> None:
    path = rewrite(saved, tmp_path / "bad.safetensors", change)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_checkpoint(path)
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-100])
    text = tmp_path / "text.safetensors"
    text.write_text("version https://git-lfs.github.com/spec/v1\n")
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    for path, words in (
        (tmp_path / "none.safetensors", "does not exist"),
        (tmp_path, "does not exist"),
        (cut, "broken or cut short"),
        (text, "broken or cut short"),
        (empty, "broken or cut short"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)


def test_bare_names_belong_to_the_package() -> None:
    assert checkpoint_path("tiny").parts[-3:] == ("model", "checkpoints", "tiny.safetensors")
    assert checkpoint_path("./tiny") == Path("tiny")
    assert checkpoint_path("x.safetensors") == Path("x.safetensors")
    assert RunConfig().checkpoint == "tiny"

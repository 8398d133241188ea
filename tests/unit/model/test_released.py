"""Forged folders in the released layout: they load exactly, and every damage is named before a weight is read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import model.released as released
from model.compile import speed_up
from model.config import RunConfig
from model.convert import convert
from model.errors import CheckpointError
from model.forge import LORA, forge, random_modules, random_tensor, shapes_of
from model.fp8 import Fp8Linear, quantise
from model.generator import load_model
from model.interface import BlockRequest, SessionSpec
from model.lora import target_modules
from model.published import forged_config
from model.released import load_released
from model.survey import INDEX, survey
from model.tensor_files import entries_of
from tests.unit.model.damage import DAMAGE, edit, edit_tensors


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forge") / "mini"
    forge(folder, "mini")
    return folder


@pytest.fixture
def folder(forged: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(forged, tmp_path / "mini"))


def state(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()}


def test_a_forged_folder_is_small_and_equals_random_weights(forged: Path) -> None:
    assert sum(path.stat().st_size for path in forged.rglob("*") if path.is_file()) < 5_000_000
    findings, plan = survey(forged, forged / "Live-Avatar")
    assert plan is not None and {finding.level for finding in findings} == {"ok"}
    (config, loaded), (other, random) = load_released(forged), random_modules("mini")
    assert config.dit == other.dit and config.vae == other.vae and config.text == other.text
    ours, theirs = state(loaded), state(random)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
        assert value.float().std() > 0 or value.numel() == 1, f"{name} is degenerate"
    assert loaded["text"].encoder.embed_tokens.weight is loaded["text"].shared.weight


def test_a_tensor_depends_on_its_name_and_seed_alone() -> None:
    draw = lambda key, seed: random_tensor(key, (4, 8), seed, torch.float32, "cpu")  # noqa: E731
    first = draw("dit.a.weight", 0)
    draw("dit.b.weight", 0)
    assert torch.equal(first, draw("dit.a.weight", 0))
    assert not torch.equal(first, draw("dit.a.weight", 1)) and not torch.equal(first, draw("dit.b.weight", 0))


def test_the_adapter_is_merged_with_one_rounding(forged: Path) -> None:
    plain, merged = load_released(forged)[1]["dit"], load_released(forged, adapter=forged / LORA, alpha=2.0)[1]["dit"]
    adapter, changed = load_file(forged / LORA), 0
    for name, before in plain.state_dict().items():
        a = adapter.get(name.replace(".weight", ".lora_A.default.weight"))
        b = adapter.get(name.replace(".weight", ".lora_B.default.weight"))
        wanted = before
        if name.endswith(".weight") and a is not None:
            wanted = torch.addmm(before, b.float(), a.float(), alpha=2.0 / len(a)).bfloat16().float()
            changed += 1
        assert torch.equal(merged.state_dict()[name], wanted), name
    assert changed == 48


def test_a_converted_folder_loads_in_one_pass(forged: Path, tmp_path: Path) -> None:
    convert(forged, tmp_path / "out", forged / LORA)
    wanted, got = load_released(forged, adapter=forged / LORA)[1], load_released(tmp_path / "out")[1]
    assert all(torch.equal(value, state(wanted)[name]) for name, value in state(got).items())
    with pytest.raises(CheckpointError, match=r"already holds the adapter liveavatar\.safetensors"):
        load_released(tmp_path / "out", adapter=forged / LORA)
    with pytest.raises(CheckpointError, match="exists; name a new folder"):
        convert(forged, tmp_path / "out", forged / LORA)


@pytest.fixture(scope="module")
def rounded(forged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forged folder with its adapter merged and its layers in fp8."""
    out = tmp_path_factory.mktemp("fp8") / "mini-fp8"
    convert(forged, out, forged / LORA, fp8=True)
    return out


def test_a_folder_in_fp8_holds_what_loading_would_round(forged: Path, rounded: Path) -> None:
    findings, plan = survey(rounded)
    assert plan is not None and any(re.search(r"of the dit fit, \d+ of them in fp8", f.text) for f in findings)
    wanted = load_released(forged, adapter=forged / LORA, dtype=torch.bfloat16)[1]
    kept, wide = (load_released(rounded, dtype=torch.bfloat16, keep_fp8=keep)[1] for keep in (True, False))
    before = wanted["dit"].state_dict()
    names = [name for name, module in kept["dit"].named_modules() if isinstance(module, Fp8Linear)]
    assert len(names) == quantise(wanted["dit"]) and "blocks.0.self_attn.q" in names
    assert state(kept).keys() == state(wanted).keys()
    for name, value in state(kept).items():
        assert torch.equal(value.float(), state(wanted)[name].float()), name
    weight = wide["dit"].state_dict()["blocks.0.ffn.0.weight"]
    assert weight.dtype == torch.bfloat16 and (weight - before["blocks.0.ffn.0.weight"]).abs().max() < 0.1
    sizes = [sum(p.stat().st_size for p in folder.glob("*.safetensors")) for folder in (rounded, forged)]
    assert sizes[0] < sizes[1]
    kept["dit"].to(torch.bfloat16)
    assert kept["dit"].blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn, "a cast must not widen it"
    speed_up(kept["dit"], fp8=True, backend=None), speed_up(wanted["dit"], fp8=True, backend=None)
    for name, value in state({"dit": kept["dit"]}).items():
        assert torch.equal(value.float(), state({"dit": wanted["dit"]})[name].float()), name


def test_a_folder_in_fp8_is_damaged_by_name(forged: Path, rounded: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="in fp8 already"):
        convert(rounded, tmp_path / "again", fp8=True)
    with pytest.raises(CheckpointError, match="nothing is to be done"):
        convert(forged, tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"already holds the adapter liveavatar\.safetensors"):
        load_released(rounded, adapter=forged / LORA)
    folder = Path(shutil.copytree(rounded, tmp_path / "mini"))
    shard = next(folder.glob("*.safetensors"))

    def drop(name: str) -> None:
        edit_tensors(shard, lambda t: t.pop(name))
        edit(folder / INDEX, lambda c: c["weight_map"].pop(name))

    drop("blocks.1.ffn.2.weight_scale")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.2\.weight_scale in .* is missing, not F32 \[64, 1\]"):
        load_released(folder)
    drop("blocks.1.ffn.2.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of the dit, first blocks\.1\.ffn\.2\.weight"):
        load_released(folder)


def test_an_adapter_for_rounded_layers_is_refused(forged: Path, tmp_path: Path) -> None:
    convert(forged, tmp_path / "mini", fp8=True)
    with pytest.raises(CheckpointError, match="layers are in fp8, which take no adapter; convert it with"):
        load_released(tmp_path / "mini", adapter=forged / LORA)


def test_the_host_holds_one_tensor_at_a_time(forged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are all that loading holds besides mapped files; none outlives its turn."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    owned = released._owned

    def counted(value: torch.Tensor, device: object) -> torch.Tensor:
        nonlocal most
        copy = owned(value, "cpu")
        alive.append(weakref.ref(copy))
        most = max(most, sum(ref().nbytes for ref in alive if ref() is not None))
        return copy

    monkeypatch.setattr(released, "_owned", counted)
    plan = released.plan_released(forged, forged / LORA)
    largest = max(2 * torch.Size(s.entry.shape).numel() for s in plan.sources["dit"].values())
    total = 0
    for _, value in released.stored_tensors(plan, "dit", 64.0, "cpu"):
        total += value.nbytes
        del value
    assert most <= largest + 10_000 and total > 2 * largest  # one tensor and one adapter pair


def test_generates_from_the_folder_and_from_random_weights(forged: Path) -> None:
    frames = []
    for name in (str(forged), "random:mini"):
        model = load_model(RunConfig(checkpoint=name, size="64x64", dtype="float32", threads=1))
        model.open(SessionSpec(session="s", image=np.full((64, 64, 3), 90, np.uint8), prompt="a woman speaks"))
        window = np.random.default_rng(0).normal(0, 0.05, model.info.window.samples).astype(np.float32)
        frames.append(model.step(BlockRequest(session="s", block=0, epoch=0, window=window)).frames)
    assert frames[0].shape == (12, 64, 64, 3) and frames[0].std() > 1
    np.testing.assert_array_equal(*frames)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, folder: Path) -> None:
    work, message = DAMAGE[damage]
    work(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_released(folder)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and ";" in text
    if damage != "not finite":  # which headers cannot tell
        findings, plan = survey(folder)
        assert plan is None and text in [finding.text for finding in findings if finding.level == "fail"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint folder .*none does not exist"):
        load_released(tmp_path / "none")


A, B = (f"blocks.0.self_attn.q.lora_{side}.default.weight" for side in "AB")
ADAPTERS: dict[str, tuple[Callable[[dict], object], str]] = {
    "half": (lambda t: t.pop(B), r"only lora_A of blocks\.0\.self_attn\.q"),
    "layer missing": (lambda t: (t.pop(A), t.pop(B)), r"lacks 1 layers, first blocks\.0\.self_attn\.q"),
    "foreign": (lambda t: t.update({"unet.x.weight": torch.ones(1)}), r"unet\.x\.weight belongs to no layer"),
    "shape": (lambda t: t.update({A: torch.ones(4, 9)}), r"adapter of blocks\.0\.self_attn\.q is \[64, 4\] x \[4, 9\]"),
    "two spellings": (lambda t: t.update({A.replace(".default", ""): t[A].clone()}), "twice, in two spellings"),
}


@pytest.mark.parametrize("damage", ADAPTERS)
def test_a_wrong_adapter_is_named(damage: str, forged: Path, tmp_path: Path) -> None:
    work, message = ADAPTERS[damage]
    path = Path(shutil.copy(forged / LORA, tmp_path / "mine.safetensors"))
    edit_tensors(path, work)
    with pytest.raises(CheckpointError, match=rf"mine\.safetensors: .*{message}"):
        load_released(forged, adapter=path)


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("name", ["", ".default"])
def test_all_spellings_and_plain_tensors_load(prefix: str, name: str, forged: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    tensors = {prefix + key.replace(".default", name): t for key, t in load_file(forged / LORA).items()}
    tensors[prefix + "head.head.bias"] = torch.full((64,), 0.5)
    save_file(tensors, path)
    got = load_released(forged, adapter=path)[1]["dit"].state_dict()
    wanted = load_released(forged, adapter=forged / LORA)[1]["dit"].state_dict()
    assert (got.pop("head.head.bias") == 0.5).all()
    assert all(torch.equal(value, wanted[key]) for key, value in got.items())


def test_forge_refuses_a_full_folder_and_an_unknown_size(forged: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not empty"):
        forge(forged, "mini")
    with pytest.raises(CheckpointError, match="'huge' is unknown; choose mini or 14b"):
        random_modules("huge")
    assert entries_of(forged / LORA)[A].shape == (4, 64)


def test_forge_clip_and_benches_need_no_other_packages() -> None:
    """A bare GPU machine has torch, transformers, numpy, safetensors and pillow."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('av', 'aiortc', 'fastapi', 'diffusers', 'ftfy', 'scipy')));"
        "import model.forge, model.released, model.clip, model.bench_dit, model.bench_vae, model.wan_vae"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert run.returncode == 0, run.stderr


def test_the_14b_has_the_published_tensors() -> None:
    """Counts as published; the speech encoder is without its mask embedding (1024), which serves training only."""
    shapes = shapes_of(forged_config("14b"))
    counts = {part: (len(s), sum(torch.Size(shape).numel() for shape in s.values())) for part, s in shapes.items()}
    assert counts["dit"] == (1260, 16_295_755_609) and counts["vae"] == (194, 126_892_531)
    assert counts["text"][0] == 242 and counts["audio"][1] == 315_438_720 - 1024
    layers = target_modules(shapes["dit"])
    assert len(layers) == 448
    assert sum(128 * sum(shapes["dit"][f"{layer}.weight"]) for layer in layers) == 676_331_520

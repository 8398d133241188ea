"""`avatarcast plan`, the check before loading, and the original's flags of cards and memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from model.launch import RUNNABLE
from model.parallel import ParallelConfig, Plan
from server.config import ModelSection, config_names, load_config
from server.errors import ConfigError, StartError
from server.original_flags import read_original_flags
from server.planning import plan_to_run
from tests.unit.server.test_cli import GENERATE, folder, run

__all__ = ["folder"]

HARDWARE = sorted(set(config_names()) - {"tiny", "fake"})
CONTRACT = "h200_x1 h200_x2 h200_x4 h200_x5 h200_x8 24gb_x1_offload 24gb_x4 48gb_x1 80gb_x1 80gb_x5 cluster".split()
DEVICE = "name weights_gb rolling_cache_gb condition_cache_gb activations_gb vae_gb reserve_gb total_gb free_gb".split()


def card(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A driver that answers with these cards: name, total and free MiB."""
    rows = "\n".join(f"{i}, GPU-{i}, {line}" for i, line in enumerate(lines))
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{rows}\nEOF\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_configuration_fits_its_hardware(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--config", name, "--json") == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    config = load_config(name)
    assert result["fits"] and result["plan"]["kind"] == config.parallel.plan
    assert result["plan"]["weights_dtype"] == config.model.weights_dtype
    assert min(device["free_gb"] for device in result["devices"]) >= 0
    cards = int(config.parallel.gpus.partition("x")[0])
    assert len(result["devices"]) == cards


def test_all_hardware_of_the_contract_has_a_configuration() -> None:
    assert set(CONTRACT) == set(HARDWARE)


def test_the_json_is_the_contracts_and_the_chart_a_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "plan.png"
    assert run("plan", "--gpus", "2x80GB", "--chart", str(chart), "--json") == 0
    out = capfd.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert list(result) == ["fits", "plan", "devices", "block_s", "sessions", "misses"]
    assert list(result["plan"]) == ["kind", "pipeline", "sequence", "weights_dtype", "kv_dtype", "vae", "offload"]
    assert all(list(device) == DEVICE for device in result["devices"])
    for device in result["devices"]:
        assert sum(device[name] for name in DEVICE[1:7]) == pytest.approx(device["total_gb"], abs=0.01)
        assert device["total_gb"] + device["free_gb"] == pytest.approx(0.923 * 80, abs=0.01)
    assert result["misses"] and all(miss["by_gb"] > 0 and miss["remedy"] for miss in result["misses"])
    assert "do not fit:" in out
    with Image.open(chart) as picture:
        colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
        assert picture.width == 1200 and {(0x4C, 0x78, 0xA8), (0x54, 0xA2, 0x4B), (0xB0, 0x00, 0x20)} <= colours


def test_nothing_fits_is_exit_code_1_and_bad_input_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--gpus", "1x8GB") == 1
    assert "no plan fits" in capfd.readouterr().out
    for words, sentence in (
        (["--gpus", "many"], "write 4x24GB"),
        (["--size", "big"], "--size is 'big'"),
        (["--config", "fake"], "model.kind is fake"),
        (["--gpus", "1x80GB", "--chart", "plan.gif"], "--chart is plan.gif"),
        (["--gpus", "1x80GB", "--size", "700x380"], "700"),
    ):
        assert run("plan", *words) == 2
        assert sentence in capfd.readouterr().err


def test_a_model_that_does_not_fit_is_refused_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.planning")
    card(tmp_path, monkeypatch, "NVIDIA H100 80GB HBM3, 81559, 76000")
    section = ModelSection(checkpoint="random:14b")
    assert plan_to_run(section, ParallelConfig())[0].kind == "offload"  # slow, but it runs
    with pytest.raises(StartError) as caught:
        plan_to_run(section, ParallelConfig(plan="single"))
    told = str(caught.value)
    assert "lacks" in told and "remedy: fp8 weights and fp8 caches" in told and "rings" in told
    assert "nearest plan that fits: single, weights fp8, caches fp8" in told
    fitting = ModelSection(checkpoint="random:14b", weights_dtype="fp8", kv_dtype="fp8")
    assert plan_to_run(fitting, ParallelConfig()) == (Plan(weights_dtype="fp8", kv_dtype="fp8"), 1)
    assert "plan single, weights fp8, caches fp8" in caplog.text and "rings" in caplog.messages[-1]
    assert plan_to_run(ModelSection(), ParallelConfig())[0] is not None  # tiny fits anything


def test_a_processor_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.planning.setting_of", None)
    monkeypatch.setattr("server.planning.installed_gpus", lambda: [])
    assert plan_to_run(ModelSection(), ParallelConfig()) == (None, None)
    assert plan_to_run(ModelSection(device="cpu"), ParallelConfig()) == (None, None)
    assert plan_to_run(ModelSection(kind="fake"), ParallelConfig()) == (None, None)


def test_what_the_runtime_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.planning.RUNNABLE", {"single": ("shared",)})
    with pytest.raises(StartError, match="parallel.plan is layers, which this version plans but does not run"):
        plan_to_run(ModelSection(), ParallelConfig(plan="layers"))
    with pytest.raises(StartError, match="parallel.vae is tiled"):
        plan_to_run(ModelSection(), ParallelConfig(vae="tiled"))
    assert "single" in RUNNABLE


@pytest.mark.parametrize(
    ("words", "plan", "pipeline", "sequence", "vae"),
    [
        ("--num_gpus_dit 4", "layers", 4, 0, "shared"),
        ("--num_gpus_dit 4 --ulysses_size 4", "sequence", 0, 4, "shared"),
        ("--num_gpus_dit 8 --ulysses_size 2 --enable_vae_parallel", "layers", 4, 2, "own"),
        ("--num_gpus_dit 3 --ulysses_size 3 --enable_vae_parallel true", "layers", 3, 0, "own"),
        ("--single_gpu", "single", 0, 0, "shared"),
        ("--num_gpus_dit 1 --ulysses_size 1 --enable_vae_parallel false", "single", 0, 0, "shared"),
        ("--offload_model True", "offload", 0, 0, "shared"),
        ("--offload_kv_cache", "offload", 0, 0, "shared"),
        ("--offload_model False", "auto", 0, 0, "auto"),
    ],
)
def test_flags_of_cards_become_a_plan(words: str, plan: str, pipeline: int, sequence: int, vae: str) -> None:
    flags = read_original_flags(words.split())
    config, notices = flags.plan.over(ParallelConfig(), heads=40)
    assert (config.plan, config.pipeline, config.sequence, config.vae) == (plan, pipeline, sequence, vae)
    assert bool(notices) == (words in ("--num_gpus_dit 4", "--offload_kv_cache") or "size 3" in words)


def test_fp8_and_t5_cpu_are_keys_of_the_model() -> None:
    flags = read_original_flags("--fp8 --t5_cpu true".split())
    assert dict(flags.model) == {"weights_dtype": "fp8", "text_device": "cpu"}
    assert not read_original_flags("--fp8 false".split()).model


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--num_gpus_dit 4 --ulysses_size 3", "--ulysses_size is 3, which does not divide --num_gpus_dit 4"),
        ("--num_gpus_dit 2 --single_gpu", "--num_gpus_dit is 2 but --single_gpu is true"),
        ("--enable_vae_parallel --single_gpu", "--enable_vae_parallel is true but --single_gpu"),
        ("--offload_model true --num_gpus_dit 4", "--offload_model is true, but --num_gpus_dit"),
        ("--num_gpus_dit 0", "--num_gpus_dit is 0; give 1 to 64"),
        ("--num_gpus_dit four", "--num_gpus_dit is four; give a whole number"),
    ],
)
def test_contradictions_are_named(words: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_original_flags(words.split())


def test_heads_must_divide() -> None:
    flags = read_original_flags("--num_gpus_dit 6 --ulysses_size 3".split())
    with pytest.raises(ConfigError, match="does not divide the 40 heads"):
        flags.plan.over(ParallelConfig(), heads=40)


def test_the_command_refuses_a_plan_it_cannot_run(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.planning.RUNNABLE", {"single": ("shared",)})
    assert run(*GENERATE, "--ckpt_dir", "random:mini", "--num_gpus_dit", "4", "--enable_vae_parallel") == 2
    assert "parallel.plan is layers, which this version plans but does not run" in capfd.readouterr().err

"""Frames without a media library: the command that bare machines run."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.clip import fitting_plan, main
from model.errors import UnsupportedError
from model.gpus import parse_gpus


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(tmp_path / "face.png")
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(rng.normal(0, 3000, 12_000).astype("<i2").tobytes())
    return [str(tmp_path / "face.png"), str(tmp_path / "voice.wav"), str(tmp_path / "frames")]


def test_frames_and_figures_of_a_checkpoint(inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--checkpoint", "random:mini", "--size", "64x64", "--device", "cpu", "--set", "dtype=float32"]
    assert main([*inputs, *run, "--blocks", "1"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    frames = sorted(Path(inputs[2]).glob("*.png"))
    assert figures["frames"] == len(frames) == 12 and Image.open(frames[0]).size == (64, 64)
    assert figures["host_anonymous_peak_gb"] > 0 and figures["gpu_peak_gb"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cuda:99"], "GPUs that torch can use; use cpu"),
        (["--device", "tpu"], "choose auto, cpu, cuda or cuda:N"),
        (["--set", "solver"], "write --set solver=VALUE"),
        (["--blocks", "0"], "--blocks is 0"),
    ],
)
def test_bad_settings_are_one_sentence(inputs: list[str], words: list[str], sentence: str, capfd) -> None:
    assert main([*inputs, "--checkpoint", "random:mini", *words]) == 2
    told = capfd.readouterr().err
    assert sentence in told and len(told.splitlines()) == 1 and not list(Path(inputs[2]).glob("*.png"))


def test_a_clip_takes_the_plan_that_fits_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"checkpoint": "random:14b", "weights_dtype": "fp8", "kv_dtype": "fp8", "text_device": "cpu"}
    places = []
    for size in ("1x80GB", "1x58GB"):
        monkeypatch.setattr("model.clip.installed_gpus", lambda size=size: parse_gpus(size))
        places.append(fitting_plan(run).vae)
    assert places == ["shared", "tiled"]
    with pytest.raises(UnsupportedError, match="lacks .* GB on 58 GB; remedy: "):
        fitting_plan({**run, "kv_dtype": "bf16"})
    assert fitting_plan({**run, "device": "cpu"}) is None

"""The start-up choice follows the measured times, whatever they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model import profile as subject
from model.config import RunConfig
from model.errors import UnsupportedError
from model.generator import Generator, load_model
from model.profile import Timing, choose_profile
from model.weights import save_checkpoint
from tests.unit.model.small_model import config, modules, request, spec


def narrow(work) -> bool:
    """Whether a piece of work runs in bfloat16, from what it closes over."""
    cells = [c.cell_contents for c in work.__closure__ or ()]
    return any(isinstance(c, torch.Tensor) and c.dtype == torch.bfloat16 for c in cells) or any(
        isinstance(c, torch.nn.Module) and next(c.parameters()).dtype == torch.bfloat16 for c in cells
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Set the seconds of work by precision; the work still runs once."""
    seconds = {False: 0.01, True: 0.02}

    def time_of(work, give_up_s: float = 0) -> Timing:
        work()
        return Timing(seconds[narrow(work)], seconds[narrow(work)])

    monkeypatch.setattr(subject, "time_of", time_of)
    return seconds


@pytest.mark.parametrize(("wide", "bf16", "dtype"), [(0.01, 0.02, torch.float32), (0.02, 0.01, torch.bfloat16)])
def test_the_faster_precision_wins_part_by_part(clock, wide: float, bf16: float, dtype: torch.dtype) -> None:
    clock.update({False: wide, True: bf16})
    cfg = config()
    parts = modules(cfg)
    got = choose_profile(cfg, parts, RunConfig())
    assert (got.dit_dtype, got.vae_dtype) == (dtype, dtype)
    assert next(parts["dit"].parameters()).dtype == dtype
    assert next(parts["vae"].decoder.parameters()).dtype == dtype
    assert next(parts["vae"].encoder.parameters()).dtype == torch.float32
    assert {"threads", "dit_dtype", "vae_dtype", "schedule"} <= set(got.reasons)
    model = Generator(cfg, parts, got)
    model.open(spec())
    assert model.step(request(cfg, 0)).frames.std() > 1


@pytest.mark.parametrize(
    ("pass_s", "steps", "schedule"),
    [
        (0.001, "auto", "full"),
        (0.04, "auto", "light"),
        (0.2, "auto", "single"),
        (0.2, "full", "full"),
        (0.001, "light", "light"),
        (0.001, "single", "single"),
    ],
)
def test_the_schedule_follows_the_block_time(clock, pass_s: float, steps: str, schedule: str) -> None:
    clock.update({False: pass_s, True: pass_s})
    cfg = config(sampler={"sigmas": (1.0, 0.75, 0.5, 0.25), "light_sigmas": (1.0, 0.5)})
    got = choose_profile(cfg, modules(cfg), RunConfig(steps=steps))
    assert got.schedule == schedule
    assert got.sigmas == {"full": cfg.sampler.sigmas, "light": (1.0, 0.5), "single": (1.0,)}[schedule]
    assert got.block_s == pytest.approx(pass_s * (1 + len(got.sigmas) + 3))
    assert ("warning" in got.reasons) == (got.block_s > cfg.geometry.block_s)
    assert got.as_dict()["steps"] == len(got.sigmas)


def test_a_clean_history_counts_its_extra_pass_and_never_takes_one_step(clock) -> None:
    cfg = config(stream={"history": "clean"})
    with pytest.raises(ValueError, match="no single schedule"):
        choose_profile(cfg, modules(cfg), RunConfig(steps="single"))
    got = choose_profile(cfg, modules(cfg), RunConfig(steps="full"))
    assert got.block_s == pytest.approx(0.01 * (1 + 3 + 3))


def test_without_a_light_schedule(clock) -> None:
    cfg = config(sampler={"light_sigmas": ()})
    with pytest.raises(ValueError, match="no light schedule"):
        choose_profile(cfg, modules(cfg), RunConfig(steps="light"))
    clock.update({False: 9.0, True: 9.0})
    got = choose_profile(cfg, modules(cfg), RunConfig())
    assert got.schedule == "full"
    assert "warning" in got.reasons


def test_a_checkpoint_loads_times_itself_and_streams(tmp_path) -> None:
    cfg = config()
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, modules(cfg), cfg, {})
    model = load_model(RunConfig(checkpoint=str(path), size="96x64", dtype="float32", threads=1))
    info = model.info
    assert (info.name, info.geometry.width, info.geometry.height) == ("small", 96, 64)
    assert info.window == dataclasses.replace(cfg, width=96).window
    assert info.block_s > 0
    assert info.profile["dtype"] == {"dit": "float32", "vae": "float32", "kv": "float32"}
    assert torch.get_num_threads() == 1
    model.open(spec())
    assert model.step(request(model.config, 0)).frames.shape == (12, 64, 96, 3)


def test_settings_that_do_not_fit_the_checkpoint_are_named(tmp_path) -> None:
    cfg = config(sampler={"light_sigmas": ()})
    path = str(tmp_path / "small.safetensors")
    save_checkpoint(path, modules(cfg), cfg, {})
    for change, text in (
        ({"size": "100x64"}, "width is 100; it must be a positive multiple of 32"),
        ({"steps": "light"}, "no light schedule"),
        ({"stepz": "light"}, "unknown key stepz; did you mean steps"),
        ({"threads": "two"}, "threads is 'two'"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            load_model({"checkpoint": path, "dtype": "float32", "threads": 1, **change})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": "256"}, "size is '256'"),
        ({"size": "0x64"}, "size is"),
        ({"steps": "3"}, "steps is '3'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"threads": -1}, "threads is -1"),
        ({"load": 0}, "load is 0"),
    ],
)
def test_bad_settings_are_named(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RunConfig(**change)

"""The fast form of a checkpoint: what may be asked for where, and that it computes what the plain one does."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.config import RunConfig
from model.fast import device_of, make_fast
from model.generator import Generator
from model.profile import Profile
from tests.unit.model.small_model import config, modules, request, spec


def test_a_machine_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(RunConfig()) == torch.device("cpu")
    for wrong, words in [
        ({"device": "cuda"}, "device is cuda but this machine has 0 GPUs"),
        ({"device": "cuda:3"}, "use cpu"),
        ({"weights_dtype": "fp8"}, "weights_dtype is fp8, which needs a GPU"),
    ]:
        with pytest.raises(ValueError, match=words):
            device_of(RunConfig(**wrong))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"device": "gpu"}, "device is 'gpu'; choose"),
        ({"weights_dtype": "int4"}, "weights_dtype is 'int4'; choose"),
        ({"weights_dtype": "fp8", "dtype": "float32"}, "set dtype to auto or bfloat16"),
    ],
)
def test_bad_settings_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(**wrong)


@pytest.mark.parametrize("weights_dtype", ["bf16", "fp8"])
def test_fast_modules_give_the_plain_ones_pictures(weights_dtype):
    cfg = config()
    plain = modules(cfg)
    fast, reasons = copy.deepcopy(plain), {}
    run = RunConfig(weights_dtype=weights_dtype)
    dit_dtype, vae_dtype = make_fast(fast, run, reasons, backend=None)
    assert ("fp8" in reasons["dit_dtype"]) == (weights_dtype == "fp8")
    shown = []
    for parts in (plain, fast):
        profile = Profile.untimed(cfg)
        if parts is fast:
            profile = replace(profile, dit_dtype=dit_dtype, vae_dtype=vae_dtype)
        model = Generator(cfg, parts, profile)
        model.open(spec())
        shown.append(np.stack([model.step(request(cfg, block)).frames for block in range(2)]).astype(float))
    difference = np.abs(shown[0] - shown[1])
    assert 0 < difference.mean() < (12 if weights_dtype == "fp8" else 4)
    assert np.corrcoef(shown[0].ravel(), shown[1].ravel())[0, 1] > 0.97


def test_float32_leaves_the_modules_plain():
    parts, reasons = modules(config()), {}
    assert make_fast(parts, RunConfig(dtype="float32"), reasons) == (torch.float32, torch.float32)
    assert "forward" not in vars(parts["dit"])


def test_remembered_keys_in_fp8_cost_half_and_change_little():
    cfg = config()
    shown, sizes = [], []
    for kv_dtype in (None, torch.float8_e4m3fn):
        model = Generator(cfg, modules(cfg), replace(Profile.untimed(cfg), kv_dtype=kv_dtype))
        model.open(spec())
        shown.append(np.stack([model.step(request(cfg, block)).frames for block in range(3)]).astype(float))
        sizes.append(next(iter(model._sessions.values())).stream.rings[0].nbytes)
        assert model.profile.as_dict()["dtype"]["kv"] == ("fp8" if kv_dtype else "float32")
    assert sizes[1] * 4 == sizes[0]
    assert 0 < np.abs(shown[0] - shown[1]).mean() < 8

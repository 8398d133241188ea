"""Noise levels and Euler steps against the published scheduler."""

from __future__ import annotations

import torch

from model.sampler import euler_step, published_sigmas, timestep
from tests.parity.golden import close


def test_schedules(golden) -> None:
    fixture = golden("i_scheduler")
    info = fixture.info
    assert info["schedules"]
    for steps, recorded in info["schedules"].items():
        sigmas = published_sigmas(int(steps), info["shift"], info["num_train_timesteps"])
        times = torch.stack([timestep(s, info["num_train_timesteps"]) for s in sigmas])
        for wanted in (fixture[f"n{steps}.sigmas"], torch.tensor(recorded["sigmas"])):
            close(torch.tensor([*sigmas, 0.0]), wanted, 1e-7, 0)
        for wanted in (fixture[f"n{steps}.timesteps"], torch.tensor(recorded["timesteps"])):
            close(times, wanted, 0, 1e-7)


def test_steps(golden) -> None:
    fixture = golden("i_scheduler")
    levels = [*published_sigmas(fixture.info["step_example_steps"], fixture.info["shift"]), 0.0]
    x = fixture["step.sample0"]
    for i, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        x = euler_step(x, fixture[f"step.prediction{i}"], level, following)
        close(x, fixture[f"step.sample{i + 1}"], 1e-6, 1e-6)

    sample, prediction = fixture["step_bf16.sample"], fixture["step_bf16.prediction"]
    got = euler_step(sample, prediction, levels[1], levels[2])
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, fixture["step_bf16.result_step1"])

"""From one noise level to the next: Euler, or a multistep method of the library's.

Multistep methods remember the velocities of earlier steps. That memory belongs to one block of one stream, so the
denoiser makes a new solver for every block. All methods use the levels they are given: the library's schedulers are
handed ours in place of their own grids. UniPC: Zhao et al. 2023; DPM-Solver++ (2M): Lu et al. 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.component_config import WanVAEConfig, XLSRAudioConfig
from model.config import ModelConfig, RunConfig, SamplerConfig, chosen_stream
from model.errors import UnsupportedError
from model.sampler import TRAIN_STEPS, euler_step, published_sigmas
from model.sampling import chosen_size

HIGHEST_LEVEL = 0.9997
"""Multistep methods compute with logarithms of data over noise, which at pure noise are infinite."""


class Solver(Protocol):
    """Of one block."""

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        """Latents at step `index` and their velocity to the latents of the next step, in the velocity's dtype."""
        ...


class _Euler:
    def __init__(self, sigmas: Sequence[float]) -> None:
        self._levels = [*sigmas, 0.0]

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        return euler_step(x, velocity, self._levels[index], self._levels[index + 1])


class _Multistep:
    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        time = self._scheduler.timesteps[index]
        return self._scheduler.step(velocity.float(), time, x.float(), return_dict=False)[0].to(velocity.dtype)


def solver_maker(name: str, sigmas: Sequence[float]) -> Callable[[], Solver]:
    """What makes a fresh solver per block.

    Args:
        name: one of `sampling.SOLVERS`.
        sigmas: falling noise levels, one per step, without the final 0.

    Raises:
        UnsupportedError: the library of the multistep methods is not installed.
    """
    if name == "euler":
        solver = _Euler(sigmas)  # carries nothing between steps
        return lambda: solver
    scheduler = _scheduler(name, sigmas)
    return lambda: _Multistep(copy.deepcopy(scheduler))


def _scheduler(name: str, sigmas: Sequence[float]) -> Any:
    options = {
        "num_train_timesteps": TRAIN_STEPS,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "solver_order": 2,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
    }
    try:
        if name == "unipc":
            from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

            scheduler = UniPCMultistepScheduler(**options)
        else:
            from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

            scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **options)
    except ImportError:
        raise UnsupportedError(f"solver is {name}, which needs diffusers; install it, or use euler") from None
    scheduler.set_timesteps(len(sigmas))
    levels = [min(sigma, HIGHEST_LEVEL) for sigma in sigmas]
    scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32)
    scheduler.timesteps = scheduler.sigmas[:-1] * TRAIN_STEPS
    scheduler.set_begin_index(0)
    return scheduler


def with_choices(config: ModelConfig, modules: dict[str, nn.Module], run: RunConfig) -> ModelConfig:
    """A checkpoint's configuration with what the operator chose; those of its modules that are here follow.

    Raises:
        ValueError: a choice does not fit the checkpoint.
    """
    size = chosen_size(run.size, run.size_rule)
    if size is not None:
        config = replace(config, width=size[0], height=size[1])
    own_steps = len(config.sampler.sigmas)
    if run.num_steps not in (0, own_steps) or run.shift != 3.0:
        levels = published_sigmas(run.num_steps or own_steps, run.shift)
        config = replace(config, sampler=SamplerConfig(sigmas=levels))
    elif run.num_steps:
        config = replace(config, sampler=replace(config.sampler, light_sigmas=()))
    if run.reference != "auto":
        if not isinstance(config.vae, WanVAEConfig):
            raise ValueError(
                f"reference is {run.reference!r}, but a still portrait has one latent in {config.name}; use auto"
            )
        config = replace(config, vae=replace(config.vae, reference_latent=run.reference))
        if "vae" in modules:
            modules["vae"].cfg = config.vae
    config = replace(config, stream=chosen_stream(config, run))
    if run.rope_tables != "auto":
        config = replace(config, dit=replace(config.dit, rope_tables=run.rope_tables))
        if "dit" in modules:
            modules["dit"].cfg = replace(modules["dit"].cfg, rope_tables=run.rope_tables)
    if run.fps not in (0, config.fps):
        if not isinstance(config.audio, XLSRAudioConfig):
            raise ValueError(f"fps is {run.fps}, but checkpoint {config.name} learned {config.fps}; use {config.fps}")
        config = replace(config, fps=run.fps)
        if "audio" in modules:
            modules["audio"].fps, modules["audio"].window = config.fps, config.window
    return config

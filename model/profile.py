"""How to run on this machine: precision, threads and schedule, chosen by timing and never by guessing.

bfloat16 halves the time where the processor has it and multiplies it where it has not, so both are timed, part by
part, on the real modules at the real size. The schedule follows from the measured time of a block against its length.
The whole choice takes about a second; every decision leaves a sentence that operators can read.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from model.config import ModelConfig, RunConfig
from model.denoiser import Denoiser
from model.fast import kv_dtype_of, make_fast
from model.offload import is_streamed

MAX_AUTO_THREADS = 4
"""More threads than this do not speed up pictures and layers of these sizes."""
_BUDGET_S = 0.15
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float8_e4m3fn: "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was chosen, what was measured, and why."""

    dit_dtype: torch.dtype
    """Of the transformer."""
    vae_dtype: torch.dtype
    """Of the VAE's decoder."""
    threads: int
    """Intra-op threads."""
    schedule: str
    """full or light."""
    sigmas: tuple[float, ...]
    """Noise levels of the schedule."""
    block_s: float
    """Estimated seconds a block takes: sound, all passes, decoding."""
    stage_s: dict[str, float]
    """Seconds of sound, one pass, and decoding."""
    reasons: dict[str, str] = field(default_factory=dict)
    """One sentence per decision."""
    kv_dtype: torch.dtype | None = None
    """Of the rings' keys and values; None is the transformer's own."""

    @classmethod
    def untimed(cls, config: ModelConfig, sigmas: tuple[float, ...] | None = None) -> Profile:
        """Float32 and a schedule as given (default: the full one), without timing: for evaluation and tests."""
        return cls(
            dit_dtype=torch.float32,
            vae_dtype=torch.float32,
            threads=torch.get_num_threads(),
            schedule="full" if sigmas is None else "given",
            sigmas=config.sampler.sigmas if sigmas is None else sigmas,
            block_s=config.geometry.block_s,
            stage_s={},
            reasons={"schedule": "not timed"},
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `ModelInfo.profile`."""
        return {
            "kind": "checkpoint",
            "dtype": {
                "dit": _NAMES[self.dit_dtype],
                "vae": _NAMES[self.vae_dtype],
                "kv": _NAMES[self.kv_dtype or self.dit_dtype],
            },
            "steps": len(self.sigmas),
            "schedule": self.schedule,
            "threads": self.threads,
            "block_s": round(self.block_s, 4),
            "stage_s": {name: round(value, 4) for name, value in self.stage_s.items()},
            "reasons": dict(self.reasons),
        }


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Timing(NamedTuple):
    """Seconds of one piece of work."""

    best: float
    """Of the fastest run: what the machine can do; compares precisions."""
    typical: float
    """Median: what to plan with while other programs run."""


def time_of(work: Callable[[], object], give_up_s: float = float("inf")) -> Timing:
    """Time some runs after one to warm up; a first run beyond `give_up_s` is taken as it is."""
    first = _seconds(work)
    if first > give_up_s:
        return Timing(first, first)
    runs: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while len(runs) < 2 or (len(runs) < 5 and time.perf_counter() < end):
        runs.append(_seconds(work))
    return Timing(min(runs), statistics.median(runs))


def _seconds(work: Callable[[], object]) -> float:
    """Of one run; what a GPU still has to do for it is waited for."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def choose_profile(config: ModelConfig, modules: dict[str, nn.Module], run: RunConfig) -> Profile:
    """Time the modules, keep them in the faster precision, and choose the schedule.

    Args:
        config: sizes; the picture size already the one that will run.
        modules: as `weights.load_weights` gives them; `dit` and the VAE's decoder are replaced here where bfloat16
            wins, and the thread count of this process is set. On a GPU both are brought into their fast form.
        run: what the operator asked for.
    """
    device = modules["dit"].head.head.weight.device
    threads = run.threads or min(max(1, usable_cores() - 1), MAX_AUTO_THREADS)
    torch.set_num_threads(threads)
    reasons = {
        "threads": f"{threads} threads as configured"
        if run.threads
        else f"{threads} of {usable_cores()} usable cores: one is left to the server, at most {MAX_AUTO_THREADS} help"
    }
    if config.vae.kind == "light":  # two-dimensional convolutions only
        modules["vae"].to(memory_format=torch.channels_last)
    vae = modules["vae"]

    def time_decoder(decoder: nn.Module) -> Callable[[], object]:
        vae.decoder = decoder
        dtype = next(decoder.parameters()).dtype
        latents = torch.zeros(1, config.vae.z_dim, 1, *_latent_size(config), dtype=dtype, device=device)
        state = vae.decode(latents)[1]
        return lambda: vae.decode(latents, state)

    kv_dtype = kv_dtype_of(run)
    if device.type == "cuda":
        dit_dtype, vae_dtype = make_fast(modules, run, reasons, is_final=is_streamed(modules["dit"]))
        pass_s = time_of(_time_pass(config, modules["dit"], kv_dtype)).typical
        latent_s = time_of(time_decoder(vae.decoder)).typical
    else:
        if is_streamed(modules["dit"]):
            dit_dtype, pass_s = modules["dit"].dtype, time_of(_time_pass(config, modules["dit"])).typical
            reasons["dit_dtype"] = "as loaded: layers that stream from the host are not converted"
        else:
            modules["dit"], dit_dtype, pass_s, reasons["dit_dtype"] = _faster(
                modules["dit"], run.dtype, lambda module: _time_pass(config, module), "a pass"
            )
        vae.decoder, vae_dtype, latent_s, reasons["vae_dtype"] = _faster(
            vae.decoder, run.dtype, time_decoder, "a latent"
        )
    window, audio = torch.zeros(1, config.window.samples, device=device), modules["audio"]
    stage_s = {
        "audio": time_of(lambda: audio.window_features(window, 0, audio.listen())).typical,
        "pass": pass_s,
        "vae": latent_s * config.stream.frames_per_block,
    }
    schedule, sigmas, block_s, reasons["schedule"] = _schedule(config, run, stage_s)
    if block_s > config.geometry.block_s:
        reasons["warning"] = (
            f"a block takes {block_s:.2f} s of its {config.geometry.block_s:.2f} s, so pictures will hold now and "
            "then; use a faster machine, a smaller size or fewer other programs"
        )
    return Profile(
        dit_dtype=dit_dtype,
        vae_dtype=vae_dtype,
        threads=threads,
        schedule=schedule,
        sigmas=sigmas,
        block_s=block_s,
        stage_s=stage_s,
        reasons=reasons,
        kv_dtype=kv_dtype,
    )


def _latent_size(config: ModelConfig) -> tuple[int, int]:
    return config.geometry.latent_height, config.geometry.latent_width


def _faster(
    module: nn.Module, wanted: str, prepare: Callable[[nn.Module], Callable[[], object]], unit: str
) -> tuple[nn.Module, torch.dtype, float, str]:
    """The module in the wanted or the faster precision, with its time and the reason."""
    if wanted != "auto":
        dtype = torch.bfloat16 if wanted == "bfloat16" else torch.float32
        module = module.to(dtype)
        return module, dtype, time_of(prepare(module)).typical, f"{wanted} as configured"
    wide = time_of(prepare(module))
    narrow_module = copy.deepcopy(module).to(torch.bfloat16)
    narrow = time_of(prepare(narrow_module), give_up_s=2 * wide.best + 0.05)
    figures = f"{unit} takes {1000 * wide.best:.0f} ms in float32 and {1000 * narrow.best:.0f} ms in bfloat16"
    if narrow.best < 0.95 * wide.best:
        return narrow_module, torch.bfloat16, narrow.typical, f"bfloat16: {figures}"
    prepare(module)
    return module, torch.float32, wide.typical, f"float32: {figures}"


def _time_pass(config: ModelConfig, dit: nn.Module, kv_dtype: torch.dtype | None = None) -> Callable[[], object]:
    """One pass over a block whose ring is full."""
    c, geometry = config.dit, config.geometry
    frames, ring = config.stream.frames_per_block, config.stream.ring_blocks
    denoiser = Denoiser(dit, config.stream, config.sampler.sigmas[:1], *_latent_size(config), kv_dtype)
    zeros = lambda *shape: torch.zeros(shape, device=dit.head.head.weight.device)  # noqa: E731
    latents = zeros(1, c.in_dim, frames, *_latent_size(config))
    motion = latents[:, :, :1] if c.enable_framepack else None
    state = denoiser.start(dit.text_kv(zeros(1, 1, c.text_dim)), latents[:, :, :1], motion)
    for cache in state.rings:
        cache.blocks = list(range(ring))
        cache.begin(ring)
    features = zeros(1, 1, c.audio_layers, c.audio_dim, geometry.frames_per_block)
    audio = dit.audio_condition(features)
    pose = dit.pose(None, frames, *_latent_size(config))
    by = dit.block_rotation(ring * frames, frames, *_latent_size(config))
    step = denoiser.steps[0]
    return lambda: dit(latents, step, state.text, audio, pose, by, state.rings[0])


def _schedule(
    config: ModelConfig, run: RunConfig, stage_s: dict[str, float]
) -> tuple[str, tuple[float, ...], float, str]:
    """Schedule, its noise levels, the estimated time of a block, and why."""
    full, light = config.sampler.sigmas, config.sampler.light_sigmas
    extra = 1 if config.stream.history == "clean" else 0
    times = 2 if run.is_guided else 1

    def block_s(sigmas: tuple[float, ...]) -> float:
        return stage_s["audio"] + times * (len(sigmas) + extra) * stage_s["pass"] + stage_s["vae"]

    limit = run.load * config.geometry.block_s
    if run.steps == "light" and not light:
        raise ValueError(f"steps is light, but checkpoint {config.name} has no light schedule; choose full or auto")
    if run.steps != "auto":
        sigmas = full if run.steps == "full" else light
        return run.steps, sigmas, block_s(sigmas), f"{run.steps} schedule as configured"
    figures = f"a block takes {block_s(full):.2f} s with {len(full)} steps, the limit is {limit:.2f} s"
    if block_s(full) <= limit:
        return "full", full, block_s(full), f"full schedule: {figures}"
    if light:
        return "light", light, block_s(light), f"light schedule: {figures}"
    return "full", full, block_s(full), f"full schedule: {figures}, and the checkpoint has no light one"

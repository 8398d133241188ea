"""How to run on this machine: precision, threads and schedule, chosen by timing and never by guessing.

bfloat16 halves the time where the processor has it and multiplies it where it has not, so both are timed, part by
part, on the real modules at the real size. The schedule follows from the measured time of a block against its length.
The whole choice takes about a second; every decision leaves a sentence that operators can read.
"""

from __future__ import annotations

import copy
import ctypes
import functools
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
from model.folded_decoder import fold
from model.kv_cache import RollingCache
from model.offload import is_streamed

MAX_AUTO_THREADS = 4
"""More threads than this do not speed up pictures and layers of these sizes."""
SLOW_LOAD = 0.5
"""Share of a block's length beyond which the small decoder is taken where there is one, and then a single step."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT_BYTES = -1, -3, 256 << 20
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
    """full, light or single; given where nothing was chosen."""
    sigmas: tuple[float, ...]
    """Noise levels of the schedule."""
    block_s: float
    """Estimated seconds a block takes: sound, all passes, decoding."""
    stage_s: dict[str, float]
    """Seconds of sound, one pass, and decoding."""
    reasons: dict[str, str] = field(default_factory=dict)
    """One sentence per decision."""
    decoder: str = "full"
    """Of the VAE: full or small."""
    kv_dtype: torch.dtype | None = None
    """Of the rings' keys and values; None is the transformer's own."""

    @property
    def part_s(self) -> float:
        """Seconds of the longest part of a block."""
        return max(self.stage_s.values(), default=0.0)

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
            "decoder": self.decoder,
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


class _Timed:
    """Modules on a processor or a GPU, brought into the form that will run, and what each takes."""

    def __init__(
        self,
        config: ModelConfig,
        modules: dict[str, nn.Module],
        run: RunConfig,
        allocate: Callable[..., RollingCache],
    ) -> None:
        self.config, self.modules, self.run, self.allocate = config, modules, run, allocate
        self.vae, self.device = modules["vae"], modules["dit"].head.head.weight.device
        self.kv_dtype = kv_dtype_of(run)
        self.reasons: dict[str, str] = {}
        self.stage_s: dict[str, float] = {}
        self.dit_dtype = self.vae_dtype = torch.float32

    @property
    def has_small(self) -> bool:
        """Whether the VAE has a second, cheaper decoder."""
        return getattr(self.vae, "small_decoder", None) is not None

    def choose(self) -> None:
        """Every part in the faster precision or as configured, and timed."""
        audio, dit = self.modules["audio"], self.modules["dit"]
        window = torch.zeros(1, self.config.window.samples, device=self.device)
        self.stage_s["audio"] = time_of(lambda: audio.window_features(window, 0, audio.listen())).typical
        if self.device.type == "cuda":
            is_final = is_streamed(dit)
            self.dit_dtype, self.vae_dtype = make_fast(self.modules, self.run, self.reasons, is_final=is_final)
            self.stage_s["pass"] = time_of(_time_pass(self.config, dit, self.kv_dtype, self.allocate)).typical
        elif is_streamed(dit):
            self.dit_dtype = dit.dtype
            self.stage_s["pass"] = time_of(_time_pass(self.config, dit, self.kv_dtype, self.allocate)).typical
            self.reasons["dit_dtype"] = "as loaded: layers that stream from the host are not converted"
        else:
            self.modules["dit"], self.dit_dtype, self.stage_s["pass"], self.reasons["dit_dtype"] = _faster(
                dit, self.run.dtype, lambda module: _time_pass(self.config, module), "a pass"
            )
        self.choose_decoder(small=self.run.decoder == "small")

    def choose_decoder(self, small: bool) -> None:
        """Decode with the full or the small decoder: on a processor folded, in the faster precision; and timed."""
        if small and not self.has_small:
            raise ValueError(f"decoder is small, but checkpoint {self.config.name} has none; choose auto or full")
        if self.has_small:
            self.vae.uses_small = small
        name = "small_decoder" if small else "decoder"
        decoder = getattr(self.vae, name)
        if self.device.type == "cuda":
            latent_s = time_of(self._decoding(name, decoder.to(self.vae_dtype))).typical
        else:
            decoder, self.vae_dtype, latent_s, self.reasons["vae_dtype"] = _faster(
                fold(decoder), self.run.dtype, lambda d: self._decoding(name, d), "a latent"
            )
            setattr(self.vae, name, decoder)
            if small:
                self.vae.decoder = fold(self.vae.decoder).to(self.vae_dtype)
        self.stage_s["vae"] = latent_s * self.config.stream.frames_per_block

    def _decoding(self, name: str, decoder: nn.Module) -> Callable[[], object]:
        setattr(self.vae, name, decoder)
        dtype = next(decoder.parameters()).dtype
        latents = torch.zeros(1, self.config.vae.z_dim, 1, *_latent_size(self.config), dtype=dtype, device=self.device)
        state = self.vae.decode(latents)[1]
        return lambda: self.vae.decode(latents, state)


@torch.inference_mode()
def choose_profile(
    config: ModelConfig,
    modules: dict[str, nn.Module],
    run: RunConfig,
    allocate: Callable[..., RollingCache] = RollingCache.allocate,
) -> Profile:
    """Time the modules, keep them in the faster precision, and choose schedule and decoder.

    Args:
        config: sizes; the picture size already the one that will run.
        modules: as `weights.load_weights` gives them; `dit` and the VAE's decoder are replaced here by the form that
            runs, and the thread count of this process is set. On a GPU both are brought into their fast form.
        run: what the operator asked for.
        allocate: makes the rings, see `Denoiser`.
    """
    cores = usable_cores()
    threads = run.threads or min(max(1, cores - 1), MAX_AUTO_THREADS)
    torch.set_num_threads(threads)
    timed = _Timed(config, modules, run, allocate)
    why = f"one of {cores} usable cores is left to the server, at most {MAX_AUTO_THREADS} help"
    timed.reasons["threads"] = f"{threads} threads {'as configured' if run.threads else 'because ' + why}"
    if config.vae.kind == "light":  # two-dimensional convolutions only
        modules["vae"].to(memory_format=torch.channels_last)
    if timed.device.type == "cpu":
        keep_freed_memory()
    timed.choose()
    schedule, sigmas, block_s, timed.reasons["schedule"] = _schedule(config, run, timed.stage_s)
    limit = SLOW_LOAD * config.geometry.block_s
    if block_s > limit and timed.has_small and run.decoder == "auto":
        slow = f"{block_s:.2f} s with the full decoder, the limit is {limit:.2f} s"
        timed.choose_decoder(small=True)
        schedule, sigmas, block_s, timed.reasons["schedule"] = _schedule(config, run, timed.stage_s)
        timed.reasons["decoder"] = f"small decoder: a block takes {slow}"
    if block_s > limit and run.steps == "auto" and schedule == "light" and _single(config):
        slow = f"a block takes {block_s:.2f} s with {len(sigmas)} steps, the limit is {limit:.2f} s"
        schedule, sigmas = "single", _single(config)
        block_s = _block_s(config, run, timed.stage_s, sigmas)
        timed.reasons["schedule"] = f"single step: {slow}"
    if block_s > config.geometry.block_s:
        timed.reasons["warning"] = (
            f"a block takes {block_s:.2f} s of its {config.geometry.block_s:.2f} s, so pictures will hold now and "
            "then; use a faster machine, a smaller size or fewer other programs"
        )
    return Profile(
        dit_dtype=timed.dit_dtype,
        vae_dtype=timed.vae_dtype,
        threads=threads,
        schedule=schedule,
        sigmas=sigmas,
        block_s=block_s,
        stage_s=timed.stage_s,
        reasons=timed.reasons,
        kv_dtype=timed.kv_dtype,
        decoder="small" if timed.has_small and timed.vae.uses_small else "full",
    )


def keep_freed_memory() -> None:
    """Let the C library keep what activations leave, instead of giving pages back and asking for them block by block.

    Fresh pages cost up to a third of a block on virtual machines. Only glibc is asked; elsewhere nothing changes.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    except (OSError, AttributeError):
        return


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
    return module, torch.float32, wide.typical, f"float32: {figures}"


def _time_pass(
    config: ModelConfig,
    dit: nn.Module,
    kv_dtype: torch.dtype | None = None,
    allocate: Callable[..., RollingCache] = RollingCache.allocate,
) -> Callable[[], object]:
    """One pass over a block whose ring is full."""
    c, geometry = config.dit, config.geometry
    frames, ring = config.stream.frames_per_block, config.stream.ring_blocks
    denoiser = Denoiser(
        dit, config.stream, config.sampler.sigmas[:1], *_latent_size(config), kv_dtype, allocate=allocate
    )
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


def _single(config: ModelConfig) -> tuple[float, ...]:
    """The light schedule's first step alone, whose ring is the same in every schedule; empty where there is none."""
    return config.sampler.light_sigmas[:1] if config.stream.history == "same_step" else ()


def _block_s(config: ModelConfig, run: RunConfig, stage_s: dict[str, float], sigmas: tuple[float, ...]) -> float:
    """Estimated seconds of a block with these noise levels."""
    passes = len(sigmas) + (1 if config.stream.history == "clean" else 0)
    return stage_s["audio"] + (2 if run.is_guided else 1) * passes * stage_s["pass"] + stage_s["vae"]


def _schedule(
    config: ModelConfig, run: RunConfig, stage_s: dict[str, float]
) -> tuple[str, tuple[float, ...], float, str]:
    """Schedule, its noise levels, the estimated time of a block, and why."""
    schedules = {"full": config.sampler.sigmas, "light": config.sampler.light_sigmas, "single": _single(config)}
    full, light = schedules["full"], schedules["light"]
    block_s = functools.partial(_block_s, config, run, stage_s)
    limit = run.load * config.geometry.block_s
    if run.steps != "auto":
        sigmas = schedules[run.steps]
        if not sigmas:
            raise ValueError(
                f"steps is {run.steps}, but checkpoint {config.name} has no {run.steps} schedule; choose full or auto"
            )
        return run.steps, sigmas, block_s(sigmas), f"{run.steps} schedule as configured"
    figures = f"a block takes {block_s(full):.2f} s with {len(full)} steps, the limit is {limit:.2f} s"
    if block_s(full) <= limit:
        return "full", full, block_s(full), f"full schedule: {figures}"
    if light:
        return "light", light, block_s(light), f"light schedule: {figures}"
    return "full", full, block_s(full), f"full schedule: {figures}, and the checkpoint has no light one"

"""How fast the transformer is on this device, with random weights: `avatarcast bench dit`, `python -m model.bench_dit`.

Runs the real denoising loop of one stream with the published sizes until its rings are full, then times every pass.
The ceilings (large products and the stream's own attention) are measured in the same process, so that the share reached
holds for this card at this hour. `--quality` also runs the plain transformer over the same noise and prints how far the
fast one is from it.

Work counted: what a pass computes once text keys, modulations and rotations are prepared, a multiply-add being two.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.attention import attend
from model.bench_pipeline import Decoding, first_pictures_ms, spread_of
from model.bench_timing import (
    BenchError,
    Timer,
    check_size,
    kernels_ms,
    name_of,
    print_result,
    quantile,
    size_of,
    this_device,
)
from model.compile import best_attention, speed_up
from model.component_config import WanVAEConfig
from model.config import DiTConfig, SamplerConfig, StreamConfig
from model.denoiser import Denoiser, StreamState
from model.dit import DiT
from model.fast import release
from model.fp8 import to_fp8_rows
from model.kv_cache import RollingCache
from model.random_weights import random_dit

DTYPES = ("fp8", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTBench:
    """What to measure."""

    width: int = 704
    """Picture width in pixels; a multiple of 16."""
    height: int = 384
    """Picture height in pixels; a multiple of 16."""
    dtype: str = "fp8"
    """Of the linear layers: fp8 or bf16; everything else is bf16."""
    kv: str = "bf16"
    """Of the rings' keys and values: bf16 or fp8; attention widens them to bf16."""
    blocks: int = 10
    """Measured blocks, after the rings are full."""
    layers: int = 40
    """Transformer layers; fewer for a quick look."""
    quality: bool = False
    """Compare with the plain bfloat16 transformer, and with float32 where the device has room."""
    profile: bool = False
    """Print what the device did in one pass."""
    plain: bool = False
    """Time the transformer as it is, neither fused nor compiled."""
    pipeline: bool = False
    """Also time whole blocks, decoding and the way to the host included, and the first pictures of a stream."""

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.dtype not in DTYPES:
            raise BenchError(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")
        if self.kv not in DTYPES:
            raise BenchError(f"kv is {self.kv!r}; choose {' or '.join(DTYPES)}")
        if self.plain and self.dtype == "fp8":
            raise BenchError("plain measures bf16 only; give --dtype bf16 with it")
        if not 1 <= self.blocks <= 1000:
            raise BenchError(f"blocks is {self.blocks}; choose 1 to 1000")
        if not 1 <= self.layers <= 40:
            raise BenchError(f"layers is {self.layers}; choose 1 to 40")

    @property
    def kv_dtype(self) -> torch.dtype | None:
        """As the denoiser takes it."""
        return torch.float8_e4m3fn if self.kv == "fp8" else None

    def config(self) -> DiTConfig:
        """The published sizes, cut to `layers`."""
        inject = tuple(i for i in DiTConfig().audio_inject_layers if i < self.layers)
        return DiTConfig(num_layers=self.layers, audio_inject_layers=inject)


def pass_flops(cfg: DiTConfig, tokens: int, keys: int) -> dict[str, float]:
    """Work of one pass by kind of kernel, in FLOP.

    Args:
        cfg: sizes.
        tokens: noisy tokens of a block.
        keys: what self-attention sees, condition and ring.
    """
    d, y, j = cfg.dim, cfg.num_layers, len(cfg.audio_inject_layers)
    linear = 2 * tokens * d * (y * (6 * d + 2 * cfg.ffn_dim) + j * 2 * d)
    cross = 4 * tokens * d * (y * cfg.text_len + j * (cfg.num_audio_token + 1))
    return {"linear": float(linear), "attention": float(4 * tokens * keys * d * y), "cross_attention": float(cross)}


@torch.inference_mode()
def ceilings(cfg: DiTConfig, tokens: int, keys: int, device: torch.device) -> dict[str, float]:
    """TFLOP/s of single kernels at the pass's own shapes: products in bf16 and fp8, self-attention."""
    timer, dtype = Timer(device), torch.bfloat16
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)  # noqa: E731
    x, w = draw(tokens, cfg.dim), draw(cfg.ffn_dim, cfg.dim)
    product = 2e-12 * tokens * cfg.dim * cfg.ffn_dim
    found = {"bf16_gemm": product / timer.median_s(lambda: x @ w.t())}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        (x8, sx), (w8, sw) = to_fp8_rows(x), to_fp8_rows(w)
        sw = sw.t().contiguous()
        run = lambda: torch._scaled_mm(  # noqa: E731
            x8, w8.t(), scale_a=sx, scale_b=sw, out_dtype=dtype, use_fast_accum=True
        )
        found["fp8_gemm"] = product / timer.median_s(run)
    q, k, v = draw(1, tokens, cfg.num_heads, cfg.head_dim), *(draw(1, keys, cfg.num_heads, cfg.head_dim) for _ in "kv")
    with best_attention(device):
        found["attention"] = 4e-12 * tokens * keys * cfg.dim / timer.median_s(lambda: attend(q, k, v))
    return found


class Run:
    """One stream of random inputs through a transformer."""

    def __init__(
        self,
        dit: DiT,
        bench: DiTBench,
        stream: StreamConfig,
        sigmas: tuple[float, ...],
        allocate: Callable[..., RollingCache] = RollingCache.allocate,
    ) -> None:
        cfg, self.dit = dit.cfg, dit
        parameter = dit.head.head.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        h, w = bench.height // 8, bench.width // 8
        frames = stream.frames_per_block
        self._draws = torch.Generator().manual_seed(1)
        self._shape = (1, cfg.in_dim, frames, h, w)
        self.denoiser = Denoiser(dit, stream, sigmas, h, w, bench.kv_dtype, allocate=allocate)
        text = dit.text_kv(self._draw(1, min(40, cfg.text_len), cfg.text_dim))
        reference, motion = self._draw(1, cfg.in_dim, 1, h, w), self._draw(*self._shape)
        self.state: StreamState = self.denoiser.start(text, reference, motion)
        self._features = self._draw(1, 1, cfg.audio_layers, cfg.audio_dim, 4 * frames)
        self._pose = dit.pose(None, frames, h, w)
        self.latent_shape = (frames, h, w)
        self.block_index = 0

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._draws).to(self.device, self.dtype)

    def block(self) -> Tensor:
        """One block, its sound prepared anew: latents [1, C, F, h, w]."""
        noise = self._draw(*self._shape)
        audio = self.dit.audio_condition(self._features)
        out = self.denoiser.block(self.state, self.block_index, noise, audio, self._pose, 10)
        self.block_index += 1
        return out

    def fill(self) -> None:
        """Run until the rings are full and one block has been overwritten."""
        while self.block_index < self.denoiser.stream.ring_blocks + 1:
            self.block()


@torch.inference_mode()
def passes_ms(run: Run, blocks: int) -> tuple[list[float], list[float]]:
    """Milliseconds of every pass and of every block, rings full before the first."""
    timer, forward = Timer(run.device), run.denoiser.step
    marks: list[tuple[Any, Any]] = []

    def timed(*args: Any, **kwargs: Any) -> None:
        if run.device.type != "cuda":
            start = time.perf_counter()
            forward(*args, **kwargs)
            marks.append((start, time.perf_counter()))
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        forward(*args, **kwargs)
        events[1].record()
        marks.append(events)

    run.fill()
    run.denoiser.step = timed
    try:
        block_ms = []
        for _ in range(blocks):
            timer.sync()
            start = time.perf_counter()
            run.block()
            timer.sync()
            block_ms.append(1000 * (time.perf_counter() - start))
    finally:
        run.denoiser.step = forward
    if run.device.type == "cuda":
        return [a.elapsed_time(b) for a, b in marks], block_ms
    return [1000 * (b - a) for a, b in marks], block_ms


@torch.inference_mode()
def latents_of(dit: DiT, bench: DiTBench, blocks: int = 2) -> Tensor:
    """Float32 latents on the host of some blocks over short rings, equal inputs in every precision."""
    run = Run(dit, bench, StreamConfig(ring_blocks=2), SamplerConfig().sigmas)
    return torch.stack([run.block().float().cpu() for _ in range(blocks)])


def distance(got: Tensor, wanted: Tensor) -> dict[str, float]:
    """Cosine and relative error."""
    cosine = torch.cosine_similarity(got.flatten().double(), wanted.flatten().double(), 0)
    return {"cosine": round(float(cosine), 6), "relative_error": round(float((got - wanted).norm() / wanted.norm()), 5)}


def _references(dit: DiT, bench: DiTBench, free_bytes: float) -> dict[str, Tensor]:
    """Latents of the plain transformer with its own keys, in bfloat16 and where it fits in float32."""
    references, bench = {}, dataclasses.replace(bench, kv="bf16")
    weights = sum(p.numel() for p in dit.parameters())
    if free_bytes > 4 * weights + 50e9 * bench.layers / 40:
        references["float32"] = latents_of(dit.float(), bench)
        dit.bfloat16()
        release()
    references["bfloat16"] = latents_of(dit, bench)
    release()
    return references


def measure(bench: DiTBench, config: DiTConfig | None = None, decoder: WanVAEConfig | None = None) -> dict[str, Any]:
    """Everything `bench` asks for, as plain values.

    Args:
        bench: what to measure.
        config, decoder: sizes in place of the published ones.
    """
    device = this_device()
    cfg, stream, sigmas = config or bench.config(), StreamConfig(), SamplerConfig().sigmas
    h, w = bench.height // 8, bench.width // 8
    tokens = stream.frames_per_block * (h // 2) * (w // 2)
    keys = cfg.condition_tokens(h, w) + stream.ring_blocks * tokens
    dit = random_dit(cfg, 0, device, torch.bfloat16)
    result: dict[str, Any] = {
        "device": name_of(device),
        "torch": torch.__version__,
        "size": f"{bench.width}x{bench.height}",
        "dtype": bench.dtype + (" plain" if bench.plain else ""),
        "kv": bench.kv,
        "plan": "single",
        "layers": cfg.num_layers,
        "steps": len(sigmas),
        "tokens": tokens,
        "keys": keys,
    }
    free = torch.cuda.mem_get_info()[1] if device.type == "cuda" else 0.0
    references = _references(dit, bench, free) if bench.quality else {}
    if not bench.plain:
        speed_up(dit, fp8=bench.dtype == "fp8")
        release()
    if references:
        got = latents_of(dit, bench)
        result["quality"] = {name: distance(got, wanted) for name, wanted in references.items()}
        if "float32" in references:
            result["quality"]["plain bfloat16 against float32"] = distance(*reversed(references.values()))
        release()
    result["ceilings_tflops"] = {k: float(f"{v:.4g}") for k, v in ceilings(cfg, tokens, keys, device).items()}
    release()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        run = Run(dit, bench, stream, sigmas)
        forward_ms, block_ms = passes_ms(run, bench.blocks)
    result |= _figures(
        bench, pass_flops(cfg, tokens, keys), result["ceilings_tflops"], forward_ms, block_ms, len(sigmas)
    )
    if device.type == "cuda":
        result["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        result["device_used_gb"] = round((free - torch.cuda.mem_get_info()[0]) / 1e9, 2)
    if bench.profile:
        with torch.inference_mode():
            result["kernels_ms"] = kernels_ms(run.block, device, per=run.denoiser.num_passes)
    if bench.pipeline:
        del run
        result["pipeline"] = _pipeline(dit, bench, stream, sigmas, decoder or WanVAEConfig())
    return result


@torch.inference_mode()
def _pipeline(
    dit: DiT, bench: DiTBench, stream: StreamConfig, sigmas: tuple[float, ...], cfg: WanVAEConfig
) -> dict[str, Any]:
    """First pictures of a stream, and a full stream's rate with all steps and with one less."""
    figures: dict[str, Any] = {}
    for count in (len(sigmas), len(sigmas) - 1):
        release()
        run = Run(dit, bench, stream, sigmas[:count])
        decode = Decoding(cfg, run.device, bench.height, bench.width)
        for _ in range(2):
            decode(torch.zeros(1, cfg.z_dim, *run.latent_shape, device=run.device)).wait()
        if count == len(sigmas):
            figures["first_pictures_ms"] = round(first_pictures_ms(run, decode), 1)
        run.fill()
        figures[f"{count} steps"] = spread_of(run, decode, bench.blocks)
        del run, decode
    return figures


def _figures(
    bench: DiTBench,
    work: dict[str, float],
    ceiling: dict[str, float],
    forward_ms: list[float],
    block_ms: list[float],
    steps: int,
) -> dict[str, Any]:
    median, block = statistics.median(forward_ms), statistics.median(block_ms)
    gemm = ceiling.get(f"{bench.dtype}_gemm", ceiling["bf16_gemm"])
    attention = work["attention"] + work["cross_attention"]
    ideal_ms = 1e-9 * (work["linear"] / gemm + attention / ceiling["attention"])
    total = sum(work.values())
    return {
        "forward_ms": {"p50": round(median, 2), "p99": round(quantile(forward_ms, 0.99), 2)},
        "block_ms": {"p50": round(block, 2), "p99": round(quantile(block_ms, 0.99), 2)},
        "beside_passes_ms": round(block - steps * median, 2),
        "passes": len(forward_ms),
        "fps": round(12e3 / block, 2),
        "tflop": round(total / 1e12, 1),
        "tflops": round(1e-9 * total / median, 1),
        "ceiling_share": round(ideal_ms / median, 3),
    }


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for people."""
    rows = [
        ("device", f"{result['device']}, torch {result['torch']}"),
        ("shape", f"{result['size']}, {result['tokens']} tokens on {result['keys']} keys, {result['layers']} layers"),
        ("dtype, plan, steps", f"{result['dtype']}, {result['plan']}, {result['steps']}"),
        ("keys and values", result["kv"]),
        ("forward p50 / p99", "{p50:.1f} / {p99:.1f} ms".format(**result["forward_ms"])),
        ("block p50 / p99", "{p50:.1f} / {p99:.1f} ms".format(**result["block_ms"])),
        ("of it beside the passes", f"{result['beside_passes_ms']:.1f} ms"),
        ("pictures a second, without decoding", f"{result['fps']:.1f}"),
        ("reached", f"{result['tflops']:.0f} TFLOP/s ({result['tflop']} TFLOP a forward)"),
        ("ceilings", ", ".join(f"{k} {v:.0f}" for k, v in result["ceilings_tflops"].items()) + " TFLOP/s"),
        ("share of the ceiling", f"{100 * result['ceiling_share']:.0f} %"),
    ]
    if "peak_gb" in result:
        rows.append(("memory", f"{result['peak_gb']} GB allocated at most, {result['device_used_gb']} GB held"))
    for name, figures in result.get("pipeline", {}).items():
        if isinstance(figures, float):
            rows.append(("first pictures of a stream on the host", f"{figures:.0f} ms"))
        else:
            text = "{fps} pictures a second, decoded; p99/p50 {p99_over_p50}, memory growth {growth_bytes} bytes"
            rows.append((f"{name} over {figures['blocks']} blocks", text.format(**figures)))
    for name, figures in result.get("quality", {}).items():
        rows.append((name, "cosine {cosine}, relative error {relative_error}".format(**figures)))
    return rows


def run_bench(bench: DiTBench, *, as_json: bool = False) -> int:
    """Measure and print a table, and with `as_json` one JSON line behind it."""
    result = measure(bench)
    print_result(table(result), result, as_json=as_json)
    return 0


def main() -> int:
    """`python -m model.bench_dit`, for machines without the server's dependencies."""
    parser = argparse.ArgumentParser(prog="model.bench_dit", description="Time the transformer with random weights.")
    parser.add_argument("--size", default="704x384")
    for name in ("blocks", "layers"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    for name in ("dtype", "kv"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    for name in ("quality", "profile", "plain", "pipeline"):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json, size = given.pop("json"), given.pop("size")
    try:
        width, height = size_of(size)
        return run_bench(DiTBench(width=width, height=height, **given), as_json=as_json)
    except BenchError as error:
        print(f"bench_dit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

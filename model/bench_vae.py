"""How fast the published video VAE decodes on this device: `avatarcast bench vae`, `python -m model.bench_vae`.

One stream with random weights at the published sizes, block by block from its first latent, as a session decodes:
decode three latents, round to 8 bits, copy to the host. The ceiling, a large matrix product, is measured in the same
process. Work counted: convolutions and products, a multiply-add being two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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
from model.component_config import WanVAEConfig
from model.fast import release
from model.pictures import HostPictures, to_pixels
from model.random_weights import fill_random
from model.wan_decoder import WanDecoder, for_gpu
from model.wan_vae import LATENTS_PER_CALL

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEBench:
    """What to measure."""

    width: int = 704
    """Picture width in pixels; a multiple of 16."""
    height: int = 384
    """Picture height in pixels; a multiple of 16."""
    dtype: str = "bf16"
    """Of weights and pictures inside the decoder: bf16 or fp32."""
    blocks: int = 20
    """Measured blocks of three latents."""
    quality: bool = False
    """Compare with the same decoder in float32."""
    profile: bool = False
    """List the longest kernels of a block."""

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.dtype not in DTYPES:
            raise BenchError(f"dtype is {self.dtype!r}; choose {' or '.join(DTYPES)}")
        if not 1 <= self.blocks <= 10_000:
            raise BenchError(f"blocks is {self.blocks}; choose 1 to 10000")


class DecodedStream:
    """Random latents through a decoder, block by block."""

    def __init__(self, decoder: WanDecoder, cfg: WanVAEConfig, height: int, width: int) -> None:
        self.decoder = decoder
        weight = decoder.conv_in.weight
        self._shape = (1, cfg.z_dim, LATENTS_PER_CALL, height // cfg.stride[1], width // cfg.stride[2])
        self._draws = torch.Generator(weight.device).manual_seed(1)
        self._like = weight
        self.slots: tuple[Tensor | None, ...] = (None,) * decoder.num_slots
        _, self.slots = decoder(self.latents()[:, :, :1], self.slots, is_first=True)

    def latents(self) -> Tensor:
        """[1, z, F, h, w]."""
        drawn = torch.randn(self._shape, generator=self._draws, device=self._like.device)
        return drawn.to(self._like.dtype)

    def block(self, latents: Tensor | None = None) -> Tensor:
        """The next pictures [1, 3, T, H, W]."""
        video, self.slots = self.decoder(self.latents() if latents is None else latents, self.slots, is_first=False)
        return video


def random_wan_decoder(cfg: WanVAEConfig, device: torch.device, dtype: torch.dtype) -> WanDecoder:
    """A decoder laid out for `device`, its weights random."""
    with torch.device("meta"):
        decoder = WanDecoder(cfg)
    decoder = decoder.to_empty(device=device).eval().requires_grad_(False)
    fill_random(decoder, 0)
    decoder.to(dtype)
    if device.type == "cuda":
        for_gpu(decoder)
    return decoder


def block_flops(cfg: WanVAEConfig, height: int, width: int) -> int:
    """Work of one block, counted without doing it."""
    with torch.device("meta"):
        decoder = WanDecoder(cfg).requires_grad_(False)
        latents = torch.empty(1, cfg.z_dim, LATENTS_PER_CALL, height // cfg.stride[1], width // cfg.stride[2])
    with FlopCounterMode(display=False) as counter:
        decoder(latents, (None,) * decoder.num_slots, is_first=False)
    return counter.get_total_flops()


@torch.inference_mode()
def ceiling_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Of a large product of random matrices."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in "ab")
    return 2e-12 * n**3 / Timer(device).median_s(lambda: a @ b)


@torch.inference_mode()
def quality(bench: VAEBench, cfg: WanVAEConfig, stream: DecodedStream) -> dict[str, float]:
    """Difference of two blocks from float32, on the scale of -1..1."""
    device = stream.latents().device
    wide = DecodedStream(random_wan_decoder(cfg, device, torch.float32), cfg, bench.height, bench.width)
    fresh = DecodedStream(stream.decoder, cfg, bench.height, bench.width)
    error = largest = 0.0
    for _ in range(2):
        latents = wide.latents()
        fresh.latents()
        want = wide.block(latents).clamp(-1, 1)
        difference = (fresh.block(latents.to(DTYPES[bench.dtype])).float().clamp(-1, 1) - want).abs()
        error, largest = difference.mean().item(), max(largest, difference.max().item())
    return {"mean": round(error, 5), "largest": round(largest, 4)}


def measure(bench: VAEBench, config: WanVAEConfig | None = None) -> dict[str, Any]:
    """Everything `bench` asks for, as plain values.

    Args:
        bench: what to measure.
        config: sizes in place of the published ones.
    """
    device, cfg, dtype = this_device(), config or WanVAEConfig(), DTYPES[bench.dtype]
    tflop = 1e-12 * block_flops(cfg, bench.height, bench.width)
    ceiling = ceiling_tflops(device, dtype)
    result: dict[str, Any] = {
        "device": name_of(device),
        "torch": torch.__version__,
        "size": f"{bench.width}x{bench.height}",
        "dtype": bench.dtype,
        "latents": LATENTS_PER_CALL,
        "tflop": round(tflop, 2),
        "ceiling_tflops": float(f"{ceiling:.4g}"),
    }
    release()
    with torch.inference_mode():
        stream = DecodedStream(random_wan_decoder(cfg, device, dtype), cfg, bench.height, bench.width)
        if bench.quality:
            result["quality"] = quality(bench, cfg, stream)
            release()
        result |= _timed(bench, stream, device)
        if bench.profile:
            result["kernels_ms"] = kernels_ms(stream.block, device)
    milliseconds = result["decode_ms"]["p50"]
    result["tflops"] = round(1000 * tflop / milliseconds, 1)
    result["ceiling_share"] = round(result["tflops"] / ceiling, 3)
    return result


def _timed(bench: VAEBench, stream: DecodedStream, device: torch.device) -> dict[str, Any]:
    timer, on_gpu = Timer(device), device.type == "cuda"
    for _ in range(3):
        pictures = HostPictures(to_pixels(stream.block()))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    decode = [1000 * timer.seconds(stream.block) for _ in range(bench.blocks)]
    before = torch.cuda.memory_allocated() if on_gpu else 0
    whole = [1000 * timer.seconds(lambda: HostPictures(to_pixels(stream.block())).wait()) for _ in range(bench.blocks)]
    figures: dict[str, Any] = {
        "blocks": bench.blocks,
        "decode_ms": _spread(decode),
        "to_host_ms": _spread(whole),
        "pictures": len(pictures.wait()),
    }
    if on_gpu:
        figures["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        figures["growth_bytes"] = torch.cuda.memory_allocated() - before
        figures["state_gb"] = round(sum(s.nbytes for s in stream.slots if s is not None) / 1e9, 3)
    return figures


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 2), "p99": round(quantile(values, 0.99), 2)}


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for people."""
    rows = [
        ("device", f"{result['device']}, torch {result['torch']}"),
        ("shape, dtype", f"{result['size']}, {result['latents']} latents a block, {result['dtype']}"),
        ("decode p50 / p99", "{p50:.1f} / {p99:.1f} ms".format(**result["decode_ms"])),
        ("to 8 bits on the host p50 / p99", "{p50:.1f} / {p99:.1f} ms".format(**result["to_host_ms"])),
        ("reached", f"{result['tflops']:.0f} TFLOP/s ({result['tflop']} TFLOP a block)"),
        ("ceiling, share", f"{result['ceiling_tflops']:.0f} TFLOP/s, {100 * result['ceiling_share']:.0f} %"),
    ]
    if "peak_gb" in result:
        rows.append(("memory", f"{result['peak_gb']} GB allocated at most, {result['state_gb']} GB a session"))
        rows.append(("growth", f"{result['growth_bytes']} bytes over {result['blocks']} blocks"))
    if "quality" in result:
        rows.append(("against float32", "mean {mean}, largest {largest} of a range of 2".format(**result["quality"])))
    return rows


def run_bench(bench: VAEBench, *, as_json: bool = False) -> int:
    """Measure and print a table, and with `as_json` one JSON line behind it."""
    result = measure(bench)
    print_result(table(result), result, as_json=as_json)
    return 0


def main() -> int:
    """`python -m model.bench_vae`, for machines without the server's dependencies."""
    parser = argparse.ArgumentParser(prog="model.bench_vae", description="Time the video decoder with random weights.")
    parser.add_argument("--size", default="704x384")
    parser.add_argument("--blocks", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--dtype", default=argparse.SUPPRESS)
    for name in ("quality", "profile"):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json, size = given.pop("json"), given.pop("size")
    try:
        width, height = size_of(size)
        return run_bench(VAEBench(width=width, height=height, **given), as_json=as_json)
    except BenchError as error:
        print(f"bench_vae: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

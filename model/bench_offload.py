"""How fast one small GPU is whose layers, and rings, wait in main memory: `python -m model.bench_offload`.

Random weights of the published sizes, the runtime's own streaming (`model.offload`, `model.host_rings`), the decoder
beside it. A smaller card is imitated: the allocator gets no more than it has. Printed are a block's time decoded and on
the host, and the memory taken, beside what the planner says of both.

    python -m model.bench_offload [--offload weights+kv] [--dtype bf16] [--kv bf16] [--vae tiled] [--card 24] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from model.bench_dit import DTYPES, DiTBench, Run
from model.bench_pipeline import Decoding
from model.bench_timing import BenchError, Timer, name_of, print_result, quantile, size_of, this_device
from model.compile import speed_up
from model.config import ModelConfig
from model.fast import release
from model.gpus import USABLE, parse_gpus
from model.host_rings import LayerBuffers
from model.kv_cache import RollingCache
from model.memory import GB, Setting
from model.offload import host_bytes, stream_weights
from model.parallel import Plan
from model.planner import lay_out
from model.published import forged_config
from model.random_weights import random_dit

OFFLOADS = ("weights", "weights+kv")


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadBench:
    """What to measure."""

    size: str = "704x384"
    """Width x height."""
    offload: str = "weights+kv"
    """What waits in main memory: weights, or weights+kv."""
    dtype: str = "fp8"
    """Of the linear layers: fp8 or bf16."""
    kv: str = "bf16"
    """Of the rings: fp8 or bf16."""
    vae: str = "shared"
    """The decoder whole (shared) or tile by tile (tiled)."""
    card: float = 0.0
    """Nominal GB of the imitated card; 0: the card as it is."""
    blocks: int = 6
    """Measured blocks, rings full."""
    model: str = "14b"
    """14b or mini."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("offload", OFFLOADS),
            ("dtype", tuple(DTYPES)),
            ("kv", tuple(DTYPES)),
            ("vae", ("shared", "tiled")),
            ("model", ("14b", "mini")),
        ):
            if getattr(self, name) not in choices:
                raise BenchError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(choices)}")
        if not 1 <= self.blocks <= 1000:
            raise BenchError(f"blocks is {self.blocks}; choose 1 to 1000")

    @property
    def plan(self) -> Plan:
        return Plan(
            kind="offload", offload=self.offload, weights_dtype=self.dtype, kv_dtype=self.kv, vae=self.vae
        )  # fmt: skip

    def config(self) -> ModelConfig:
        """The whole model."""
        width, height = size_of(self.size)
        config = forged_config(self.model)
        return replace(config, width=width, height=height, stream=replace(config.stream, replace_sink=False))


@torch.inference_mode()
def measure(bench: OffloadBench, compiled: bool = True) -> dict[str, Any]:
    """Everything `bench` asks for, as plain values.

    Args:
        bench: what to measure.
        compiled: leave the compiler out to try the script.
    """
    device, config = this_device(), bench.config()
    on_gpu = device.type == "cuda"
    dit = random_dit(config.dit, 0, device, torch.bfloat16)
    speed_up(dit, fp8=bench.dtype == "fp8", backend="inductor" if compiled else None)
    streamed = stream_weights(dit, device)
    release()
    if on_gpu:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(min(1.0, USABLE * bench.card * GB / total) if bench.card else 1.0)
    allocate = LayerBuffers(device).allocate if bench.offload == "weights+kv" else RollingCache.allocate
    shape = DiTBench(width=config.width, height=config.height, kv=bench.kv)
    run = Run(dit, shape, config.stream, config.sampler.sigmas, allocate)
    decode = Decoding(config.vae, device, config.height, config.width, bench.vae == "tiled")
    run.fill()
    timer, times = Timer(device), []
    for _ in range(bench.blocks):
        timer.sync()
        start = time.perf_counter()
        decode(run.block()).wait()
        times.append(time.perf_counter() - start)
    cards = parse_gpus(f"1x{bench.card:g}GB" if bench.card else "1x141GB")
    planned = lay_out(
        Setting(config=config, steps=len(config.sampler.sigmas), with_encoders=False), bench.plan, cards, 1
    )
    result: dict[str, Any] = {
        "device": name_of(device),
        "torch": torch.__version__,
        "size": bench.size,
        "plan": f"{bench.plan.name} {bench.offload}",
        "dtype": f"{bench.dtype}/{bench.kv}",
        "card_gb": bench.card,
        "block_s": {"p50": round(statistics.median(times), 4), "p99": round(quantile(times, 0.99), 4)},
        "planned_block_s": round(planned.block_s, 4),
        "planned_gb": round(planned.needs[0].peak / GB, 4),
        "host_gb": round(
            host_bytes(config, bench.dtype == "fp8", bench.kv == "fp8", bench.offload != "weights") / GB, 4
        ),
        "layers_gb": round(streamed.host_bytes / GB, 4),
    }
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        result["allocated_gb"] = round(torch.cuda.max_memory_allocated() / GB, 4)
        result["driver_gb"] = round((total - free) / GB, 4)
    return result


def table(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for people."""
    rows = [
        ("device", f"{result['device']}, torch {result['torch']}"),
        ("plan, size, weights/rings", f"{result['plan']}, {result['size']}, {result['dtype']}"),
        ("block on the host p50 / p99", "{p50:.3f} / {p99:.3f} s".format(**result["block_s"])),
        ("the planner's block", f"{result['planned_block_s']:.3f} s (for the card's class)"),
        ("the planner's memory, without reserve", f"{result['planned_gb']:.2f} GB"),
        ("main memory, page-locked", f"{result['host_gb']:.2f} GB"),
    ]
    if "allocated_gb" in result:
        rows.append(("allocated at most, by the driver", f"{result['allocated_gb']}, {result['driver_gb']} GB"))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.bench_offload", description="Time one small GPU.")
    for name in ("size", "offload", "dtype", "kv", "vae", "model"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    parser.add_argument("--card", type=float, default=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args(arguments))
    as_json = given.pop("json")
    try:
        bench = OffloadBench(**given)
        on_gpu = this_device().type == "cuda"
        if not on_gpu and bench.model == "14b":
            raise BenchError("model is 14b, but there is no GPU; give --model mini to try the script")
        result = measure(bench, compiled=on_gpu)
    except BenchError as error:
        print(f"bench_offload: {error}", file=sys.stderr)
        return 2
    except torch.cuda.OutOfMemoryError as error:
        print(f"bench_offload: it does not fit: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print_result(table(result), result, as_json=as_json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

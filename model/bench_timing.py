"""What the benchmarks of the model share: arguments, clocks, kernel lists, and how figures are printed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from model.errors import ModelError


class BenchError(ModelError):
    """The measurement cannot run as asked; the message names the argument."""


def size_of(text: str) -> tuple[int, int]:
    """`704x384` as width and height."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise BenchError(f"size is {text!r}; write it as WIDTHxHEIGHT, for example 704x384")
    return int(parts[0]), int(parts[1])


def check_size(width: int, height: int) -> None:
    """Refuse what the published model cannot show."""
    for name, value in (("width", width), ("height", height)):
        if value < 64 or value % 16:
            raise BenchError(f"{name} is {value}; give a multiple of 16, 64 or more")


def this_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class Timer:
    """Seconds of repeated work on a device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def sync(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one run, waited for."""
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - start

    def median_s(self, work: Callable[[], object], runs: int = 20) -> float:
        """Median of `runs` after three to warm up."""
        return statistics.median([self.seconds(work) for _ in range(runs + 3)][3:])


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def kernels_ms(work: Callable[[], object], device: torch.device, per: int = 1, rows: int = 25) -> dict[str, float]:
    """Milliseconds of the longest kernels of `work`, divided by `per`, and of all of them."""
    from torch.profiler import ProfilerActivity, profile

    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as record:
        work()
        Timer(device).sync()
    spent: dict[str, float] = {}
    for row in record.key_averages():
        micros = row.self_device_time_total if is_cuda else row.self_cpu_time_total
        spent[row.key[:110]] = spent.get(row.key[:110], 0.0) + micros / 1000 / per
    longest = sorted(spent.items(), key=lambda item: -item[1])[:rows]
    return {name: round(ms, 3) for name, ms in longest} | {"all kernels": round(sum(spent.values()), 3)}


def print_result(rows: list[tuple[str, str]], result: dict[str, Any], *, as_json: bool) -> None:
    """A table of `rows`, the kernel list if `result` has one, and with `as_json` one JSON line behind it."""
    rows = rows + [(f"{ms:9.3f} ms", name) for name, ms in result.get("kernels_ms", {}).items()]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    if as_json:
        print(json.dumps(result))

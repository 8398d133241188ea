"""One sitting at a training stage: time budget, learning rate, averaged weights, saved state, captured steps.

A stage runs for a stated number of seconds and leaves its averaged weights in float16 shards. `--resume` goes on from
those weights with fresh optimiser moments and a new schedule; it does not continue the earlier sitting exactly.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHARD_BYTES = 14_000_000


def set_up() -> None:
    torch.manual_seed(0)
    if DEVICE.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(2)


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")


class Sitting:
    """Counts the seconds of one sitting; learning rate and schedules hang on the share that has passed."""

    def __init__(self, name: str, seconds: float, log_every_s: float = 30.0) -> None:
        self.name, self.seconds, self.log_every_s = name, seconds, log_every_s
        self.start = self._logged = time.monotonic()
        self.iteration = 0
        self._losses: list[Tensor] = []

    @property
    def share(self) -> float:
        return min(1.0, (time.monotonic() - self.start) / max(self.seconds, 1e-6))

    @property
    def done(self) -> bool:
        return self.share >= 1.0

    def rate(self, peak: float, warm_up: int = 200, floor: float = 0.02) -> float:
        """Linear warm-up, then a cosine down to `floor` of the peak over the sitting."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.share))
        return peak * min(1.0, (self.iteration + 1) / warm_up) * (floor + (1 - floor) * cosine)

    def tick(self, loss: Tensor) -> bool:
        """Count one step; True when it is time to report."""
        self.iteration += 1
        self._losses.append(loss.detach())
        if time.monotonic() - self._logged < self.log_every_s:
            return False
        self._logged = time.monotonic()
        return True

    def report(self, extra: str = "") -> None:
        mean = torch.stack(self._losses).mean().item() if self._losses else float("nan")
        self._losses = []
        elapsed = time.monotonic() - self.start
        print(
            f"{self.name} {self.iteration} {elapsed:.0f}s {1000 * elapsed / max(1, self.iteration):.0f}ms/step "
            f"loss {mean:.4f} {extra}",
            flush=True,
        )


class Average:
    """Exponential moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, rate: float = 0.002) -> None:
        self.rate, self._module = rate, module
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self._count = 0

    @torch.no_grad()
    def update(self) -> None:
        self._count += 1
        live = self._module.state_dict()
        keys = [k for k, v in self.values.items() if v.is_floating_point()]
        rate = max(self.rate, 1 / (self._count + 1))
        torch._foreach_lerp_([self.values[k] for k in keys], [live[k] for k in keys], rate)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def adamw(parameters: Iterable[nn.Parameter], decay: float = 0.02, captured: bool = False) -> torch.optim.AdamW:
    on_gpu = DEVICE.type == "cuda"
    rate = torch.tensor(1e-3, device=DEVICE) if captured and on_gpu else 1e-3
    return torch.optim.AdamW(
        parameters, rate, betas=(0.9, 0.98), weight_decay=decay, fused=on_gpu, capturable=captured and on_gpu
    )


class CapturedStep:
    """Runs `step(*inputs) -> loss` (forward, backward, optimiser) as one CUDA graph; eager elsewhere.

    The inputs are static buffers: `load` copies a batch into them. Everything inside must avoid host decisions.
    """

    def __init__(self, step: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(t.clone() for t in inputs)
        self._step, self._graph = step, None
        if DEVICE.type != "cuda":
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._loss = step(*self.inputs)
            self._graph = graph
        except RuntimeError as error:
            torch.cuda.synchronize()
            print(f"not captured, running eager: {str(error).splitlines()[0]}", flush=True)

    def __call__(self, *batch: Tensor) -> Tensor:
        if self._graph is None:
            return self._step(*batch)
        for buffer, value in zip(self.inputs, batch, strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return self._loss.clone()


def _shards(path: Path) -> list[Path]:
    files = [p for p in path.parent.glob(path.name + ".*") if p.suffix[1:].isdigit()]
    return sorted(files, key=lambda p: int(p.suffix[1:]))


def save_shards(path: Path, tensors: dict[str, Tensor], note: dict | None = None) -> None:
    """float16 safetensors files PATH.0, PATH.1, ... of at most SHARD_BYTES each; the first carries `note`."""
    for old in _shards(path):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        half = value.detach().half().contiguous().cpu() if value.is_floating_point() else value.cpu()
        if size + half.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = half
        size += half.nbytes
    for index, shard in enumerate(shards):
        save_file(shard, f"{path}.{index}", {"note": json.dumps(note or {})})


def load_shards(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save_shards` wrote, in float32, and its note."""
    tensors: dict[str, Tensor] = {}
    note: dict = {}
    files = _shards(path)
    if not files:
        raise FileNotFoundError(f"{path}.0 is missing; run the stage that makes it first")
    for file in files:
        tensors.update({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
        with safe_open(file, "pt") as handle:
            note = note or json.loads((handle.metadata() or {}).get("note", "{}"))
    return tensors, note

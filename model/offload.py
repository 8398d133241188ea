"""A transformer whose layers wait in host memory and stream to the device one layer ahead of the computation.

For one small GPU. Two buffers on the device take the layers in turn: layer i lies in buffer i mod 2 whenever it runs,
so its tensors are views into that buffer once and for all, and only their content comes and goes. While a layer
computes, the next one is copied from page-locked memory on a stream of its own. A pass cannot be faster than the copies
(55 GB/s over PCIe 5: 28 GB of bfloat16 layers in 0.5 s); what is gained is that two layers of 40 need room.

Applied from outside, behind `compile.speed_up`, in whatever precision the layers have. Whoever walks over `dit.blocks`
gets each block with its weights in place. On a processor the copies are plain ones, which tests the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.compile import speed_up
from model.config import ModelConfig, RunConfig
from model.dit import DiT
from model.fast import device_of
from model.memory import GB, Setting, block_bytes
from model.share import Share
from model.solvers import with_choices
from model.weights import load_weights, read_config

log = logging.getLogger(__name__)

_ALIGNMENT = 256
"""Bytes: every tensor starts where any kernel may read it."""


class StreamedBlocks(nn.ModuleList):
    """Layers in host memory; see the module.

    Args:
        blocks: loaded, in their final form, on the host.
        device: where they run.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        super().__init__(blocks)
        self._device, self._is_cuda = device, device.type == "cuda"
        layouts = [_layout(block) for block in blocks]
        self.layer_bytes = max(size for _, size in layouts)
        """Of one device buffer."""
        self._buffers = [torch.empty(self.layer_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        pairs = enumerate(zip(blocks, layouts, strict=True))
        self._host = [self._move_out(*layout, index % 2) for index, (_, layout) in pairs]
        self._resident: list[int | None] = [None, None]
        self._copies = torch.cuda.Stream(device) if self._is_cuda else None
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None, None]

    @property
    def host_bytes(self) -> int:
        """Page-locked host memory that all layers take."""
        return sum(host.numel() for host in self._host)

    def __iter__(self) -> Iterator[nn.Module]:
        """Block by block, each with its weights in place while it is the current one."""
        for index, block in enumerate(super().__iter__()):
            self._bring(index)
            side = index % 2
            if self._copied[side] is not None:
                torch.cuda.current_stream().wait_event(self._copied[side])
            following = (index + 1) % len(self)
            if following % 2 != side:
                self._bring(following)
            try:
                yield block
            finally:
                if self._is_cuda:
                    self._used[side] = torch.cuda.Event()
                    self._used[side].record()

    def _bring(self, index: int) -> None:
        """Queue the copy of a layer into its buffer, behind the last use of what lies there."""
        side = index % 2
        if self._resident[side] == index:
            return
        self._resident[side] = index
        host = self._host[index]
        into = self._buffers[side][: host.numel()]
        if self._copies is None:
            into.copy_(host)
            return
        if self._used[side] is not None:
            self._copies.wait_event(self._used[side])
        with torch.cuda.stream(self._copies):
            into.copy_(host, non_blocking=True)
            self._copied[side] = torch.cuda.Event()
            self._copied[side].record()

    def _move_out(self, places: list[tuple[Tensor, int]], size: int, side: int) -> Tensor:
        """Copy a block's tensors to one page-locked piece of the host, and leave views of the device buffer instead."""
        host = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_cuda)
        for tensor, start in places:
            stop = start + tensor.numel() * tensor.element_size()
            host[start:stop].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            tensor.data = self._buffers[side][start:stop].view(tensor.dtype).view(tensor.shape)
        return host


def _layout(block: nn.Module) -> tuple[list[tuple[Tensor, int]], int]:
    """A block's tensors with the byte at which each starts, and the bytes of all."""
    places, end = [], 0
    for tensor in (*block.parameters(), *block.buffers()):
        places.append((tensor, end))
        size = tensor.numel() * tensor.element_size()
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, end


@torch.no_grad()
def stream_weights(dit: DiT, device: torch.device) -> StreamedBlocks:
    """Leave a transformer's layers on the host and move the rest to the device, in place.

    Args:
        dit: on the host, in its final form (`compile.speed_up` done).
        device: where it runs.
    """
    blocks = dit.blocks
    dit.blocks = nn.ModuleList()
    dit.to(device)
    dit.blocks = StreamedBlocks(blocks, device)
    return dit.blocks


def is_streamed(dit: DiT) -> bool:
    """Whether a transformer's layers stay on the host."""
    return isinstance(dit.blocks, StreamedBlocks)


def host_bytes(config: ModelConfig, fp8: bool, kv_fp8: bool, keeps_rings: bool) -> int:
    """Page-locked memory that a model's layers, and the rings of one session, take on the host.

    Such memory is handed out in powers of two.
    """
    locked = lambda size: 1 << (int(size) - 1).bit_length()  # noqa: E731
    dit, stream = config.dit, config.stream
    total = dit.num_layers * locked(block_bytes(dit, fp8))
    if keeps_rings:
        setting = Setting(config=config, steps=len(config.sampler.sigmas))
        piece = 2 * setting.block_tokens * dit.dim * (1 if kv_fp8 else 2)
        rings = 1 if setting.is_clean else setting.steps
        total += rings * dit.num_layers * stream.ring_blocks * locked(piece)
    return total


def free_host_bytes() -> int | None:
    """Main memory that programs may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _check_host(needed: int, keeps_rings: bool) -> None:
    """Refuse what would end in the system killing this process.

    Raises:
        ValueError: main memory is too small.
    """
    free = free_host_bytes()
    if free is not None and needed > free:
        also = " and rings" if keeps_rings else ""
        raise ValueError(
            f"parallel.plan is offload, which keeps {needed / GB:.1f} GB of layers{also} in main memory, where "
            f"{free / GB:.1f} GB are free; use model.weights_dtype fp8, a smaller size, or a machine with more memory"
        )


def load_offloaded(run: RunConfig, keeps_rings: bool = False) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """As `weights.load_weights`, the transformer in its final form with its layers left on the host.

    Args:
        run: which checkpoint and how.
        keeps_rings: whether rings will be kept there too (`model.host_rings`); room for one session's is looked for.

    Raises:
        CheckpointError, ValueError: as `load_weights`, or main memory is too small.
    """
    device = device_of(run)
    sizes = with_choices(read_config(run), {}, run)
    _check_host(host_bytes(sizes, run.weights_dtype == "fp8", run.kv_dtype == "fp8", keeps_rings), keeps_rings)
    narrow = device.type == "cuda" and run.dtype == "auto"
    host = replace(run, device="cpu", weights_dtype="auto", kv_dtype="auto", dtype="bfloat16" if narrow else run.dtype)
    config, modules = load_weights(run, Share(parts=("vae", "audio", "text")))
    dit = load_weights(host, Share(parts=("dit",)))[1]["dit"]
    speed_up(dit, fp8=run.weights_dtype == "fp8", backend="inductor" if device.type == "cuda" else None)
    streamed = stream_weights(dit, device)
    log.info("%.1f GB of layers stay in host memory", streamed.host_bytes / 1e9)
    return config, {**modules, "dit": dit}

"""Rings of keys that wait in host memory and come to the device layer by layer, one layer ahead of the computation.

For one small GPU, with `model.offload`: a ring of the published model takes 10 GB at 704x384, and every denoising step
has its own. Two buffers on the device take the layers of all rings in turn, each as attention wants it, [condition |
ring]. The condition is on the device anyway and is put in front; past blocks are copied from page-locked memory on a
stream of their own while the layer before computes, and what a layer writes of the current block goes back the same
way. A buffer holds what the host holds, so a layer that is still there needs no copy.

On a processor the copies are plain ones, which tests the numbers.

Letters as in `model.kv_cache`: Y layers, B batch, C condition tokens, S reference tokens, L tokens per block, N heads,
d head width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.kv_cache import ConditionCache, RollingCache
from model.rope import rotate

_Place = tuple[int, int, int]
"""Ring, layer, slot of the current block."""


class LayerBuffers:
    """The two device buffers of a model's rings. Calls come from one thread.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._is_cuda = device, device.type == "cuda"
        self._numbers = itertools.count()
        self._sides: list[tuple[Tensor, Tensor]] = []
        self._holds: list[_Place | None] = [None, None]
        self._copies = torch.cuda.Stream(device) if self._is_cuda else None
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._used: list[torch.cuda.Event | None] = [None, None]
        self._open: int | None = None

    def allocate(
        self,
        condition: ConditionCache,
        ring_blocks: int,
        block_tokens: int,
        evict: Literal["oldest", "slot"] = "oldest",
        dtype: torch.dtype | None = None,
    ) -> HostRing:
        """An empty ring on the host; arguments as `RollingCache.allocate`'s."""
        layers, batch, count, heads, width = condition.k.shape
        dtype = dtype or condition.k.dtype
        shape = batch, count + ring_blocks * block_tokens, heads, width
        if not self._sides:
            make = lambda: torch.zeros(shape, dtype=dtype, device=self.device)  # noqa: E731
            self._sides = [(make(), make()) for _ in range(2)]
        assert self._sides[0][0].shape == shape, "all rings of a model are of one size"
        piece = 2, batch, block_tokens, heads, width
        # A piece for every block: page-locked memory is handed out in powers of two, which fits these best.
        host = [
            [torch.zeros(piece, dtype=dtype, pin_memory=self._is_cuda) for _ in range(ring_blocks)]
            for _ in range(layers)
        ]
        ring = HostRing(
            k=self._sides[0][0],
            v=self._sides[0][1],
            num_condition=count,
            block_tokens=block_tokens,
            evict=evict,
            host=host,
            buffers=self,
            number=next(self._numbers),
        )
        ring.set_condition(condition)
        return ring

    def bring(self, ring: HostRing, layer: int) -> int:
        """Queue the copy of a layer's past blocks into its buffer, unless they are there; the buffer's number."""
        side, place = layer % 2, (ring.number, layer, ring.slot)
        if self._holds[side] == place:
            return side
        self._holds[side] = place
        if self._copies is not None and self._used[side] is not None:
            self._copies.wait_event(self._used[side])
        with torch.cuda.stream(self._copies):
            for slot in range(ring.num_filled):
                if slot != ring.slot:
                    for buffer, piece in zip(self._sides[side], ring.host[layer][slot], strict=True):
                        buffer[:, ring.span(slot)].copy_(piece, non_blocking=True)
            if self._is_cuda:
                self._copied[side] = torch.cuda.Event()
                self._copied[side].record()
        return side

    def enter(self, side: int) -> tuple[Tensor, Tensor]:
        """A buffer for use, once what was queued for it has come."""
        if self._copied[side] is not None:
            torch.cuda.current_stream().wait_event(self._copied[side])
        self._open = side
        return self._sides[side]

    def leave(self) -> None:
        """The buffer that was entered last is not used by what is queued from now on."""
        if self._open is not None and self._is_cuda:
            self._used[self._open] = torch.cuda.Event()
            self._used[self._open].record()
        self._open = None

    def keep(self, ring: HostRing, layer: int) -> None:
        """Queue the copy of the current block to the host; its buffer was left."""
        side = layer % 2
        assert self._holds[side] == (ring.number, layer, ring.slot)
        if self._copies is not None:
            self._copies.wait_event(self._used[side])
        with torch.cuda.stream(self._copies):
            for buffer, piece in zip(self._sides[side], ring.host[layer][ring.slot], strict=True):
                piece.copy_(buffer[:, ring.span(ring.slot)], non_blocking=True)


@dataclass(slots=True, kw_only=True)
class HostRing(RollingCache):
    """A `RollingCache` whose past blocks wait on the host; `k` and `v` are a buffer that all share."""

    host: list[list[Tensor]] = field(repr=False)
    """Per layer and slot [2, B, L, N, d], keys and values."""
    buffers: LayerBuffers = field(repr=False)
    number: int
    """Of the model's rings."""
    _condition: ConditionCache | None = None
    _reference: Tensor | None = None
    """[Y, B, S, N, d] rotated."""
    _written: int | None = None
    """Layer whose part of the current block is not on the host yet."""

    @property
    def ring_blocks(self) -> int:
        return len(self.host[0])

    @property
    def num_filled(self) -> int:
        """Slots that attention sees, the current one included."""
        return max(len(self.blocks), self.slot + 1)

    def span(self, slot: int) -> slice:
        """Where a slot lies in a buffer."""
        start = self.num_condition + slot * self.block_tokens
        return slice(start, start + self.block_tokens)

    def set_condition(self, condition: ConditionCache) -> None:
        self._condition = condition

    def set_reference(self, keys: Tensor) -> None:
        self._reference = keys

    def begin(self, block: int) -> None:
        RollingCache.begin(self, block)
        self.buffers.leave()
        self._written = None  # what an abandoned block left is not kept
        self.buffers.bring(self, 0)

    def advance(self) -> None:
        self._keep()
        RollingCache.advance(self)

    def views(self, layer: int) -> tuple[Tensor, ...]:
        """As `RollingCache.views`, valid until the next layer's are asked for."""
        self._keep()
        k, v = self.buffers.enter(self.buffers.bring(self, layer))
        self._put_condition(layer, k, v)
        if layer + 1 < len(self.host):
            self.buffers.bring(self, layer + 1)
        self._written = layer
        slot, end = self.span(self.slot), self.span(self.num_filled - 1).stop
        parts = (slot, slice(0, end), slice(0, slot.start), slice(slot.stop, end))
        return tuple(buffer[:, part] for part in parts for buffer in (k, v))

    def _put_condition(self, layer: int, k: Tensor, v: Tensor) -> None:
        c = self._condition
        v[:, : self.num_condition] = c.v[layer]
        if c.motion is not None:
            k[:, c.num_reference : self.num_condition] = rotate(c.k[layer][:, c.num_reference :], c.motion)
        if self._reference is not None:
            k[:, : c.num_reference] = self._reference[layer]

    def _keep(self) -> None:
        self.buffers.leave()
        if self._written is not None:
            self.buffers.keep(self, self._written)
            self._written = None

"""Keys and values that attention sees: the condition (the sink, never evicted) and a ring of past blocks.

One buffer holds [condition | ring] for all layers, so reading it needs no concatenation and rotating the condition is
one operation for all layers. Condition keys are kept unrotated beside it, because the reference moves along with the
stream while the motion tokens stay. A pass writes its block's keys into the current slot before attending; `advance`
then keeps them. With `history: same_step` every denoising step has a ring of its own; with `clean` all steps share
one, each overwriting the block's slot, and a last pass at nearly no noise leaves what later blocks see.

Letters: Y layers, B batch, C condition tokens, S reference tokens (the first of C), L tokens per block, N heads, d
head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.rope import Rotation, rotate
from model.state import State


@dataclass(slots=True)
class ConditionCache(State):
    """What prefill leaves: keys before rotation, and how the tokens sit in space and time."""

    k: Tensor
    """[Y, B, C, N, d] normed, unrotated."""
    v: Tensor
    """[Y, B, C, N, d]."""
    motion: Rotation | None
    """Rotation of tokens S..C, whose positions never change; None without frame packing."""
    num_reference: int
    """S: tokens of the reference, whose time position rolls."""

    def rotated_reference(self, rotation: Rotation) -> Tensor:
        """Reference keys of all layers at a time position: [Y, B, S, N, d]."""
        return rotate(self.k[:, :, : self.num_reference], rotation)


@dataclass(slots=True)
class RollingCache(State):
    """Buffers of one ring, with the condition in front."""

    k: Tensor
    """[Y, B, C + ring_blocks * L, N, d], rotated."""
    v: Tensor
    """[Y, B, C + ring_blocks * L, N, d]."""
    num_condition: int
    """C."""
    block_tokens: int
    """L."""
    evict: Literal["oldest", "slot"] = "oldest"
    """Which slot a full ring overwrites; see `StreamConfig.evict`."""
    blocks: list[int] = field(default_factory=list)
    """Block index held by each filled slot; absolute positions are baked into the keys."""
    slot: int = 0
    """Slot of the current block."""
    current: int = -1
    """Index of the current block."""
    version: int = 0
    """Which of its stream's conditions it holds; see `StreamState.version`."""
    _views: dict[tuple[int, int], list[tuple[Tensor, ...]]] = field(default_factory=dict, repr=False)

    @classmethod
    def allocate(
        cls,
        condition: ConditionCache,
        ring_blocks: int,
        block_tokens: int,
        evict: Literal["oldest", "slot"] = "oldest",
        dtype: torch.dtype | None = None,
    ) -> RollingCache:
        """An empty ring behind a copy of the condition (motion tokens rotated, the reference not yet).

        Args:
            condition: as prefill leaves it.
            ring_blocks, block_tokens: size of the ring.
            evict: see the field.
            dtype: of keys and values; None takes the condition's. Normed keys and the values of a trained model lie
                well inside what e4m3 holds without a scale.
        """
        layers, batch, count, heads, width = condition.k.shape
        shape = (layers, batch, count + ring_blocks * block_tokens, heads, width)
        k, v = (condition.k.new_zeros(shape, dtype=dtype) for _ in "kv")
        cache = cls(k=k, v=v, num_condition=count, block_tokens=block_tokens, evict=evict)
        cache.set_condition(condition)
        return cache

    @property
    def ring_blocks(self) -> int:
        return (self.k.shape[2] - self.num_condition) // self.block_tokens

    def set_condition(self, condition: ConditionCache) -> None:
        """Take over another condition of the same size; the ring stays."""
        s = condition.num_reference
        self.v[:, :, : self.num_condition] = condition.v
        if condition.motion is not None:
            self.k[:, :, s : self.num_condition] = rotate(condition.k[:, :, s:], condition.motion)

    def set_reference(self, keys: Tensor) -> None:
        """Place rotated reference keys [Y, B, S, N, d]."""
        self.k[:, :, : keys.shape[2]] = keys

    def begin(self, block: int) -> None:
        """Choose the slot of block `block`; passes of this block overwrite it."""
        full = len(self.blocks) == self.ring_blocks
        self.current = block
        if not full:
            self.slot = len(self.blocks)
        elif self.evict == "slot":
            self.slot = block % self.ring_blocks
        else:
            self.slot = self.blocks.index(min(self.blocks))

    def advance(self) -> None:
        """Keep what the block's last pass wrote."""
        if self.slot == len(self.blocks):
            self.blocks.append(self.current)
        else:
            self.blocks[self.slot] = self.current

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's rotated keys and values of the current block; return all that attention sees.

        Args:
            k, v: [B, L, N, d].

        Returns:
            Keys and values [B, C + filled * L, N, d] in the cache's dtype, the current block included. Where `k`
            carries a gradient they are copies, so that the buffers stay out of the graph.
        """
        into_k, into_v, all_k, all_v, *rest = self.views(layer)
        if k.requires_grad:
            before_k, before_v, after_k, after_v = rest
            result = torch.cat([before_k, k, after_k], 1), torch.cat([before_v, v, after_v], 1)
            into_k.copy_(k.detach())
            into_v.copy_(v.detach())
            return result
        into_k.copy_(k)
        into_v.copy_(v)
        return all_k, all_v

    def views(self, layer: int) -> tuple[Tensor, ...]:
        """Slices of both buffers that matter to a layer while the current block runs, keys before values.

        The slot to write, then all that attention sees (without a copy), what lies before the slot, what lies behind.
        """
        filled = max(len(self.blocks), self.slot + 1)
        key = (self.slot, filled)
        if key not in self._views:
            self._views[key] = self._layer_views(*key)
        return self._views[key][layer]

    def _layer_views(self, slot: int, filled: int) -> list[tuple[Tensor, ...]]:
        """Slices per layer, made once per (slot, filled): the hot path then only copies."""
        lo = self.num_condition + slot * self.block_tokens
        hi, end = lo + self.block_tokens, self.num_condition + filled * self.block_tokens
        parts = ((lo, hi), (0, end), (0, lo), (hi, end))
        return [
            tuple(buffer[layer][:, a:b] for a, b in parts for buffer in (self.k, self.v))
            for layer in range(self.k.shape[0])
        ]

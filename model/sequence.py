"""Sequence parallelism (DeepSpeed-Ulysses, Jacobs et al. 2023): a stage's devices share its tokens and its heads.

Between attentions every device holds a share of each latent frame's tokens, all channels. For self-attention an
all-to-all gives it all tokens of some heads instead, and another takes the result back, so the rings are split by heads
and attention itself is the plain one. Nothing else in a block looks beyond a token. Applied from outside: `share_out`
changes a loaded `DiT` in place, before `compile.speed_up`; whoever calls it passes and gets what it always did.

The condition pass runs whole on every device, which then keeps its own heads.

Letters: B batch, F latent frames, S tokens per latent frame, L = F S, U devices, N heads, d head width, D = N d.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from model.audio_tokens import AudioCondition
from model.dit import DiT, StepModulation
from model.kv_cache import ConditionCache, RollingCache
from model.rope import Rotation


class Team:
    """The devices of one stage.

    Args:
        group: their process group.
        size: U.
        part: which share is this process's.
    """

    def __init__(self, group: dist.ProcessGroup, size: int, part: int) -> None:
        self.group, self.size, self.part = group, size, part

    def own(self, x: Tensor, dim: int) -> Tensor:
        """This process's share of a dimension."""
        count = x.shape[dim] // self.size
        return x.narrow(dim, self.part * count, count)

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Tensors of own tokens [B, L/U, N, d] to all tokens of own heads [B, L, N/U, d]; tokens device by device."""
        batch, tokens, heads, width = parts[0].shape
        shape = (self.size, batch, tokens, len(parts), heads // self.size, width)
        packed = parts[0].new_empty(shape)
        for i, part in enumerate(parts):
            packed[:, :, :, i] = part.unflatten(2, (self.size, -1)).permute(2, 0, 1, 3, 4)
        return self._exchange(packed).transpose(0, 1).flatten(1, 2).unbind(2)

    def to_tokens(self, x: Tensor) -> Tensor:
        """All tokens of own heads [B, L, D/U] to own tokens of all heads [B, L/U, D]."""
        got = self._exchange(x.unflatten(1, (self.size, -1)).transpose(0, 1).contiguous())
        return got.permute(1, 2, 0, 3).flatten(2)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Every device's share, one behind the other."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, dim)

    def _exchange(self, x: Tensor) -> Tensor:
        """[U, ...]: what is sent to each device; gives what each one sent."""
        got = torch.empty_like(x)
        dist.all_to_all_single(got, x, group=self.group)
        return got


def share_out(dit: DiT, team: Team) -> None:
    """Change a loaded transformer in place so that it works on this process's tokens and heads.

    Its latents, velocities and conditions stay whole on every device; what lies between `enter` and `leave` is a share.
    """
    plain = {name: getattr(dit, name) for name in ("prefill", "hidden_shape", "enter", "block_rotation", "remember")}
    plain |= {name: getattr(dit, name) for name in ("attend", "audio_condition")}

    def prefill(*args: object, **kwargs: object) -> ConditionCache:
        whole = plain["prefill"](*args, **kwargs)
        return dataclasses.replace(whole, k=team.own(whole.k, 3).contiguous(), v=team.own(whole.v, 3).contiguous())

    def hidden_shape(batch: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        b, f, tokens, dim = plain["hidden_shape"](batch, frames, height, width)
        return b, f, tokens // team.size, dim

    def enter(x: Tensor, pose: Tensor) -> Tensor:
        return team.own(plain["enter"](x, pose), 2).contiguous()

    def block_rotation(first_frame: int, frames: int, height: int, width: int) -> Rotation:
        whole = plain["block_rotation"](first_frame, frames, height, width)
        own = lambda x, dim: team.own(x.unflatten(dim, (frames, -1)), dim).flatten(dim - 1, dim)  # noqa: E731
        factor = None if whole.factor is None else own(whole.factor, -3)
        return Rotation(own(whole.cos, -2), own(whole.sin, -2), factor)

    def remember(layer: int, q: Tensor, k: Tensor, v: Tensor, cache: RollingCache) -> tuple[Tensor, Tensor, Tensor]:
        return plain["remember"](layer, *team.to_heads(q, k, v), cache)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return team.to_tokens(plain["attend"](q, k, v))

    def audio_condition(features: Tensor, mask: Tensor | None = None) -> AudioCondition:
        sound = plain["audio_condition"](features, mask)
        return sound if sound.mask is None else AudioCondition(sound.injections, team.own(sound.mask, 3))

    def leave(x: Tensor, step: StepModulation, latent_height: int) -> Tensor:
        patches = dit.head.project(x, step.head_scale, step.head_shift)
        return dit.head.unpatch(team.gather(patches, 2), latent_height // dit.cfg.patch)

    for each in (prefill, hidden_shape, enter, block_rotation, remember, attend, audio_condition, leave):
        setattr(dit, each.__name__, each)
    dit.is_split = True

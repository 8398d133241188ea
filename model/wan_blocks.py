"""What the encoder and the decoder of the published video VAE (Wan 2.1) are made of, laid out for a stream.

The weights and their names are those of the library's `AutoencoderKLWan`; the walk through them is our own. Everything
is held channels last ([B, T, H, W, C]), the form in which a GPU's convolutions take their input without a copy. A
causal convolution finds its past already in front of it: what normalises its input writes behind two frames that the
last call left (`Walk.widen`), so nothing is padded or concatenated, and a residual's sum, the convolution's bias, the
norm and the activation are one kernel (`model.vae_kernels`) instead of ten passes over memory.

A stream that has not begun has a past of zeros, which is what the published VAE pads with. So a slot holds frames or
None, for zeros.

Letters: B batch, T frames at this level, H and W rows and columns at this level, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.vae_kernels import add, add_norm_silu

PAST = 2
"""Frames of the past that a causal convolution over three frames sees."""
_ALIGNED = 8
"""Output channels that a GPU's convolution writes without a slow path."""


class Sum(NamedTuple):
    """A residual stream whose last addition is still to be made: x + delta + bias."""

    x: Tensor
    """[B, T, H, W, C]."""
    delta: Tensor | None = None
    """[B, T, H, W, C]."""
    bias: Tensor | None = None
    """[C]."""

    def value(self) -> Tensor:
        """[B, T, H, W, C]."""
        return self.x if self.delta is None else add(self.x, self.delta, self.bias)


class Walk:
    """One call's way through the causal convolutions: takes each one's past, keeps its next."""

    def __init__(self, slots: Sequence[Tensor | None], is_first: bool) -> None:
        self._old, self.new, self.is_first = list(slots), [], is_first

    def past(self) -> Tensor | None:
        """What the next convolution keeps from the last call."""
        return self._old[len(self.new)]

    def rest(self) -> list[Tensor | None]:
        """What all further convolutions keep from the last call."""
        return self._old[len(self.new) :]

    def remember(self, past: Tensor | None) -> None:
        """What the next convolution keeps for the next call; the one after it is next then."""
        self.new.append(past)

    def widen(self, like: Tensor) -> Tensor:
        """Room for `like` [B, T, H, W, C] behind its past: [B, 2 + T, H, W, C], the past filled in."""
        past = self.past()
        wide = like.new_empty(like.shape[0], PAST + like.shape[1], *like.shape[2:])
        if past is None:
            wide[:, :PAST].zero_()
        else:
            wide[:, :PAST].copy_(past)
        return wide

    def keep(self, wide: Tensor) -> None:
        """The last frames are the next call's past."""
        self.remember(wide[:, -PAST:].clone())

    def behind_past(self, x: Tensor) -> Tensor:
        """x [B, T, H, W, C] with its past in front, [B, 2 + T, H, W, C]."""
        wide = self.widen(x)
        wide[:, PAST:].copy_(x)
        self.keep(wide)
        return wide

    def normed(self, stream: Sum, norm: Norm) -> tuple[Tensor, Tensor]:
        """The stream's value [B, T, H, W, C], and normed and activated behind its past, [B, 2 + T, H, W, C]."""
        wide = self.widen(stream.x)
        value = add_norm_silu(*stream, norm.gamma, wide[:, PAST:])
        self.keep(wide)
        return value, wide


class Norm(nn.Module):
    """Gain of an RMS norm over channels; `add_norm_silu` and `rms` apply it."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def rms(self, x: Tensor) -> Tensor:
        """x [..., C] with its channels' root mean square brought to one, times the gain."""
        wide = x.float()
        return (F.normalize(wide, dim=-1) * x.shape[-1] ** 0.5 * self.gamma.flatten().float()).to(x.dtype)


class CausalConv(nn.Conv3d):
    """Convolution over `kernel[0]` frames of which the newest is the output's own; over three, its past is given."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int], time_stride: int = 1) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(dim_in, dim_out, kernel, stride=(time_stride, 1, 1), padding=padding)

    def over(self, wide: Tensor, with_bias: bool = True) -> Tensor:
        """[B, kernel[0] - 1 + T, H, W, C] to [B, T, H, W, C'], or with a stride every so many of the T."""
        bias = self.bias if with_bias else None
        return self._in_three(wide, bias) if wide.is_cuda else self._in_two(wide, bias)

    def _in_three(self, wide: Tensor, bias: Tensor | None) -> Tensor:
        """As it is: a GPU's kernels take this layout without a copy."""
        weight, count = self.weight, self.out_channels
        if count % _ALIGNED:
            missing = _ALIGNED - count % _ALIGNED
            weight = F.pad(weight, (0, 0) * 4 + (0, missing))
            bias = None if bias is None else F.pad(bias, (0, missing))
        y = F.conv3d(wide.permute(0, 4, 1, 2, 3), weight, bias, stride=self.stride, padding=self.padding)
        return y[:, :count].permute(0, 2, 3, 4, 1)

    def _in_two(self, wide: Tensor, bias: Tensor | None) -> Tensor:
        """Over pictures, the frames that a picture sees side by side as channels: processors do three axes slowly."""
        (size, _, _), (stride, _, _) = self.kernel_size, self.stride
        last = wide.shape[1] - size + 1
        x = torch.cat([wide[:, i : i + last : stride] for i in range(size)], -1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, padding=self.padding[1:])
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class ResidualBlock(nn.Module):
    """Twice norm, activation, causal convolution, beside a path straight through."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(dim_in, 3), CausalConv(dim_in, dim_out, (3, 3, 3))
        self.norm2, self.conv2 = Norm(dim_out, 3), CausalConv(dim_out, dim_out, (3, 3, 3))
        self.conv_shortcut = CausalConv(dim_in, dim_out, (1, 1, 1)) if dim_in != dim_out else None

    def forward(self, stream: Sum, walk: Walk) -> Sum:
        """[B, T, H, W, dim_in] to [B, T, H, W, dim_out]."""
        x, wide = walk.normed(stream, self.norm1)
        y = self.conv1.over(wide, with_bias=False)
        _, wide = walk.normed(Sum(y, None, self.conv1.bias), self.norm2)
        y = self.conv2.over(wide, with_bias=False)
        if self.conv_shortcut is not None:
            x = F.linear(x, self.conv_shortcut.weight.flatten(1), self.conv_shortcut.bias)
        return Sum(x, y, self.conv2.bias)


class FrameAttention(nn.Module):
    """Attention of one head over the pixels of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim, 2)
        self.to_qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H, W, C] to the same."""
        pixels = self.norm.rms(x).flatten(2, 3).flatten(0, 1)[:, None]
        q, k, v = F.linear(pixels, self.to_qkv.weight.flatten(1), self.to_qkv.bias).chunk(3, -1)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + F.linear(seen, self.proj.weight.flatten(1), self.proj.bias).view(x.shape)


class MidBlock(nn.Module):
    """Coarsest level: attention between two residual blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim, dim) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(dim)])

    def forward(self, stream: Sum, walk: Walk) -> Sum:
        """[B, T, H, W, C] to the same."""
        stream = self.resnets[0](stream, walk)
        return self.resnets[1](Sum(self.attentions[0](stream.value())), walk)


def num_slots(module: nn.Module) -> int:
    """Convolutions that look back in time."""
    return sum(isinstance(m, CausalConv) and m.kernel_size[0] > 1 for m in module.modules())

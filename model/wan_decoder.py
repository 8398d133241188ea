"""The decoder of the published video VAE (Wan 2.1), laid out for a stream.

The weights and their names are those of the library's `AutoencoderKLWan.decoder`; the walk through them is our own.
Everything is held channels last ([B, T, H, W, C]), the form in which a GPU's convolutions take their input without a
copy. A causal convolution finds its past already in front of it: what normalises its input writes behind two frames
that the last call left (`_Walk.widen`), so nothing is padded or concatenated, and a residual's sum, the convolution's
bias, the norm and the activation are one kernel (`model.vae_kernels`) instead of ten passes over memory.

A stream that has not begun has a past of zeros, which is what the published decoder pads with. So a slot holds two
frames or None, for zeros, and shapes are the same in every call but a stream's first, whose single latent gives a
single picture: the temporal upsamplers let it pass.

Letters: B batch, T frames at this level, H and W rows and columns at this level, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.component_config import WanVAEConfig
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


class _Walk:
    """One call's way through the decoder's causal convolutions: takes each one's past, keeps its next."""

    def __init__(self, slots: Sequence[Tensor | None], is_first: bool) -> None:
        self._old, self.new, self.is_first = list(slots), [], is_first

    def pass_by(self) -> None:
        """A convolution that this call leaves out keeps its past."""
        self.new.append(self._old[len(self.new)])

    def widen(self, like: Tensor) -> Tensor:
        """Room for `like` [B, T, H, W, C] behind its past: [B, 2 + T, H, W, C], the past filled in."""
        past = self._old[len(self.new)]
        wide = like.new_empty(like.shape[0], PAST + like.shape[1], *like.shape[2:])
        if past is None:
            wide[:, :PAST].zero_()
        else:
            wide[:, :PAST].copy_(past)
        return wide

    def keep(self, wide: Tensor) -> None:
        """The last frames are the next call's past."""
        self.new.append(wide[:, -PAST:].clone())


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
    """Convolution over `kernel[0]` frames of which the newest is the output's own."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(dim_in, dim_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def over(self, wide: Tensor, with_bias: bool = True) -> Tensor:
        """[B, 2 + T, H, W, C] to [B, T, H, W, C']."""
        bias = self.bias if with_bias else None
        return self._in_three(wide, bias) if wide.is_cuda else self._in_two(wide, bias)

    def _in_three(self, wide: Tensor, bias: Tensor | None) -> Tensor:
        """As it is: a GPU's kernels take this layout without a copy."""
        weight, count = self.weight, self.out_channels
        if count % _ALIGNED:
            missing = _ALIGNED - count % _ALIGNED
            weight = F.pad(weight, (0, 0) * 4 + (0, missing))
            bias = None if bias is None else F.pad(bias, (0, missing))
        y = F.conv3d(wide.permute(0, 4, 1, 2, 3), weight, bias, padding=self.padding)
        return y[:, :count].permute(0, 2, 3, 4, 1)

    def _in_two(self, wide: Tensor, bias: Tensor | None) -> Tensor:
        """Over pictures, the frames that a picture sees side by side as channels: processors do three axes slowly."""
        frames = wide.shape[1] - PAST
        x = torch.cat([wide[:, i : i + frames] for i in range(self.kernel_size[0])], -1).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=self.padding[1:])
        return y.permute(0, 2, 3, 1).unflatten(0, (-1, frames))


class ResidualBlock(nn.Module):
    """Twice norm, activation, causal convolution, beside a path straight through."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(dim_in, 3), CausalConv(dim_in, dim_out, (3, 3, 3))
        self.norm2, self.conv2 = Norm(dim_out, 3), CausalConv(dim_out, dim_out, (3, 3, 3))
        self.conv_shortcut = CausalConv(dim_in, dim_out, (1, 1, 1)) if dim_in != dim_out else None

    def forward(self, stream: Sum, walk: _Walk) -> Sum:
        """[B, T, H, W, dim_in] to [B, T, H, W, dim_out]."""
        wide = walk.widen(stream.x)
        x = add_norm_silu(*stream, self.norm1.gamma, wide[:, PAST:])
        walk.keep(wide)
        y = self.conv1.over(wide, with_bias=False)
        wide = walk.widen(y)
        add_norm_silu(y, None, self.conv1.bias, self.norm2.gamma, wide[:, PAST:])
        walk.keep(wide)
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


class Upsampler(nn.Module):
    """Doubles rows and columns, and where it has `time_conv` the frames too; halves the channels."""

    def __init__(self, dim: int, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, dim // 2, 3, padding=1))
        self.time_conv = CausalConv(dim, 2 * dim, (3, 1, 1)) if doubles_time else None

    def forward(self, x: Tensor, walk: _Walk) -> Tensor:
        """[B, T, H, W, C] to [B, T or 2 T, 2 H, 2 W, C / 2]."""
        if self.time_conv is None:
            x = x[:, :, None]
        elif walk.is_first:
            walk.pass_by()
            x = x[:, :, None]
        else:
            wide = walk.widen(x)
            wide[:, PAST:].copy_(x)
            walk.keep(wide)
            x = self.time_conv.over(wide).unflatten(-1, (2, x.shape[-1])).movedim(4, 2)
        pictures = doubled(x).flatten(0, 2).permute(0, 3, 1, 2)
        return self.resample[1](pictures).permute(0, 2, 3, 1).unflatten(0, (x.shape[0], -1))


def doubled(x: Tensor) -> Tensor:
    """[B, T, n, H, W, C], C contiguous, to [B, T, n, 2 H, 2 W, C], every pixel twice along both axes.

    Eight channels of half precision are moved as one number of sixteen bytes, which is what makes a copy fast.
    """
    per_number = 16 // x.element_size()
    is_aligned = x.shape[-1] % per_number == 0 and all(step % per_number == 0 for step in x.stride()[:-1])
    moved = x.view(torch.complex128) if is_aligned and x.stride(-1) == 1 else x
    moved = moved[:, :, :, :, None, :, None].expand(-1, -1, -1, -1, 2, -1, 2, -1)
    return moved.flatten(5, 6).flatten(3, 4).contiguous().view(x.dtype)


class MidBlock(nn.Module):
    """Coarsest level: attention between two residual blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim, dim) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(dim)])

    def forward(self, stream: Sum, walk: _Walk) -> Sum:
        """[B, T, H, W, C] to the same."""
        stream = self.resnets[0](stream, walk)
        return self.resnets[1](Sum(self.attentions[0](stream.value())), walk)


class Level(nn.Module):
    """Residual blocks of one resolution, then the way to the next; the finest level has none."""

    def __init__(self, dim_in: int, dim_out: int, blocks: int, upsampler: Upsampler | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim_in if i == 0 else dim_out, dim_out) for i in range(blocks))
        self.upsamplers = None if upsampler is None else nn.ModuleList([upsampler])

    def forward(self, stream: Sum, walk: _Walk) -> Sum:
        """[B, T, H, W, dim_in] to this level's output."""
        for block in self.resnets:
            stream = block(stream, walk)
        return stream if self.upsamplers is None else Sum(self.upsamplers[0](stream.value(), walk))


class WanDecoder(nn.Module):
    """Latents to pictures; parameters carry the library's names."""

    def __init__(self, cfg: WanVAEConfig) -> None:
        super().__init__()
        coarse_first = [cfg.base_width * m for m in cfg.width_multipliers[::-1]]
        self.conv_in = CausalConv(cfg.z_dim, coarse_first[0], (3, 3, 3))
        self.mid_block = MidBlock(coarse_first[0])
        self.up_blocks, dim = nn.ModuleList(), coarse_first[0]
        for index, out in enumerate(coarse_first):
            is_last = index == len(coarse_first) - 1
            upsampler = None if is_last else Upsampler(out, cfg.temporal_downsample[::-1][index])
            self.up_blocks.append(Level(dim, out, cfg.residual_blocks + 1, upsampler))
            dim = out // 2
        self.norm_out, self.conv_out = Norm(coarse_first[-1], 3), CausalConv(coarse_first[-1], 3, (3, 3, 3))

    @property
    def num_slots(self) -> int:
        """Convolutions that look back in time."""
        return sum(isinstance(m, CausalConv) and m.kernel_size[0] > 1 for m in self.modules())

    def forward(
        self, latents: Tensor, slots: Sequence[Tensor | None], is_first: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """One call of a stream.

        Args:
            latents: [B, z, F, H, W], brought to the decoder's scale; F is 1 in a stream's first call.
            slots: per causal convolution its last two inputs [B, 2, H, W, C], None for zeros; not changed.
            is_first: the stream's first call, which gives one picture; later ones give four a latent.

        Returns:
            Video [B, 3, T, 8 H, 8 W] and the next call's slots.
        """
        walk = _Walk(slots, is_first)
        x = latents.permute(0, 2, 3, 4, 1)
        wide = walk.widen(x)
        wide[:, PAST:].copy_(x)
        walk.keep(wide)
        stream = self.mid_block(Sum(self.conv_in.over(wide)), walk)
        for level in self.up_blocks:
            stream = level(stream, walk)
        wide = walk.widen(stream.x)
        add_norm_silu(*stream, self.norm_out.gamma, wide[:, PAST:])
        walk.keep(wide)
        assert len(walk.new) == len(slots)
        return self.conv_out.over(wide).permute(0, 4, 1, 2, 3), tuple(walk.new)


def for_gpu(decoder: WanDecoder) -> WanDecoder:
    """Lay a decoder's weights out as a GPU's convolutions read them, and let those choose their kernels by timing.

    Args:
        decoder: in its final dtype and on its final device; changed in place.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    return decoder

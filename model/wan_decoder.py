"""The decoder of the published video VAE (Wan 2.1) as a stream; see `model.wan_blocks` for how it is laid out.

Shapes are the same in every call but a stream's first, whose single latent gives a single picture: the temporal
upsamplers let it pass. Nearly all memory is the two finest levels'; on a small card they go tile by tile.

Letters: B batch, T frames at this level, H and W rows and columns at this level, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.component_config import TILED_LEVELS, WanVAEConfig
from model.tiles import tiles
from model.wan_blocks import CausalConv, MidBlock, Norm, ResidualBlock, Sum, Walk, num_slots


class Upsampler(nn.Module):
    """Doubles rows and columns, and where it has `time_conv` the frames too; halves the channels."""

    def __init__(self, dim: int, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, dim // 2, 3, padding=1))
        self.time_conv = CausalConv(dim, 2 * dim, (3, 1, 1)) if doubles_time else None

    def forward(self, x: Tensor, walk: Walk) -> Tensor:
        """[B, T, H, W, C] to [B, T or 2 T, 2 H, 2 W, C / 2]."""
        if self.time_conv is None:
            x = x[:, :, None]
        elif walk.is_first:
            walk.remember(walk.past())
            x = x[:, :, None]
        else:
            x = self.time_conv.over(walk.behind_past(x)).unflatten(-1, (2, x.shape[-1])).movedim(4, 2)
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


class Level(nn.Module):
    """Residual blocks of one resolution, then the way to the next; the finest level has none."""

    def __init__(self, dim_in: int, dim_out: int, blocks: int, upsampler: Upsampler | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(dim_in if i == 0 else dim_out, dim_out) for i in range(blocks))
        self.upsamplers = None if upsampler is None else nn.ModuleList([upsampler])

    def forward(self, stream: Sum, walk: Walk) -> Sum:
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
        self.is_tiled = False
        """The finest levels go tile by tile, for less memory; the pictures are the same."""
        self._rim = cfg.tile_rim
        self.num_slots = num_slots(self)

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
        walk = Walk(slots, is_first)
        x = walk.behind_past(latents.permute(0, 2, 3, 4, 1))
        stream = self.mid_block(Sum(self.conv_in.over(x)), walk)
        levels = list(self.up_blocks)
        for level in levels[:-TILED_LEVELS]:
            stream = level(stream, walk)
        finish = self._in_tiles if self.is_tiled else self._finish
        video = finish(stream, levels[-TILED_LEVELS:], walk)
        assert len(walk.new) == len(slots)
        return video.permute(0, 4, 1, 2, 3), tuple(walk.new)

    def _finish(self, stream: Sum, levels: Sequence[Level], walk: Walk) -> Tensor:
        """The finest levels and what follows: pictures [B, T, H, W, 3]."""
        for level in levels:
            stream = level(stream, walk)
        _, wide = walk.normed(stream, self.norm_out)
        return self.conv_out.over(wide)

    def _in_tiles(self, stream: Sum, levels: Sequence[Level], walk: Walk) -> Tensor:
        """As `_finish`, in a quarter of the room."""
        x, old = stream.value(), walk.rest()
        video, new = None, [None] * len(old)
        for tile in tiles(*x.shape[2:4], self._rim):
            part = Walk([tile.of(slot) for slot in old], walk.is_first)
            video = tile.into(video, self._finish(Sum(tile.of(x).contiguous()), levels, part))
            new = [tile.into(whole, piece) for whole, piece in zip(new, part.new, strict=True)]
        for slot in new:
            walk.remember(slot)
        return video


def for_gpu(module: nn.Module) -> None:
    """Lay convolutions' weights out as a GPU reads them, and let it choose its kernels by timing.

    Args:
        module: in its final dtype and on its final device; changed in place.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True

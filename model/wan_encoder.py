"""The encoder of the published video VAE (Wan 2.1) as a stream; see `model.wan_blocks` for how it is laid out.

A stream's first call has a single picture, which gives a single latent: the temporal downsamplers let it pass and
remember it. Later calls have pictures in fours.

Letters: B batch, T frames at this level, H and W rows and columns at this level, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.component_config import WanVAEConfig
from model.wan_blocks import CausalConv, MidBlock, Norm, ResidualBlock, Sum, Walk, num_slots


class Downsampler(nn.Module):
    """Halves rows and columns, and where it has `time_conv` the frames too."""

    def __init__(self, dim: int, halves_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = CausalConv(dim, dim, (3, 1, 1), time_stride=2) if halves_time else None

    def forward(self, stream: Sum, walk: Walk) -> Sum:
        """[B, T, H, W, C] to [B, T or T / 2, H / 2, W / 2, C]; T is 1 in a stream's first call."""
        x = stream.value()
        pictures = F.pad(x, (0, 0, 0, 1, 0, 1)).flatten(0, 1).permute(0, 3, 1, 2)
        x = self.resample[1](pictures).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
        if self.time_conv is None:
            return Sum(x)
        past = walk.past()
        walk.remember(x[:, -1:].clone())
        return Sum(x if walk.is_first else self.time_conv.over(torch.cat([past, x], 1)))


class WanEncoder(nn.Module):
    """Pictures to the posterior's moments; parameters carry the library's names."""

    def __init__(self, cfg: WanVAEConfig) -> None:
        super().__init__()
        widths = [cfg.base_width * m for m in cfg.width_multipliers]
        self.conv_in = CausalConv(3, cfg.base_width, (3, 3, 3))
        self.down_blocks, dim = nn.ModuleList(), cfg.base_width
        for index, out in enumerate(widths):
            for _ in range(cfg.residual_blocks):
                self.down_blocks.append(ResidualBlock(dim, out))
                dim = out
            if index < len(widths) - 1:
                self.down_blocks.append(Downsampler(dim, cfg.temporal_downsample[index]))
        self.mid_block, self.norm_out = MidBlock(dim), Norm(dim, 3)
        self.conv_out = CausalConv(dim, 2 * cfg.z_dim, (3, 3, 3))
        self.num_slots = num_slots(self)

    def forward(
        self, video: Tensor, slots: Sequence[Tensor | None], is_first: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """One call of a stream.

        Args:
            video: [B, 3, T, H, W] in -1..1; T is 1 in a stream's first call and a multiple of 4 later.
            slots: per causal convolution its last inputs [B, 2, H, W, C], of a downsampler [B, 1, H, W, C], None for
                zeros; not changed.
            is_first: the stream's first call.

        Returns:
            Mean and log variance [B, 2 z, F, H / 8, W / 8], and the next call's slots.
        """
        walk = Walk(slots, is_first)
        stream = Sum(self.conv_in.over(walk.behind_past(video.permute(0, 2, 3, 4, 1))))
        for block in self.down_blocks:
            stream = block(stream, walk)
        _, wide = walk.normed(self.mid_block(stream, walk), self.norm_out)
        assert len(walk.new) == len(slots)
        return self.conv_out.over(wide).permute(0, 4, 1, 2, 3), tuple(walk.new)

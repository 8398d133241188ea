"""The light VAE's decoder for a processor: the same sums, with fewer trips to memory.

Built from a finished `LightDecoder` and equal to it but for rounding. Everything is channels last, so that a change of
resolution moves whole rows of channels. Gains of norms are multiplied into the convolutions that follow. A block's
norm, and its reduced past, are written where the first convolution reads them; activation and residual sum happen
inside the convolutions where this build of torch can do that (oneDNN's fused forms), else in place.

Letters: N pictures of all streams, h and w rows and columns at this level, C channels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.vae import NORM_EPS, LightDecoder, MemoryBlock, PixelNorm, PlainBlock, Stage, VAEState

_STEP = ([1, 1], [1, 1], [1, 1], 1)
"""Padding, stride, dilation and groups of every convolution here."""


@functools.lru_cache
def _has_fused(dtype: torch.dtype) -> bool:
    """Whether convolutions of this build, on this processor, can take activation and sum with them."""
    try:
        with torch.inference_mode():
            x, w, b = (torch.zeros(shape, dtype=dtype) for shape in ((1, 8, 4, 4), (8, 8, 3, 3), (8,)))
            _conv_into(x.clone(), _conv_silu(x, w, b), w, b)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def _conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *_STEP, "swish", [], "")


def _conv_into(total: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    op = torch.ops.mkldnn._convolution_pointwise_.binary
    return op(total, x, weight, bias, *_STEP, "add", 1.0, None, [], None)


class _Weights(nn.Module):
    """A convolution's weight and bias, laid out as it is read."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)


class _Block(nn.Module):
    """A residual block, with memory or without: [N, h, w, C] to the same, changed in place."""

    def __init__(self, block: MemoryBlock | PlainBlock) -> None:
        super().__init__()
        norm: PixelNorm = block.norm
        self.width = width = len(norm.gain)
        gain = norm.gain.detach()
        has_memory = isinstance(block, MemoryBlock)
        weight = block.conv1.weight.detach().clone()
        weight[:, :width] *= gain[:, None, None]
        self.conv1 = _Weights(weight, block.conv1.bias)
        self.conv2 = _Weights(block.conv2.weight, block.conv2.bias)
        self.reduce = _Weights(block.reduce.weight.flatten(1) * gain, block.reduce.bias) if has_memory else None

    def forward(self, x: Tensor, batch: int, previous: Tensor | None, carried: list[Tensor]) -> Tensor:
        """previous: [B, 1, C / 4, h, w] where this block has memory and the stream a past."""
        width, count = self.width, x.shape[0] // batch
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = scale.square_().div_(width).add_(NORM_EPS).rsqrt_().to(x.dtype)
        if self.reduce is None:
            y = x * scale
        else:
            y = x.new_empty(*x.shape[:3], width + width // 4)
            torch.mul(x, scale, out=y[..., :width])
            rows = y.view(-1, y.shape[-1])[:, :width]
            reduced = torch.addmm(self.reduce.bias, rows, self.reduce.weight.T).view(batch, count, *x.shape[1:3], -1)
            past = y[..., width:].unflatten(0, (batch, count))
            past[:, 1:] = reduced[:, :-1]
            past[:, 0] = 0 if previous is None else previous[:, 0].permute(0, 2, 3, 1)
            carried.append(reduced[:, -1:].permute(0, 1, 4, 2, 3).clone())
        y, x = y.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
        if _has_fused(x.dtype):
            _conv_into(x, _conv_silu(y, *self._pair(self.conv1)), *self._pair(self.conv2))
        else:
            y = F.silu(F.conv2d(y, *self._pair(self.conv1), padding=1), inplace=True)
            x += F.conv2d(y, *self._pair(self.conv2), padding=1)
        return x.permute(0, 2, 3, 1)

    @staticmethod
    def _pair(of: _Weights) -> tuple[Tensor, Tensor]:
        return of.weight, of.bias


class FoldedDecoder(nn.Module):
    """[B, F, z, h, w] to [B, 4F, 3, stride h, stride w], as `LightDecoder`, for inference on a processor."""

    def __init__(self, decoder: LightDecoder) -> None:
        """
        Args:
            decoder: a finished decoder in float32; it is not changed.
        """
        super().__init__()
        self.fold = decoder.fold
        self.conv_in = _Weights(decoder.conv_in.weight, decoder.conv_in.bias)
        self.stages = nn.ModuleList(self._stage(s) for s in (decoder.stage0, decoder.stage1, decoder.stage2))
        self.doubles = nn.ModuleList(self._line(c) for c in (decoder.double0, decoder.double1))
        self.ups = nn.ModuleList(self._spread(c, n) for c, n in ((decoder.up0, self.fold), (decoder.up1, 2)))
        self.conv_out = self._spread(decoder.conv_out, 4)

    def forward(self, latents: Tensor, state: VAEState | None) -> tuple[Tensor, VAEState]:
        """As `LightDecoder.forward`; the memory has the same form, so that a stream may change between the two."""
        batch, carried = latents.shape[0], []
        x = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, self.conv_in.weight, self.conv_in.bias, padding=1).permute(0, 2, 3, 1).contiguous()
        for index, stage in enumerate(self.stages):
            for block in stage:
                past = None if state is None or block.reduce is None else state[len(carried)]
                x = block(x, batch, None if past is None else past.to(x.dtype), carried)
            if index < len(self.doubles):
                double, up = self.doubles[index], self.ups[index]
                x = F.linear(x, double.weight, double.bias).unflatten(-1, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
                x = self._shuffled(F.linear(x, up.weight, up.bias), self.fold if index == 0 else 2)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.conv_out.weight, self.conv_out.bias, padding=1).permute(0, 2, 3, 1)
        video = self._shuffled(x, 4).unflatten(0, (batch, -1))
        return video.permute(0, 1, 4, 2, 3), tuple(carried)

    @staticmethod
    def _stage(stage: Stage) -> nn.ModuleList:
        return nn.ModuleList(_Block(block) for block in stage.blocks)

    @staticmethod
    def _line(conv: nn.Conv2d) -> _Weights:
        return _Weights(conv.weight.flatten(1), conv.bias)

    @staticmethod
    def _spread(conv: nn.Conv2d, times: int) -> _Weights:
        """Output channels from (C, row, column) to (row, column, C), so that pixels are moved with their channels."""
        order = torch.arange(conv.out_channels).view(-1, times, times).permute(1, 2, 0).flatten()
        weight, bias = conv.weight.detach()[order], conv.bias.detach()[order]
        return _Weights(weight.flatten(1) if conv.kernel_size == (1, 1) else weight, bias)

    @staticmethod
    def _shuffled(x: Tensor, times: int) -> Tensor:
        """[N, h, w, times * times * C] to [N, times h, times w, C], contiguous."""
        n, h, w, _ = x.shape
        x = x.unflatten(-1, (times, times, -1)).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, times * h, times * w, x.shape[-1])


def fold(decoder: Any) -> Any:
    """The quicker form of a light decoder; other decoders as they are."""
    return FoldedDecoder(decoder).eval() if isinstance(decoder, LightDecoder) else decoder

"""Residual sum, RMS norm over channels and SiLU as one kernel: what stands between two convolutions of the VAE.

On a GPU this is a Triton kernel that reads each operand once and writes each result once, several pixels a program, a
pixel's channels side by side in registers. Elsewhere the same formula in framework operations. Statistics are taken in
float32 of the sum as it is stored.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4096
"""Elements that one program holds."""
_WARPS = 4


@functools.lru_cache(1)
def _kernel() -> Any:
    """The compiled kernel; Triton is imported where there is a GPU and not before."""
    import triton
    import triton.language as tl

    @triton.jit
    def add_norm_silu_kernel(
        x_at, delta_at, bias_at, gamma_at, out_at, total_at, rows, per_batch, batch_stride,
        C: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
        HAS_DELTA: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        channel = tl.arange(0, PADDED)
        inside = (row < rows)[:, None] & (channel < C)[None, :]
        at = row[:, None] * C + channel[None, :]
        stored = tl.load(x_at + at, mask=inside, other=0.0)
        x = stored.to(tl.float32)
        if HAS_BIAS:
            x += tl.load(bias_at + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
        if HAS_DELTA:
            x += tl.load(delta_at + at, mask=inside, other=0.0).to(tl.float32)
            narrow = x.to(stored.dtype)
            tl.store(total_at + at, narrow, mask=inside)
            x = narrow.to(tl.float32)
        if HAS_NORM:
            length = tl.sqrt(tl.sum(x * x, 1))
            gamma = tl.load(gamma_at + channel, mask=channel < C, other=0.0).to(tl.float32)
            root: tl.constexpr = C**0.5
            y = x * (root / tl.maximum(length, 1e-12))[:, None] * gamma[None, :]
            y = y * tl.sigmoid(y)
            to = (row // per_batch)[:, None] * batch_stride + (row % per_batch)[:, None] * C + channel[None, :]
            tl.store(out_at + to, y.to(stored.dtype), mask=inside)

    return add_norm_silu_kernel


def add_norm_silu(x: Tensor, delta: Tensor | None, bias: Tensor | None, gamma: Tensor, out: Tensor) -> Tensor:
    """Write silu(norm(x + delta + bias) * gamma * sqrt(C)) to `out`.

    Args:
        x: [B, T, H, W, C].
        delta: [B, T, H, W, C] or None.
        bias: [C] or None.
        gamma: C values in any shape.
        out: [B, T, H, W, C], of which a batch row's frames lie side by side.

    Returns:
        x + delta + bias in x's dtype where there is a delta; else x.
    """
    if not x.is_cuda:
        return _add_norm_silu(x, delta, bias, gamma, out)
    assert out[0].is_contiguous() and out.shape == x.shape
    return _run(x, delta, bias, gamma, out)


def add(x: Tensor, delta: Tensor, bias: Tensor) -> Tensor:
    """x + delta + bias in x's dtype; x and delta [B, T, H, W, C], bias [C]."""
    return _run(x, delta, bias, None, None) if x.is_cuda else x + (delta + bias)


def _run(x: Tensor, delta: Tensor | None, bias: Tensor | None, gamma: Tensor | None, out: Tensor | None) -> Tensor:
    """Launch the kernel; returns the sum, or x where there is no delta."""
    channels, rows = x.shape[-1], x.numel() // x.shape[-1]
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    total = x if delta is None else torch.empty_like(x)
    padded = 1 << (channels - 1).bit_length()
    tile = max(1, _TILE // padded)
    _kernel()[(-(-rows // tile),)](
        x, delta, bias, gamma, out, total, rows, rows // x.shape[0], 0 if out is None else out.stride(0),
        C=channels, PADDED=padded, ROWS=tile,
        HAS_DELTA=delta is not None, HAS_BIAS=bias is not None, HAS_NORM=gamma is not None, num_warps=_WARPS,
    )  # fmt: skip
    return total


def _add_norm_silu(x: Tensor, delta: Tensor | None, bias: Tensor | None, gamma: Tensor, out: Tensor) -> Tensor:
    total = x
    summed = x.float()
    if bias is not None:
        summed = summed + bias.float()
    if delta is not None:
        total = (summed + delta.float()).to(x.dtype)
        summed = total.float()
    y = F.normalize(summed, dim=-1) * x.shape[-1] ** 0.5 * gamma.flatten().float()
    out.copy_(F.silu(y))
    return total

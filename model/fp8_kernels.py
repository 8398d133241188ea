"""What stands in front of an fp8 product as one kernel: residual sum, norm and modulation, or GELU, then rounding.

A row's scale needs its largest value, and a norm before it needs the row's mean and variance. A compiler that works
through a row in pieces walks it three times; here a program holds a whole row in registers, reads it once and writes it
once. The operators are opaque to `torch.compile`. Elsewhere than on a GPU they are the same formulas in framework
operations. Everything between reading and rounding is float32, but for the residual sum, which is stored and goes on
as stored.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 448.0
"""Of e4m3."""
_SMALLEST_PEAK = 1e-12


def to_fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., rows, n] to e4m3 of the same shape and float32 scales [..., rows, 1], so that values * scales are x."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(_SMALLEST_PEAK) / LARGEST
    return (x.float() * scale.reciprocal()).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


@functools.lru_cache(1)
def _kernel() -> Any:
    """The compiled kernel; Triton is imported where there is a GPU and not before."""
    import triton
    import triton.language as tl

    @triton.jit
    def to_fp8_rows_kernel(
        x_at, delta_at, gate_at, gain_at, shift_at, total_at, rows_at, scale_at, eps,
        N: tl.constexpr, PADDED: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_GATE: tl.constexpr,
        HAS_NORM: tl.constexpr, HAS_GELU: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, PADDED)
        inside = column < N
        at = row * N + column
        stored = tl.load(x_at + at, mask=inside, other=0.0)
        x = stored.to(tl.float32)
        if HAS_DELTA:
            delta = tl.load(delta_at + at, mask=inside, other=0.0).to(tl.float32)
            if HAS_GATE:
                delta *= tl.load(gate_at + column, mask=inside, other=0.0).to(tl.float32)
            narrow = (x + delta).to(stored.dtype)
            tl.store(total_at + at, narrow, mask=inside)
            x = narrow.to(tl.float32)
        if HAS_NORM:
            x = tl.where(inside, x - tl.sum(x, 0) / N, 0.0)
            x *= tl.rsqrt(tl.sum(x * x, 0) / N + eps)
            x *= tl.load(gain_at + column, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(shift_at + column, mask=inside, other=0.0).to(tl.float32)
        if HAS_GELU:
            x = x * tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
        scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 448.0
        x = tl.minimum(tl.maximum(x * (1.0 / scale), -448.0), 448.0)
        tl.store(rows_at + at, x.to(tl.float8e4nv), mask=inside)
        tl.store(scale_at + row, scale)

    return to_fp8_rows_kernel


def _run(
    x: Tensor,
    delta: Tensor | None = None,
    gate: Tensor | None = None,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 0.0,
    gelu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel over rows of x [rows, n]: the sum (x where there is no delta), values and scales."""
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    count, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    rows, scale = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(count, 1, dtype=torch.float32)
    padded = 1 << (width - 1).bit_length()
    _kernel()[(count,)](
        x, delta, gate, gain, shift, total, rows, scale, eps,
        N=width, PADDED=padded, HAS_DELTA=delta is not None, HAS_GATE=gate is not None,
        HAS_NORM=gain is not None, HAS_GELU=gelu, num_warps=max(1, min(8, padded // 1024)),
    )  # fmt: skip
    return total, rows, scale


def _empty_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[0], 1, dtype=torch.float32)


@torch.library.custom_op("avatarcast::plain_to_fp8_rows", mutates_args=())
def plain_to_fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`to_fp8_rows` of x [rows, n]."""
    return _run(x)[1:] if x.is_cuda else to_fp8_rows(x)


@torch.library.custom_op("avatarcast::gelu_to_fp8_rows", mutates_args=())
def gelu_to_fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`to_fp8_rows` of GELU (tanh form) of x [rows, n]."""
    return _run(x, gelu=True)[1:] if x.is_cuda else to_fp8_rows(F.gelu(x.float(), approximate="tanh"))


@torch.library.custom_op("avatarcast::norm_to_fp8_rows", mutates_args=())
def norm_to_fp8_rows(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`to_fp8_rows` of layer_norm(x) * gain + shift; x [rows, n], gain and shift [n]."""
    if x.is_cuda:
        return _run(x, gain=gain, shift=shift, eps=eps)[1:]
    return to_fp8_rows(F.layer_norm(x.float(), x.shape[-1:], gain.float(), shift.float(), eps))


@torch.library.custom_op("avatarcast::add_norm_to_fp8_rows", mutates_args=())
def add_norm_to_fp8_rows(
    x: Tensor, delta: Tensor, gate: Tensor | None, gain: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum x + delta * gate in x's dtype, and `norm_to_fp8_rows` of it; x and delta [rows, n], the rest [n]."""
    if x.is_cuda:
        return _run(x, delta, gate, gain, shift, eps)
    total = x + delta if gate is None else torch.addcmul(x, delta, gate)
    return total, *to_fp8_rows(F.layer_norm(total.float(), x.shape[-1:], gain.float(), shift.float(), eps))


@plain_to_fp8_rows.register_fake
@gelu_to_fp8_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_rows(x)


@norm_to_fp8_rows.register_fake
def _(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _empty_rows(x)


@add_norm_to_fp8_rows.register_fake
def _(
    x: Tensor, delta: Tensor, gate: Tensor | None, gain: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_empty_rows(x)

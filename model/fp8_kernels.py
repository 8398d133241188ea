"""A feed-forward layer's activation and its rounding to fp8 as one kernel: each row is read once and written once.

A row's scale needs its largest value, which a compiler that works through a row in pieces must look for in a first pass
and use in a second, computing the activation twice. Here a program holds a whole row in registers. It is an operator of
its own, opaque to `torch.compile`; elsewhere than on a GPU it is the same formula in framework operations.
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
_WARPS = 8


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
    def gelu_to_fp8_rows_kernel(x_at, rows_at, scale_at, N: tl.constexpr, PADDED: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, PADDED)
        inside = column < N
        x = tl.load(x_at + row * N + column, mask=inside, other=0.0).to(tl.float32)
        y = x * tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
        scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / 448.0
        y = tl.minimum(tl.maximum(y * (1.0 / scale), -448.0), 448.0)
        tl.store(rows_at + row * N + column, y.to(tl.float8e4nv), mask=inside)
        tl.store(scale_at + row, scale)

    return gelu_to_fp8_rows_kernel


@torch.library.custom_op("avatarcast::gelu_to_fp8_rows", mutates_args=())
def gelu_to_fp8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`to_fp8_rows` of GELU (tanh form) of x [rows, n]."""
    if not x.is_cuda:
        return to_fp8_rows(F.gelu(x.float(), approximate="tanh"))
    x = x.contiguous()
    count, width = x.shape
    rows = torch.empty(count, width, device=x.device, dtype=torch.float8_e4m3fn)
    scale = torch.empty(count, 1, device=x.device, dtype=torch.float32)
    _kernel()[(count,)](x, rows, scale, N=width, PADDED=1 << (width - 1).bit_length(), num_warps=_WARPS)
    return rows, scale


@gelu_to_fp8_rows.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(x.shape[0], 1, dtype=torch.float32)

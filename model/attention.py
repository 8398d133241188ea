"""Attention, its norm, and the layer shared by self, text and audio attention.

Letters: B batch, T query tokens, K key tokens, N heads, d head width, D = N d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Exact attention without a mask: q [B, T, N, d], k and v [B, K, N, d] to [B, T, N d] in q's dtype."""
    if k.dtype != q.dtype:
        k, v = k.to(q.dtype), v.to(q.dtype)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, before the split into heads; statistics in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Projections and query/key norms; parameters named as in the released checkpoints."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def heads(self, x: Tensor) -> Tensor:
        """[B, ..., D] to [B, T, N, d]; everything between batch and width counts as tokens."""
        return x.view(x.shape[0], -1, self.num_heads, x.shape[-1] // self.num_heads)

    def queries(self, x: Tensor) -> Tensor:
        """[B, ..., D] to normed queries [B, T, N, d]."""
        return self.heads(self.norm_q(self.q(x)))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context [B, K, D] to normed keys and values [B, K, N, d]."""
        return self.heads(self.norm_k(self.k(context))), self.heads(self.v(context))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, ..., D] to normed queries and keys, and values, [B, T, N, d] each."""
        return self.queries(x), *self.keys_values(x)

    def cross(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from x [B, ..., D] to prepared keys and values; the result has x's shape."""
        return self.o(attend(self.queries(x), k, v)).view(x.shape)

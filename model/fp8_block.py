"""A transformer block's two halves in fp8, every product's input rounded by the kernel that makes it.

The same computation as `Block.qkv` and `Block.finish`, for blocks whose linear layers are `Fp8Linear` and whose
modulation is one vector for all tokens; written out because sum, norm and rounding are one operator here
(`model.fp8_kernels`) and cannot stay behind the layers' own calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import attend
from model.dit import Block, Modulation
from model.fp8_kernels import add_norm_to_fp8_rows, gelu_to_fp8_rows, norm_to_fp8_rows, plain_to_fp8_rows


def queries_keys_values(block: Block, x: Tensor, m: Modulation) -> tuple[Tensor, Tensor, Tensor]:
    """As `Block.qkv`: x [B, F, S, D] to normed, unrotated queries and keys, and values, [B, F S, N, d] each."""
    attention, rows = block.self_attn, x.flatten(0, -2)
    product = attention.qkv.product(*norm_to_fp8_rows(rows, m.scale1, m.shift1, block.eps))
    return attention.split(product.to(x.dtype).view(*x.shape[:-1], -1))


def finish(block: Block, x: Tensor, attended: Tensor, m: Modulation, text: tuple[Tensor, Tensor]) -> Tensor:
    """As `Block.finish`: residual x [B, F, S, D] and attention output [B, F S, D] to the block's output."""
    cross, norm, flat = block.cross_attn, block.norm3, x.flatten(0, -2)
    out = block.self_attn.o.product(*plain_to_fp8_rows(attended.flatten(0, -2))).to(x.dtype)
    flat, *rounded = add_norm_to_fp8_rows(flat, out, m.gate1, norm.weight, norm.bias, norm.eps)
    queries = cross.heads(cross.norm_q(cross.q.product(*rounded).to(x.dtype).view(x.shape)))
    heard = attend(queries, *text).flatten(0, -2)
    out = cross.o.product(*plain_to_fp8_rows(heard)).to(x.dtype)
    flat, *rounded = add_norm_to_fp8_rows(flat, out, None, m.scale2, m.shift2, block.eps)
    hidden = gelu_to_fp8_rows(block.ffn[0].product(*rounded).to(x.dtype))
    return torch.addcmul(flat, block.ffn[2].product(*hidden).to(x.dtype), m.gate2).view(x.shape)

"""Prompt encoder of the tiny checkpoint: hashed words through two small transformer layers.

It has no vocabulary file and reads any string: every word (every character of scripts without spaces) becomes the
CRC-32 of its letters modulo the table's size. Two words may share a row; training sees that too.

Letters: B batch, n tokens, D width.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_]+")


def words(prompt: str) -> list[str]:
    """Words of a prompt: letter case, accents' encoding, punctuation and spacing do not count."""
    return _WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())


class _Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class HashTextEncoder(nn.Module):
    """See the module."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.words = nn.Embedding(cfg.vocab, cfg.dim)
        self.positions = nn.Parameter(torch.randn(cfg.max_len, cfg.dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(cfg.dim, cfg.heads) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.dim)

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """[B, max_len] int64; 0 is padding, words beyond max_len are dropped."""
        ids = torch.zeros(len(prompts), self.cfg.max_len, dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            pieces = words(prompt)[: self.cfg.max_len]
            row[: len(pieces)] = torch.tensor([1 + zlib.crc32(w.encode()) % (self.cfg.vocab - 1) for w in pieces])
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers [B, n] to embeddings [B, n, D]; rows of padding are zero."""
        known = ids > 0
        bias = torch.where(known, 0.0, -1e4)[:, None, None, :]
        x = self.words(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x) * known[..., None]

    def encode(self, prompt: str) -> Tensor:
        """One prompt to [1, n, D], without padding; an empty prompt has n = 0."""
        ids = self.token_ids([prompt]).to(self.positions.device)
        return self(ids)[:, : int((ids > 0).sum())]

    def cut(self, prompt: str) -> str:
        """The words beyond `max_len`, which are not read; mostly none."""
        return " ".join(words(prompt)[self.cfg.max_len :])

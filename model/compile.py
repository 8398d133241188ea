"""The transformer's pass, compiled: what lies between two matrix products becomes one kernel.

Applied from outside: `speed_up` changes a loaded `DiT` in place, and whoever calls it (denoiser, generator, benchmarks)
notices nothing but the time. Three things happen. Queries, keys and values of self-attention come out of one product.
Linear layers go to fp8 on request. And `through` is replaced by `CompiledPass`, which compiles a block's two halves
around self-attention and its audio injection once each, all blocks sharing the code: norm and modulation; query/key
norm, rotation and the write into the ring; gate, residual, the next norm; in fp8 with kernels of our own where a row is
rounded (`model.fp8_block`). What a block's sound is prepared to is compiled too. Self-attention itself stays a call of
its own, to cuDNN's kernel where there is one. Nothing in a pass waits for the device.

The rotation is written without complex numbers and without a copy per pair, which the compiler handles well; it equals
`model.rope.rotate`. Prefill is not compiled: it runs once a portrait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import fp8_block
from model.attention import Attention
from model.audio_tokens import AudioCondition, AudioInjector
from model.dit import Block, DiT, Modulation, StepModulation, TextKV
from model.fp8 import Fp8Linear, quantise
from model.kv_cache import RollingCache
from model.rope import Rotation

_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class FusedAttention(Attention):
    """Self-attention whose three input projections are one; made from a loaded `Attention`."""

    def __init__(self, plain: Attention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.norm_q, self.norm_k, self.o = plain.num_heads, plain.norm_q, plain.norm_k, plain.o
        parts = (plain.q, plain.k, plain.v)
        if isinstance(plain.q, Fp8Linear):
            self.qkv = Fp8Linear.joined(list(parts))
            return
        with torch.device("meta"):
            self.qkv = nn.Linear(plain.q.in_features, sum(part.out_features for part in parts))
        self.qkv.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.qkv.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, ..., D] to normed queries and keys, and values, [B, T, N, d] each."""
        return self.split(self.qkv(x))

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The product [B, ..., 3 D] to normed queries and keys, and values, [B, T, N, d] each."""
        q, k, v = qkv.chunk(3, -1)
        return self.heads(self.norm_q(q)), self.heads(self.norm_k(k)), self.heads(v)


class SigmoidGELU(nn.Module):
    """GELU in its tanh form, spelt with a sigmoid: the same function, and a third of the instructions on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.sigmoid(1.5957691216057308 * wide * (1 + 0.044715 * wide * wide))).to(x.dtype)


def best_attention(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Prefer cuDNN's attention on a GPU; what it does not take goes to the next kernel that does."""
    return sdpa_kernel(_ATTENTION, set_priority=True) if device.type == "cuda" else contextlib.nullcontext()


def _wide(by: Rotation) -> tuple[Tensor, Tensor]:
    """Factors per channel instead of per pair, [T, 1, d] each; the sine carries the sign of its channel."""
    cos, sin = by.cos, by.sin
    return torch.stack([cos, cos], -1).flatten(-2)[..., None, :], torch.stack([-sin, sin], -1).flatten(-2)[..., None, :]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope.rotate` of x [B, T, N, d] with factors as `_wide` gives them."""
    wide = x.float()
    return (wide * cos + wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin).to(x.dtype)


def _project(
    block: Block, x: Tensor, m: Modulation, cos: Tensor, sin: Tensor, into_k: Tensor, into_v: Tensor
) -> Tensor:
    """First half of a block: writes keys and values into the ring's slot, returns rotated queries [B, T, N, d]."""
    q, k, v = fp8_block.queries_keys_values(block, x, m) if _is_fp8(block, m) else block.qkv(x, m)
    into_k.copy_(_rotate(k, cos, sin))
    into_v.copy_(v)
    return _rotate(q, cos, sin)


def _project_apart(block: Block, x: Tensor, m: Modulation, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First half of a block whose keys and values go to other devices first: rotated queries and keys, and values."""
    q, k, v = fp8_block.queries_keys_values(block, x, m) if _is_fp8(block, m) else block.qkv(x, m)
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _finish(block: Block, x: Tensor, attended: Tensor, m: Modulation, text: tuple[Tensor, Tensor]) -> Tensor:
    """Second half of a block: its output [B, F, S, D]."""
    half = fp8_block.finish if _is_fp8(block, m) else Block.finish
    return half(block, x, attended, m, text)


def _is_fp8(block: Block, m: Modulation) -> bool:
    return isinstance(block.ffn[0], Fp8Linear) and m.scale1.dim() == 1


class CompiledPass:
    """`DiT.through` in compiled parts; same arguments, same result up to rounding. Inference only."""

    def __init__(self, dit: DiT, backend: str | None = "inductor") -> None:
        """
        Args:
            dit: loaded, in its final dtype and place; where its heads lie on several devices (`model.sequence`), it
                was told so before.
            backend: of `torch.compile`; None runs the parts as they are.
        """
        self._dit = dit
        wrap: Callable[[Any], Any] = lambda f: f  # noqa: E731
        if backend is not None:
            wrap = lambda f: torch.compile(f, backend=backend, dynamic=False, fullgraph=True)  # noqa: E731
        self._project, self._finish, self._hear = wrap(_project), wrap(_finish), wrap(AudioInjector.hear)
        self._project_apart = wrap(_project_apart)

    def __call__(
        self,
        x: Tensor,
        step: StepModulation,
        text: TextKV,
        audio: AudioCondition,
        by: Rotation,
        cache: RollingCache,
        only_remember: bool = False,
    ) -> Tensor:
        """As `DiT.through`."""
        dit, last = self._dit, len(self._dit.blocks) - 1
        cos, sin = _wide(by)
        with best_attention(x.device):
            for index, (block, m) in enumerate(zip(dit.blocks, step.blocks, strict=True)):
                if dit.is_split:
                    q, k, v = dit.remember(index, *self._project_apart(block, x, m, cos, sin), cache)
                else:
                    into_k, into_v, k, v = cache.views(index)[:4]
                    q = self._project(block, x, m, cos, sin, into_k, into_v)
                if only_remember and index == last:
                    return x
                x = self._finish(block, x, dit.attend(q, k, v), m, text[index])
                heard = dit.injector_of(index)
                if heard is not None:
                    x = self._hear(dit.audio_injector.injector[heard], x, audio.injections[heard], audio.mask)
        return x


def speed_up(dit: DiT, *, fp8: bool = False, backend: str | None = "inductor") -> None:
    """Change a loaded transformer in place for fast inference.

    Args:
        dit: in its final dtype and on its final device, LoRA merged.
        fp8: also quantise its linear layers.
        backend: of `torch.compile`; None leaves out the compiler.
    """
    for block in dit.blocks:
        if not isinstance(block.self_attn, FusedAttention):
            block.self_attn = FusedAttention(block.self_attn)
        block.ffn[1] = SigmoidGELU()
    if fp8:
        quantise(dit)
    dit.through = CompiledPass(dit, backend)
    if backend is not None:
        dit.audio_condition = torch.compile(dit.audio_condition, backend=backend, dynamic=False)

"""Linear layers in 8-bit floating point (e4m3): half the weight memory of bfloat16, near twice its arithmetic.

Weights are quantised once, with one scale per output channel; activations at every call, with one scale per token,
so that neither a loud channel nor a loud token costs the others their precision. The product runs as
`torch._scaled_mm` with row-wise scales and comes out in the activations' dtype with the bias added. In a transformer
block's pass the rounding is part of the kernel in front (`model.fp8_block`).

Left in their dtype, as the published code leaves them: text and time embeddings, the head, the audio encoder's last
layer, and everything that is not a linear layer. Left out: per-tensor scales, calibration. On a
processor the product is emulated in float32 over the same rounded values, which tests the numbers and is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fp8_kernels import to_fp8_rows

EXCLUDED = (
    "text_embedding",
    "time_embedding",
    "time_projection",
    "head.head",
    "casual_audio_encoder.encoder.final_linear",
)
"""Layers whose name contains one of these stay as they are."""


class Rounded(NamedTuple):
    """A linear layer's weight in e4m3: values * scales."""

    values: Tensor
    """[out, in] e4m3."""
    scales: Tensor
    """[out, 1] float32."""

    def wide(self) -> Tensor:
        """[out, in] float32."""
        return self.values.float() * self.scales


class Fp8Linear(nn.Module):
    """A linear layer whose weight is held in e4m3."""

    def __init__(self, weight: Rounded, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.values)
        self.register_buffer("scale", weight.scales.T.contiguous())
        self.bias = bias

    @classmethod
    def of(cls, linear: nn.Linear) -> Fp8Linear:
        """A layer rounded."""
        return cls(Rounded(*to_fp8_rows(linear.weight.detach())), linear.bias)

    @classmethod
    def joined(cls, layers: list[Fp8Linear]) -> Fp8Linear:
        """Layers of one input as one, their outputs side by side; exact, since every output has its own scale."""
        values = torch.cat([x.weight.view(torch.uint8) for x in layers]).view(torch.float8_e4m3fn)
        weight = Rounded(values, torch.cat([x.scale for x in layers], 1).T)
        return cls(weight, nn.Parameter(torch.cat([x.bias for x in layers]), requires_grad=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """Moved like any layer, but a change of precision reaches the bias alone."""
        weight, scale = self.weight, self.scale
        super()._apply(fn, recurse)
        self.weight, self.scale = weight.to(self.weight.device), scale.to(self.scale.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out] in x's dtype."""
        y = self.product(*to_fp8_rows(x.reshape(-1, x.shape[-1])))
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])

    def product(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Rounded rows [rows, in] and their scales [rows, 1] to [rows, out], bfloat16 on a GPU, else float32."""
        if rows.is_cuda:
            return torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale,
                bias=self.bias,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
        y = F.linear(rows.float(), self.weight.float()) * scale * self.scale
        return y if self.bias is None else y + self.bias.float()


def can_round(name: str, layer: nn.Module) -> bool:
    """Whether a layer of that name in the transformer goes to fp8."""
    return type(layer) is nn.Linear and not any(part in name for part in EXCLUDED)


def quantise(module: nn.Module, prefix: str = "") -> int:
    """Replace the linear layers of `module` in place, one after the other, so that the peak is one layer above before.

    Returns:
        How many were replaced.
    """
    count = 0
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if can_round(path, child):
            setattr(module, name, Fp8Linear.of(child))
            count += 1
        else:
            count += quantise(child, f"{path}.")
    return count

"""Muon with AdamW beside it: matrices are updated by orthogonalised momentum, everything else by AdamW.

Follows K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): Nesterov momentum, five
Newton-Schulz steps, one learning rate for all shapes. Convolution kernels count as matrices [out, in x kernel]. Written
without host decisions, so that a whole training step can be captured as a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.training.sitting import DEVICE, adamw


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly (singular values 0.7 to 1.2): [..., rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon:
    """Two optimisers behind one door; `set_rates` takes the share of the peak (0..1)."""

    def __init__(
        self,
        module: nn.Module,
        rate: float = 0.02,
        adam_rate: float = 1e-3,
        decay: float = 0.01,
        exclude: tuple[str, ...] = (),
    ) -> None:
        hidden, other = [], []
        for name, p in module.named_parameters():
            if not p.requires_grad:
                continue
            matrix = p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 16 and not any(e in name for e in exclude)
            (hidden if matrix else other).append(p)
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in hidden:
            self._groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self._momentum = {shape: torch.zeros(len(ps), *shape, device=DEVICE) for shape, ps in self._groups.items()}
        self._peak, self._adam_peak, self._decay = rate, adam_rate, decay
        self._rate = torch.tensor(0.0, device=DEVICE)
        self.adam = adamw(other, 0.0, captured=True)

    def set_rates(self, share: float) -> None:
        self._rate.fill_(self._peak * share)
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._adam_peak * share)
            else:
                group["lr"] = self._adam_peak * share

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)
        for ps in self._groups.values():
            for p in ps:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.adam.step()
        for shape, ps in self._groups.items():
            grad = torch.stack([p.grad.reshape(shape).float() for p in ps])
            momentum = self._momentum[shape]
            momentum.lerp_(grad, 0.05)
            update = orthogonalise(torch.lerp(grad, momentum, 0.95))
            update = update * (max(1.0, shape[0] / shape[1]) ** 0.5 * self._rate)
            keep = 1 - self._decay * self._rate
            for p, u in zip(ps, update.unbind(0), strict=True):
                p.mul_(keep).sub_(u.view(p.shape))

    def state_dict(self) -> dict[str, object]:
        return {"adam": self.adam.state_dict(), "momentum": {f"{a}x{b}": m for (a, b), m in self._momentum.items()}}

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        for (a, b), m in self._momentum.items():
            m.copy_(state["momentum"][f"{a}x{b}"])

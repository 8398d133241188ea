"""Merging a low-rank adapter (LoRA, Hu et al. 2021) into the weights it was trained for.

Published adapters name their tensors in four ways: with or without the prefix `base_model.model.`, with or without the
adapter's name `default`. All are read; an adapter that fits nothing is an error, since skipping it silently would give
a model that merely looks right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from model.errors import CheckpointError

TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Endings of the linear layers that the published adapter covers, the audio injector's included."""
_NAME = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


def target_modules(weights: Mapping[str, Tensor], endings: tuple[str, ...] = TARGETS) -> list[str]:
    """Names of the linear layers an adapter may cover."""
    modules = (name.removesuffix(".weight") for name, w in weights.items() if name.endswith(".weight") and w.dim() == 2)
    return [m for m in modules if any(m == e or m.endswith(f".{e}") for e in endings)]


def merge_lora(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], alpha: float, *, complete: bool = True
) -> dict[str, Tensor]:
    """Weights plus alpha / rank * B @ A, formed in float32 and rounded once.

    Args:
        weights: parameters by name.
        adapter: tensors of the adapter file; A is [rank, in], B is [out, rank].
        alpha: the adapter's scale times its rank; published files do not carry it.
        complete: every target of the model must be covered.

    Returns:
        All weights by name; those without an adapter are the same tensors.

    Raises:
        CheckpointError: a name or shape does not fit, a half is missing, or a target is not covered.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.items():
        match = _NAME.match(name)
        if match is None:
            raise CheckpointError(f"adapter tensor {name} is neither lora_A nor lora_B of a layer; use another file")
        pairs.setdefault(match["module"], {})[match["side"]] = tensor
    if not pairs:
        raise CheckpointError("the adapter holds no tensors; use another file")
    uncovered = sorted(set(target_modules(weights)) - set(pairs))
    if complete and uncovered:
        raise CheckpointError(f"the adapter lacks {len(uncovered)} layers, first {uncovered[0]}; use another file")

    merged = dict(weights)
    for module, pair in pairs.items():
        key = f"{module}.weight"
        if key not in weights:
            raise CheckpointError(f"the adapter names {module}, which the model does not have; use another file")
        if len(pair) != 2:
            raise CheckpointError(f"the adapter has only lora_{next(iter(pair))} of {module}; use another file")
        a, b, w = pair["A"], pair["B"], weights[key]
        if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != tuple(w.shape):
            shapes = f"{list(b.shape)} x {list(a.shape)}"
            raise CheckpointError(f"the adapter of {module} is {shapes} for {list(w.shape)}; use another file")
        merged[key] = torch.addmm(w.float(), b.float(), a.float(), alpha=alpha / a.shape[0]).to(w.dtype)
    return merged

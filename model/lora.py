"""Merging a low-rank adapter (LoRA, Hu et al. 2021) into the weights it was trained for.

Published adapters name their tensors in four ways: with or without the prefix `base_model.model.`, with or without the
adapter's name `default`. All are read; an adapter that fits nothing is an error, since skipping it silently would give
a model that merely looks right. `plan_adapter` decides from names and shapes alone, so a wrong file is found before
any weight is loaded, and a loader can merge layer by layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import CheckpointError

TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
"""Endings of the linear layers that the published adapter covers, the audio injector's included."""
_PREFIX = "base_model.model."
_NAME = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """Which tensors of an adapter go where."""

    pairs: dict[str, tuple[str, str]]
    """Weight to the names of A and B."""
    plain: dict[str, str]
    """Weight to the name of the tensor that replaces it."""
    missing: tuple[str, ...]
    """Layers that an adapter may cover and this one does not."""


def target_modules(weights: Mapping[str, Tensor] | Shapes, endings: tuple[str, ...] = TARGETS) -> list[str]:
    """Names of the linear layers an adapter may cover, from weights or their shapes."""
    sizes = {name: len(w.shape if isinstance(w, Tensor) else w) for name, w in weights.items()}
    modules = (name.removesuffix(".weight") for name, size in sizes.items() if name.endswith(".weight") and size == 2)
    return [m for m in modules if any(m == e or m.endswith(f".{e}") for e in endings)]


def plan_adapter(weights: Shapes, adapter: Shapes, *, complete: bool = True) -> AdapterPlan:
    """Match an adapter with a model.

    Args:
        weights: shapes of the model's parameters.
        adapter: shapes of the adapter's tensors; A is [rank, in], B is [out, rank].
        complete: every target of the model must be covered.

    Raises:
        CheckpointError: a name or shape does not fit, a half is missing, or a target is not covered.
    """
    halves: dict[str, dict[str, str]] = {}
    plain: dict[str, str] = {}
    for name, shape in adapter.items():
        match = _NAME.match(name)
        if match is not None:
            side = halves.setdefault(match["module"], {})
            if match["side"] in side:
                raise CheckpointError(f"the adapter has {name} twice, in two spellings; use another file")
            side[match["side"]] = name
            continue
        key = name.removeprefix(_PREFIX)
        if key not in weights:
            raise CheckpointError(f"adapter tensor {name} belongs to no layer of the model; use another file")
        if tuple(weights[key]) != tuple(shape):
            raise CheckpointError(f"adapter tensor {name} is {list(shape)}, not {list(weights[key])}; use another file")
        plain[key] = name
    if not halves:
        raise CheckpointError("the adapter holds no low-rank pairs; use another file")
    for module, pair in halves.items():
        _check_pair(module, pair, weights, adapter)
    missing = tuple(sorted(set(target_modules(weights)) - set(halves)))
    if complete and missing:
        raise CheckpointError(f"the adapter lacks {len(missing)} layers, first {missing[0]}; use another file")
    pairs = {f"{module}.weight": (pair["A"], pair["B"]) for module, pair in halves.items()}
    return AdapterPlan(pairs=pairs, plain=plain, missing=missing)


def _check_pair(module: str, pair: Mapping[str, str], weights: Shapes, adapter: Shapes) -> None:
    key = f"{module}.weight"
    if key not in weights:
        raise CheckpointError(f"the adapter names {module}, which the model does not have; use another file")
    if len(pair) != 2:
        raise CheckpointError(f"the adapter has only lora_{next(iter(pair))} of {module}; use another file")
    a, b, w = list(adapter[pair["A"]]), list(adapter[pair["B"]]), list(weights[key])
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or [b[0], a[1]] != w:
        raise CheckpointError(f"the adapter of {module} is {b} x {a} for {w}; use another file")


def merge_pair(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Weight plus alpha / rank * B @ A, formed in float32 and rounded once to the weight's dtype."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=alpha / a.shape[0]).to(weight.dtype)


def merge_lora(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], alpha: float, *, complete: bool = True
) -> dict[str, Tensor]:
    """Merge tensors that are in memory; see `plan_adapter` and `merge_pair`.

    Args:
        weights: parameters by name.
        adapter: tensors of the adapter file.
        alpha: the adapter's scale times its rank; published files do not carry it.
        complete: every target of the model must be covered.

    Returns:
        All weights by name; those without an adapter are the same tensors.

    Raises:
        CheckpointError: as `plan_adapter`.
    """
    shapes = [{name: t.shape for name, t in tensors.items()} for tensors in (weights, adapter)]
    plan = plan_adapter(*shapes, complete=complete)
    merged = dict(weights)
    for key, name in plan.plain.items():
        merged[key] = adapter[name].to(weights[key].dtype)
    for key, (a, b) in plan.pairs.items():
        merged[key] = merge_pair(merged[key], adapter[a], adapter[b], alpha)
    return merged

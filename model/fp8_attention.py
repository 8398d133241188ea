"""Attention over e4m3 queries, keys and values through cuDNN (`nvidia-cudnn-frontend`, the extra `fp8`).

A third faster than bfloat16 on a Hopper GPU. No scales are kept: queries and keys come out of an RMS norm and the
values of a trained model lie well inside what e4m3 holds; the softmax's weights, at most one, are stretched to its
upper range. cuDNN plans a product once per shape; a ring that fills has a few shapes, a full one has one.

Letters: B batch, T query tokens, K key tokens, N heads, d head width.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

_WEIGHT_SCALE = 256.0
"""What softmax weights are multiplied by before they are rounded."""


def is_installed() -> bool:
    """Whether cuDNN's front end can be imported."""
    return importlib.util.find_spec("cudnn") is not None


class _Plan(NamedTuple):
    """A built product and its places."""

    graph: Any
    places: dict[str, Any]
    workspace: Tensor


class Fp8Attention:
    """Callable as `attention.attend`, for e4m3 tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: of all tensors to come.

        Raises:
            ImportError: the front end is not installed.
        """
        import cudnn

        self._cudnn, self._handle = cudnn, cudnn.create_handle()
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        number = lambda value: torch.full((1, 1, 1, 1), value, dtype=torch.float32, device=device)  # noqa: E731
        one = number(1.0)
        self._scales = {"descale_q": one, "descale_k": one, "descale_v": one, "scale_o": one}
        self._scales |= {"scale_s": number(_WEIGHT_SCALE), "descale_s": number(1 / _WEIGHT_SCALE)}
        self._peaks = {"peak_s": number(0.0), "peak_o": number(0.0)}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, N, d], k and v [B, K, N, d], all e4m3, to [B, T, N d] bfloat16."""
        key = (q.shape, k.shape, q.stride(), k.stride(), v.stride())
        plan = self._plans.get(key) or self._plans.setdefault(key, self._plan(q, k, v))
        out = torch.empty(q.shape, dtype=torch.bfloat16, device=q.device)
        given = {"q": q, "k": k, "v": v, "out": out, **self._scales, **self._peaks}
        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
        plan.graph.execute({plan.places[name]: value for name, value in given.items()}, plan.workspace, self._handle)
        return out.flatten(2)

    def _plan(self, q: Tensor, k: Tensor, v: Tensor) -> _Plan:
        types = self._cudnn.data_type
        graph = self._cudnn.pygraph(
            io_data_type=types.FP8_E4M3,
            intermediate_data_type=types.FLOAT,
            compute_data_type=types.FLOAT,
            handle=self._handle,
        )
        places: dict[str, Any] = {}
        for name, x in (("q", q), ("k", k), ("v", v)):
            x = x.transpose(1, 2)
            places[name] = graph.tensor(name=name, dim=list(x.shape), stride=list(x.stride()), data_type=types.FP8_E4M3)
        for name in self._scales:
            places[name] = graph.tensor(name=name, dim=[1] * 4, stride=[1] * 4, data_type=types.FLOAT)
        out, _, peak_s, peak_o = graph.sdpa_fp8(
            **places, is_inference=True, attn_scale=1 / math.sqrt(q.shape[-1]), use_causal_mask=False, name="attention"
        )
        batch, tokens, heads, width = q.shape
        out.set_output(True).set_dim([batch, heads, tokens, width]).set_data_type(types.BFLOAT16)
        out.set_stride([tokens * heads * width, width, heads * width, 1])
        for peak in (peak_s, peak_o):
            peak.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(types.FLOAT)
        places |= {"out": out, "peak_s": peak_s, "peak_o": peak_o}
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        return _Plan(graph, places, torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=q.device))

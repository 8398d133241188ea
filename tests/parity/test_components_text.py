"""The prompt encoder against the published one, padded and not."""

from __future__ import annotations

import pytest
import torch

from model.component_config import UMT5TextConfig
from model.published_keys import umt5_key, umt5_sizes
from model.umt5 import UMT5Text
from tests.parity.golden import Component, close


@pytest.fixture(scope="module")
def fixture(component) -> Component:
    return component("t5")


@pytest.fixture(scope="module")
def text(fixture: Component) -> UMT5Text:
    sizes = fixture.info["config"]
    assert sizes["shared_pos"] is False and sizes["eps"] == 1e-6
    cfg = UMT5TextConfig(
        vocab=sizes["vocab"],
        dim=sizes["dim"],
        head_dim=sizes["dim_attn"] // sizes["num_heads"],
        heads=sizes["num_heads"],
        ffn_dim=sizes["dim_ffn"],
        layers=sizes["num_layers"],
        buckets=sizes["num_buckets"],
        max_distance=sizes["max_distance"],
        max_len=fixture.info["text_len"],
    )
    shapes = {key: value.shape for key, value in fixture.weights.items()}
    assert umt5_sizes(shapes, sizes["max_distance"], fixture.info["text_len"]) == cfg
    text = UMT5Text(cfg).eval().requires_grad_(False)
    weights = {umt5_key(key): value for key, value in fixture.weights.items()}
    text.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    return text


def test_contexts(fixture: Component, text: UMT5Text) -> None:
    info, ids = fixture.info, fixture["input_ids"].long()
    assert len(ids) == len(info["lengths"])
    mask = (ids != info["pad_id"]).long()
    padded = text(ids, mask)
    for i, length in enumerate(info["lengths"]):
        assert int(mask[i].sum()) == length and ids[i, length - 1] == info["eos_id"]
        wanted = fixture[f"context_{i}"]
        close(padded[i, :length], wanted, info["tolerance_fp32"], 0)
        close(text(ids[i : i + 1, :length])[0], wanted, info["tolerance_fp32"], 0)


def test_bfloat16_deviation(fixture: Component, text: UMT5Text) -> None:
    narrow = UMT5Text(text.cfg).eval().requires_grad_(False)
    narrow.load_state_dict(text.state_dict())
    narrow.to(torch.bfloat16)
    recorded = fixture.info["observed_bf16_max_abs_error"]
    for i, length in enumerate(fixture.info["lengths"]):
        got = narrow(fixture["input_ids"][i : i + 1, :length].long())[0].float()
        error = (got - fixture[f"context_{i}"]).abs().max().item()
        print(f"{length} tokens in bfloat16: largest error {error:.3f}, recorded {recorded[i]:.3f}")
        assert error < 4 * max(recorded)

"""Random weights depend on seed and name only."""

from __future__ import annotations

import torch

from model.random_weights import fill_random, random_dit
from tests.unit.model.small_dit import SMALL


def test_a_part_gets_the_values_of_the_whole():
    whole = random_dit(SMALL, 5, "cpu", torch.float32)
    part = random_dit(SMALL, 6, "cpu", torch.float32).blocks[2]
    assert not torch.equal(part.ffn[0].weight, whole.blocks[2].ffn[0].weight)
    fill_random(part, 5, lambda name: f"blocks.2.{name}")
    assert all(torch.equal(a, b) for a, b in zip(part.parameters(), whole.blocks[2].parameters(), strict=True))


def test_every_value_is_drawn_and_finite():
    dit = random_dit(SMALL, 0, "cpu", torch.bfloat16)
    for name, parameter in dit.named_parameters():
        assert bool(parameter.isfinite().all()) and parameter.abs().max() > 0, name
        assert parameter.dtype == torch.bfloat16

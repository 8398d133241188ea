"""One transformer block with a preset cache against the published implementation."""

from __future__ import annotations

import numpy as np
import torch

from model import rope
from model.attention import attend
from model.dit import Block
from model.kv_cache import ConditionCache, RollingCache
from model.rope import rotate
from tests.parity.golden import close, config_of


def test_block(golden) -> None:
    fixture, weights = golden("e_block"), golden("weights")
    info = fixture.info
    cfg = config_of(info, weights)
    block = Block(cfg)
    block.load_state_dict(weights.under(info["weight_prefix"]))
    height, width = info["latent_hw"]
    rows, columns = height // cfg.patch, width // cfg.patch
    frames = info["num_frames"]
    text = block.cross_attn.keys_values(fixture["in.context"])
    e = fixture["in.e"]

    # The condition alone, at timestep 0.
    x = fixture["in.x_cond"][:, None]
    motion = rope.motion_positions(height, width, cfg.patch)
    by = rope.rotation_of(np.concatenate([rope.reference_positions(30, rows, columns), motion]), cfg.head_dim)
    assert len(motion) + rows * columns == info["cond_tokens"] == cfg.condition_tokens(height, width)
    at_zero = block.modulation_at(e[:, :1, :, 1])
    q, k, v = block.qkv(x, at_zero)
    close(k, fixture["prefill.cond_k"])
    close(v, fixture["prefill.cond_v"])
    out = block.finish(x, attend(rotate(q, by), rotate(k, by), v), at_zero, text)
    close(out[:, 0], fixture["out.prefill"])

    behind = rope.rotation_of(motion, cfg.head_dim)
    condition = ConditionCache(k=k[None], v=v[None], motion=behind, num_reference=rows * columns)
    m = block.modulation_at(e[..., 0, :])
    tokens = info["tokens_per_block"]
    slots = info["kv_cache_tokens"] // tokens
    for name, case in info["cases"].items():
        if name == "prefill":
            continue
        first = case["first_frame"]
        assert case["current_start"] == first * rows * columns
        cache = RollingCache.allocate(condition, slots, tokens, evict="slot")
        if "preset" in case["cache"]:
            cache.k[0, :, info["cond_tokens"] :] = fixture["in.cache_k"]
            cache.v[0, :, info["cond_tokens"] :] = fixture["in.cache_v"]
            index = first // frames
            cache.blocks = list(range(max(0, index - slots), index))[:slots]
        cache.set_reference(
            condition.rotated_reference(
                rope.rotation_of(rope.reference_positions(30 + case["cond_offset"], rows, columns), cfg.head_dim)
            )
        )
        cache.begin(first // frames)
        x = fixture[case.get("input", "in.x")].unflatten(1, (frames, -1))
        by = rope.rotation_of(rope.block_positions(first, frames, rows, columns), cfg.head_dim)
        q, k, v = block.qkv(x, m)
        keys, values = cache.update(0, rotate(k, by), v)
        out = block.finish(x, attend(rotate(q, by), keys, values), m, text)
        close(out.flatten(1, 2), fixture[f"out.{name}"])
        if f"cache.k.{name}" in fixture:
            wanted_k, wanted_v = fixture[f"cache.k.{name}"], fixture[f"cache.v.{name}"]
            close(keys[:, info["cond_tokens"] :], wanted_k)
            close(values[:, info["cond_tokens"] :], wanted_v)
    assert torch.isfinite(out).all()

"""The whole transformer over a wrapped ring against the published implementation, both rotary tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import StreamConfig
from model.dit import DiT
from model.kv_cache import RollingCache
from tests.parity.golden import Fixture, close, config_of


class Rollout:
    """Prefill, then passes at one timestep on one ring."""

    def __init__(self, fixture: Fixture, weights: Fixture, tables: str) -> None:
        info = fixture.info
        self.fixture, self.info = fixture, info
        self.dit = DiT(dataclasses.replace(config_of(info, weights), rope_tables=tables)).eval()
        self.dit.load_state_dict(weights.under(""))
        self.frames, self.size = info["num_frames_per_block"], info["latent_hw"]
        self.text = self.dit.text_kv(fixture["in.text"][None])
        self.condition = self.dit.prefill(fixture["in.ref_latents"], self.text, fixture["in.motion_latents"])
        self.step = self.dit.step_modulation(torch.tensor(info["timestep"], dtype=torch.float32))
        self.fresh()

    def fresh(self) -> None:
        blocks, tokens = self.info["kv_cache_blocks"], self.info["tokens_per_block"]
        self.cache = RollingCache.allocate(self.condition, blocks, tokens, evict="slot")

    def run(self, noisy: Tensor, audio: Tensor, at: dict[str, Any], pose=None, mask=None) -> Tensor:
        first = at["block_index"] * self.frames
        time = StreamConfig().reference_time(first, at["relative_dist"])
        assert time == at.get("ref_rope_frame", time)
        dit, size = self.dit, self.size
        self.cache.set_reference(self.condition.rotated_reference(dit.reference_rotation(time, *size)))
        self.cache.begin(at["block_index"])
        assert self.cache.slot == at.get("ring_slot", self.cache.slot)
        velocity = dit(
            noisy[None],
            self.step,
            self.text,
            dit.audio_condition(audio[None], mask),
            dit.pose(pose, self.frames, *size),
            dit.block_rotation(first, self.frames, *size),
            self.cache,
        )
        self.cache.advance()
        return velocity[0]


@pytest.mark.parametrize("tables", ["exact", "rounded"])
def test_rollout(golden, tables: str) -> None:
    fixture, weights = golden("f_dit_rollout"), golden("weights")
    info, prefix = fixture.info, "" if tables == "exact" else "rope_half."
    run = Rollout(fixture, weights, tables)
    condition = run.condition
    assert condition.k.shape[2] == info["cond_tokens"]
    if tables == "exact":
        for layer in range(run.dit.cfg.num_layers):
            if f"prefill.cond_k.layer{layer}" in fixture:
                close(condition.k[layer], fixture[f"prefill.cond_k.layer{layer}"])
                close(condition.v[layer], fixture[f"prefill.cond_v.layer{layer}"])
    assert info["steps"]
    for at in info["steps"]:
        i = at["index"]
        close(run.run(fixture[f"in.noisy.{i}"], fixture[f"in.audio.{i}"], at), fixture[f"{prefix}out.{i}"])
        if tables == "exact":
            ring = (b[info["kv_layer"]][:, info["cond_tokens"] :] for b in (run.cache.k, run.cache.v))
            for got, wanted in zip(ring, (fixture[f"kv.k.{i}"], fixture[f"kv.v.{i}"]), strict=True):
                close(got, wanted)

    # Nonzero pose, and two speakers, on fresh rings; both variants use the inputs of their block's step.
    for name, variant in (("pose", "pose_variant"), ("two_actors_mask", "two_actors_variant")):
        at = info[variant]
        same = next(s["index"] for s in info["steps"] if s["block_index"] == at["block_index"])
        run.fresh()
        if name == "pose":
            out = run.run(fixture[f"in.noisy.{same}"], fixture[f"in.audio.{same}"], at, pose=fixture["in.pose_cond"])
        else:
            mask = fixture["in.mask"][None, ..., 0]
            out = run.run(fixture[f"in.noisy.{same}"], fixture["in.audio_two_actors"], at, mask=mask)
        close(out, fixture[f"{prefix}out.{name}"])

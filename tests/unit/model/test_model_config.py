"""Ranges and agreements of model configurations."""

from __future__ import annotations

import dataclasses

import pytest

from model.config import DiTConfig, ModelConfig, SamplerConfig, StreamConfig, tiny


def test_tiny_is_the_embedded_checkpoint() -> None:
    cfg = tiny()
    assert cfg.geometry.block_s == 0.48
    assert cfg.window.samples == 38_400
    assert cfg.dit.head_dim == 64
    assert cfg.dit.condition_tokens(cfg.geometry.latent_height, cfg.geometry.latent_width) == 64


@pytest.mark.parametrize(
    ("cls", "change", "text"),
    [
        (DiTConfig, {"dim": 30}, "dit.dim is 30"),
        (DiTConfig, {"patch_size": (2, 2, 2)}, "dit.patch_size"),
        (DiTConfig, {"audio_inject_layers": (3, 1)}, "rising block numbers"),
        (DiTConfig, {"rope_tables": "half"}, "exact or rounded"),
        (StreamConfig, {"ring_blocks": 0}, "stream.ring_blocks is 0"),
        (StreamConfig, {"sink_distance": "far"}, "stream.sink_distance is 'far'"),
        (StreamConfig, {"history": "noisy"}, "same_step or clean"),
        (SamplerConfig, {"sigmas": (0.5, 1.0)}, "falling noise levels"),
        (SamplerConfig, {"sigmas": ()}, "sampler.sigmas is empty"),
    ],
)
def test_bad_values_are_named(cls: type, change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        cls(**change)


def test_parts_must_agree() -> None:
    cfg = tiny()
    with pytest.raises(ValueError, match="vae.z_dim is 17 but dit.in_dim"):
        dataclasses.replace(cfg, vae=dataclasses.replace(cfg.vae, z_dim=17))
    with pytest.raises(ValueError, match="width is 250"):
        dataclasses.replace(cfg, width=250)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"strem": {}}, "unknown key strem; did you mean stream"),
        ({"stream": {"ring_block": 3}}, "unknown key stream.ring_block; did you mean ring_blocks"),
        ({"stream": {"ring_blocks": "3"}}, "stream.ring_blocks is '3'; give a value of type int"),
        ({"stream": {"ring_blocks": True}}, "stream.ring_blocks is True"),
        ({"sampler": {"sigmas": 1}}, "sampler.sigmas is 1; give a list"),
        ({"vae": {"stride": [4, 16]}}, "vae.stride is .* give a list of 3"),
        ({"stream": []}, r"stream\.? is \[\]; give a mapping"),
    ],
)
def test_unknown_keys_and_types_are_named_with_their_path(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ModelConfig.from_dict(change)


def test_published_switches_are_checked() -> None:
    assert DiTConfig.from_published({"dim": 64, "num_heads": 2, "adain_mode": "attn_norm"}).dim == 64
    with pytest.raises(ValueError, match="enable_motioner is True"):
        DiTConfig.from_published({"enable_motioner": True})


def test_reference_rolls_ahead_of_the_block() -> None:
    stream = StreamConfig()
    assert [stream.reference_time(f, 8) for f in (0, 21, 22, 24, 1200)] == [30, 30, 30, 32, 1208]

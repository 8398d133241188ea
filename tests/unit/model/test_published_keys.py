"""Names and sizes of the released files: every tensor of the full-size modules has exactly one, none is left over."""

from __future__ import annotations

import pytest
import torch

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.interface import WindowSpec
from model.published_keys import umt5_key, umt5_sizes, wan_vae_key, wan_vae_sizes, xlsr_key
from model.umt5 import UMT5Text
from model.wan_vae import WanVAE
from model.xlsr import XLSREncoder


def released_vae_keys(cfg: WanVAEConfig) -> list[str]:
    """Names as the released file has them, written down level by level."""
    conv, residual = (".weight", ".bias"), ("residual.0.gamma", "residual.3.gamma")
    convs = [f"residual.{i}{leaf}" for i in (2, 6) for leaf in conv]
    keys = [f"{name}{leaf}" for name in ("conv1", "conv2") for leaf in conv]
    for side, group in (("encoder", "downsamples"), ("decoder", "upsamples")):
        keys += [f"{side}.{name}{leaf}" for name in ("conv1", "head.2") for leaf in conv] + [f"{side}.head.0.gamma"]
        keys += [f"{side}.middle.1.{leaf}" for leaf in ("norm.gamma", "to_qkv.weight", "to_qkv.bias")]
        keys += [f"{side}.middle.1.proj{leaf}" for leaf in conv]
        keys += [f"{side}.middle.{i}.{leaf}" for i in (0, 2) for leaf in (*residual, *convs)]
        number, blocks = 0, cfg.residual_blocks + (side == "decoder")
        times = cfg.temporal_downsample if side == "encoder" else cfg.temporal_downsample[::-1]
        for level in range(len(cfg.width_multipliers)):
            for _ in range(blocks):
                keys += [f"{side}.{group}.{number}.{leaf}" for leaf in (*residual, *convs)]
                number += 1
            if level < len(times):
                keys += [f"{side}.{group}.{number}.resample.1{leaf}" for leaf in conv]
                keys += [f"{side}.{group}.{number}.time_conv{leaf}" for leaf in conv if times[level]]
                number += 1
    return keys


@pytest.mark.parametrize(("blocks", "count"), [(1, 146), (2, 194), (3, 242)])
def test_vae_names(blocks: int, count: int) -> None:
    cfg = WanVAEConfig(residual_blocks=blocks)
    with torch.device("meta"):
        own = {key for key in WanVAE(cfg).state_dict() if "conv_shortcut" not in key}
    keys = released_vae_keys(cfg)
    assert {wan_vae_key(key, blocks) for key in keys} == own and len(keys) == len(own)
    first = "encoder.downsamples." + str(blocks + 1)
    assert wan_vae_key(first + ".shortcut.weight", blocks) == f"encoder.down_blocks.{blocks + 1}.conv_shortcut.weight"
    shortcuts = 3 * 2  # encoder levels 1 and 2 and the decoder's level 1 change the width
    assert len(keys) + shortcuts == count


def test_vae_shapes_of_the_14b() -> None:
    with torch.device("meta"):
        state = WanVAE(WanVAEConfig()).state_dict()
    assert sum(value.numel() for value in state.values()) == 126_892_531
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    table = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "conv1.weight": (32, 32, 1, 1, 1),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.7.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }
    for key, shape in table.items():
        assert shapes[wan_vae_key(key)] == shape, key


def test_vae_memory_has_the_published_slots() -> None:
    vae = WanVAE(WanVAEConfig(base_width=4)).eval()
    with torch.inference_mode():
        latents = torch.zeros(1, 16, 3, 2, 2)
        _, state = vae.decode(latents)
        _, after = vae.decode(latents, state)
        _, encoder = vae.encode(torch.zeros(1, 3, 9, 16, 16))
    assert len(after.slots) == 32 and len(encoder.slots) == 24  # the library keeps one and two more, always empty
    assert [slot.shape[1] for slot in encoder.slots].count(1) == 2  # the two that halve time
    assert all(slot.shape[1] == 2 for slot in after.slots)
    shapes = [slot.shape for slot in after.slots]
    with torch.inference_mode():
        again = vae.decode(latents, after)[1]
    assert [slot.shape for slot in again.slots] == shapes and again.nbytes == after.nbytes


def test_text_names_and_shapes_of_the_14b() -> None:
    with torch.device("meta"):
        state = UMT5Text(UMT5TextConfig()).state_dict()
    leaves = ("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding", "norm2")
    leaves += ("ffn.gate.0", "ffn.fc1", "ffn.fc2")
    keys = ["token_embedding.weight", "norm.weight"]
    keys += [f"blocks.{i}.{leaf}.weight" for i in range(24) for leaf in leaves]
    assert len(keys) == 242
    assert {umt5_key(key) for key in keys} | {"encoder.embed_tokens.weight"} == set(state)
    shapes = {key: tuple(state[umt5_key(key)].shape) for key in keys}
    assert shapes["blocks.0.ffn.gate.0.weight"] == (10_240, 4096) and shapes["token_embedding.weight"] == (
        256_384,
        4096,
    )
    assert umt5_sizes(shapes) == UMT5TextConfig()


def test_speech_names_of_the_14b() -> None:
    spec = WindowSpec(left_samples=64_000, lookahead_samples=2_560, block_samples=7_680)
    with torch.device("meta"):
        state = XLSREncoder(XLSRAudioConfig(), spec, 12, 25).wav2vec2.state_dict()
    assert sum(value.numel() for value in state.values()) == 315_438_720 - 1024  # without the mask embedding
    for key in state:
        assert xlsr_key(f"wav2vec2.{key}") == xlsr_key(key) == key
    positional = "encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        name = f"{positional}parametrizations.weight.{new}"
        assert xlsr_key(f"wav2vec2.{positional}{old}") == name
    assert tuple(state[positional + "parametrizations.weight.original0"].shape) == (1, 1, 128)
    assert tuple(state[positional + "parametrizations.weight.original1"].shape) == (1024, 64, 128)
    assert xlsr_key("lm_head.weight") is None and xlsr_key("wav2vec2.masked_spec_embed") is None


@pytest.mark.parametrize(
    "key", ["", "conv3.weight", "encoder.middle.3.x", "decoder.downsamples.0.a", "encoder.upsamples.0.a"]
)
def test_strangers_have_no_name(key: str) -> None:
    assert wan_vae_key(key) is None
    assert umt5_key(key) is None and umt5_key("blocks.0.attn.x.weight") is None


def test_a_file_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"no tensor encoder\.conv1\.weight"):
        wan_vae_sizes({})
    with pytest.raises(ValueError, match=r"no tensor token_embedding\.weight"):
        umt5_sizes({})


@pytest.mark.parametrize("config", [WanVAEConfig, XLSRAudioConfig, UMT5TextConfig])
def test_sizes_are_checked(config: type) -> None:
    bad = {
        WanVAEConfig: [
            {"base_width": 0},
            {"width_multipliers": (1,)},
            {"temporal_downsample": (True,)},
            {"latents_std": (1.0,)},
            {"reference_latent": "last"},
            {"motion_latents": 1},
        ],
        XLSRAudioConfig: [{"heads": 3}, {"left_samples": 320}, {"lookahead_samples": 79}, {"forget_s": 0.0}],
        UMT5TextConfig: [{"dim": 0}, {"vocab": 1}, {"buckets": 6}, {"max_distance": 8}],
    }
    for values in bad[config]:
        with pytest.raises(ValueError, match=next(iter(values))):
            config(**values)


def test_another_speech_layout_is_refused() -> None:
    sizes = {"conv_dim": [8] * 7, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    with pytest.raises(ValueError, match="do_stable_layer_norm is False"):
        XLSRAudioConfig.from_published({**sizes, "do_stable_layer_norm": False})
    with pytest.raises(ValueError, match="all seven must be equal"):
        XLSRAudioConfig.from_published({**sizes, "conv_dim": [8, 16]})

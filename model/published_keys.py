"""Tensor names of the released files to the names of the library classes that run them, one name at a time.

A loader can rename while it streams, without holding a file in memory, and a wrong file is found by its first name.
Sizes that the files' shapes tell are read here too, since the VAE and the text encoder come without a configuration.
Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from model.component_config import UMT5TextConfig, WanVAEConfig

Shapes = Mapping[str, Sequence[int]]
"""Shape of every tensor of a file, by name."""

_RESIDUAL = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2": "conv1",
    "residual.3.gamma": "norm2.gamma",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_ENDS = {
    "encoder.conv1": "encoder.conv_in",
    "encoder.head.0": "encoder.norm_out",
    "encoder.head.2": "encoder.conv_out",
    "decoder.conv1": "decoder.conv_in",
    "decoder.head.0": "decoder.norm_out",
    "decoder.head.2": "decoder.conv_out",
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
}
_BLOCK = "encoder.block.{}.layer."
_UMT5_BLOCK = {
    "norm1": "0.layer_norm",
    "attn.q": "0.SelfAttention.q",
    "attn.k": "0.SelfAttention.k",
    "attn.v": "0.SelfAttention.v",
    "attn.o": "0.SelfAttention.o",
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}


def wan_vae_key(key: str, residual_blocks: int = 2) -> str | None:
    """Name of a released VAE tensor in `AutoencoderKLWan` (and `model.wan_vae`), or None if it is not one.

    Args:
        key: name in `Wan2.1_VAE.pth`.
        residual_blocks: per encoder level, as `WanVAEConfig.residual_blocks`.
    """
    module, _, leaf = key.rpartition(".")
    if module in _VAE_ENDS:
        return f"{_VAE_ENDS[module]}.{leaf}"
    match = re.fullmatch(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)", key)
    if match is None:
        return None
    side, group, number, rest = match.groups()
    for theirs, ours in _RESIDUAL.items():
        if rest == theirs or rest.startswith(theirs + "."):
            rest = ours + rest[len(theirs) :]
            break
    if group == "middle":
        return f"{side}.mid_block.{_MIDDLE[number]}.{rest}" if number in _MIDDLE else None
    if group == "downsamples":
        return f"encoder.down_blocks.{number}.{rest}" if side == "encoder" else None
    level, place = divmod(int(number), residual_blocks + 2)
    inner = "upsamplers.0" if place == residual_blocks + 1 else f"resnets.{place}"
    return f"decoder.up_blocks.{level}.{inner}.{rest}" if side == "decoder" else None


def umt5_key(key: str) -> str | None:
    """Name of a released text tensor in `UMT5EncoderModel` (and `model.umt5`), or None if it is not one.

    The embedding has a second name there, `encoder.embed_tokens.weight`, for the same tensor.
    """
    ends = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    if key in ends:
        return ends[key]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", key)
    if match is None or match[2] not in _UMT5_BLOCK:
        return None
    return f"{_BLOCK.format(match[1])}{_UMT5_BLOCK[match[2]]}.weight"


def xlsr_key(key: str) -> str | None:
    """Name of a released speech tensor in `Wav2Vec2Model` (and `model.xlsr`), or None for those it does without.

    The word head and the mask embedding serve training only. Old files call the two factors of the positional
    convolution `weight_g` and `weight_v`.
    """
    key = key.removeprefix("wav2vec2.")
    if key.startswith("lm_head.") or key == "masked_spec_embed":
        return None
    positional = "encoder.pos_conv_embed.conv."
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    if key.startswith(positional):
        leaf = key.removeprefix(positional)
        return positional + names.get(leaf, leaf)
    return key


def wan_vae_sizes(shapes: Shapes) -> WanVAEConfig:
    """Sizes of a released VAE file.

    Raises:
        ValueError: a tensor that they are read from is missing.
    """
    base, z_dim = _shape(shapes, "encoder.conv1.weight")[0], _shape(shapes, "conv2.weight")[0]
    widths, temporal, blocks, i = [], [], 0, 0
    while True:
        if f"encoder.downsamples.{i}.residual.2.weight" in shapes:
            width = shapes[f"encoder.downsamples.{i}.residual.2.weight"][0]
            blocks += not temporal
            if len(widths) == len(temporal):
                widths.append(width)
        elif f"encoder.downsamples.{i}.resample.1.weight" in shapes:
            temporal.append(f"encoder.downsamples.{i}.time_conv.weight" in shapes)
        else:
            break
        i += 1
    statistics = {}
    if z_dim != WanVAEConfig().z_dim:
        statistics = {"latents_mean": (0.0,) * z_dim, "latents_std": (1.0,) * z_dim}
    return WanVAEConfig(
        z_dim=z_dim,
        base_width=base,
        width_multipliers=tuple(width // base for width in widths),
        residual_blocks=blocks,
        temporal_downsample=tuple(temporal),
        **statistics,
    )


def umt5_sizes(shapes: Shapes, max_distance: int = 128, max_len: int = 512) -> UMT5TextConfig:
    """Sizes of a released text encoder file; the last two leave no trace in shapes.

    Raises:
        ValueError: a tensor that they are read from is missing.
    """
    vocab, dim = _shape(shapes, "token_embedding.weight")
    buckets, heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight")
    layers = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks."))
    return UMT5TextConfig(
        vocab=vocab,
        dim=dim,
        head_dim=_shape(shapes, "blocks.0.attn.q.weight")[0] // heads,
        heads=heads,
        ffn_dim=_shape(shapes, "blocks.0.ffn.fc1.weight")[0],
        layers=layers,
        buckets=buckets,
        max_distance=max_distance,
        max_len=max_len,
    )


def _shape(shapes: Shapes, key: str) -> Sequence[int]:
    if key not in shapes:
        raise ValueError(f"the file has no tensor {key}; it is not a released checkpoint of this kind")
    return shapes[key]

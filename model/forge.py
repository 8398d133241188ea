"""Random checkpoints in the released layout, for tests and benchmarks where the released weights cannot be had.

Weights are scaled so that activations keep their size: pictures mean nothing, but every path computes with ordinary
numbers. Each tensor is drawn from a seed of its own name, so its values depend neither on the order nor on which
process draws it. `random:mini` and `random:14b` as a checkpoint fill the same tensors in place, without any file.

    python -m model.forge FOLDER --size mini|14b [--seed N] [--device cuda]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.component_config import XLSRAudioConfig
from model.config import DiTConfig, ModelConfig
from model.errors import CheckpointError, exit_code_of
from model.lora import target_modules
from model.published import CONFIG, SPEECH, forged_config
from model.published_keys import umt5_key, wan_vae_key, xlsr_key
from model.released import assemble
from model.share import PARTS, WHOLE_SHARE, Share
from model.survey import INDEX, TEXT, TOKENIZER, VAE
from model.tensor_files import write_safetensors
from model.weights import build_modules

Shapes = dict[str, tuple[int, ...]]
LORA = "Live-Avatar/liveavatar.safetensors"
_RANK = {"mini": 4, "14b": 128}
_SHARDS = {"mini": 2, "14b": 4}
_WORDS = ("<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "woman", "man", "speaks", "smiling")


def random_tensor(
    key: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype, device: str | torch.device
) -> Tensor:
    """One tensor's values, a function of its name and the seed (and of the kind of device).

    Args:
        key: part and name, for example `dit.blocks.0.norm3.weight`.
        shape, dtype, device: of the result.
        seed: any whole number.
    """
    number = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device).manual_seed(number)
    mean, std = _distribution(key, shape)
    return torch.empty(shape, dtype=dtype, device=device).normal_(mean, std, generator=generator)


def _distribution(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation: gains near one, small offsets, matrices that keep the size of what passes through."""
    leaf = key.rpartition(".")[2]
    if leaf in ("gamma", "weights", "original0") or (leaf == "weight" and len(shape) == 1):
        return 1.0, 0.1
    if leaf == "bias" or leaf == "padding_tokens" or "trainable_cond_mask" in key:
        return 0.0, 0.02
    if key == "text.shared.weight":
        return 0.0, 1.0
    fan_in = math.prod(shape[1:])
    if key.startswith("text.") and key.endswith("SelfAttention.q.weight"):
        return 0.0, 1 / (8 * math.sqrt(fan_in))  # umT5 does not scale its attention
    if leaf == "modulation":
        return 0.0, 1 / math.sqrt(shape[-1])
    return 0.0, 1 / math.sqrt(fan_in)


def shapes_of(config: ModelConfig, parts: Collection[str] = PARTS) -> dict[str, Shapes]:
    """Every parameter of a configuration's parts, in the modules' names."""
    with torch.device("meta"):
        modules = build_modules(config, parts)
    shapes = {part: {k: tuple(v.shape) for k, v in module.state_dict().items()} for part, module in modules.items()}
    shapes.get("text", {}).pop("encoder.embed_tokens.weight", None)  # a second name of the shared embedding
    return shapes


def random_modules(
    size: str,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    share: Share = WHOLE_SHARE,
    text_device: str | torch.device | None = None,
) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """`random:mini` or `random:14b`: modules as `load_released` gives them, filled in place.

    Args:
        size: mini or 14b.
        seed: of all tensors.
        device, dtype, share, text_device: as for `load_released`.

    Raises:
        CheckpointError: the size is unknown.
    """
    config = forged_config(size)
    shapes = shapes_of(config, share.parts)

    def tensors(part: str, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        place = device if part != "text" or text_device is None else text_device
        for name, shape in shapes[part].items():
            if name in wanted:
                yield name, random_tensor(f"{part}.{name}", shape, seed, _stored(part), place)

    modules = assemble(config, tensors, dtype, share)
    if "text" in modules:
        modules["text"].tokenizer = _tokenizer()
    return config, modules


def forge(folder: str | Path, size: str, seed: int = 0, device: str = "cpu") -> None:
    """Write a folder in the released layout, and beside the weights an adapter in `Live-Avatar`.

    Args:
        folder: created; must not hold a checkpoint yet.
        size: mini or 14b.
        seed: of all tensors.
        device: where values are drawn; a GPU is faster and gives other values.

    Raises:
        CheckpointError: the size is unknown or the folder holds files.
    """
    config, folder = forged_config(size), Path(folder).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; name a new folder")
    for path in (folder / SPEECH, folder / TOKENIZER, (folder / LORA).parent):
        path.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(config)
    draw = lambda key, shape, dtype: random_tensor(key, shape, seed, dtype, device)  # noqa: E731
    _write_json(folder / CONFIG, _dit_values(config.dit))
    _write_shards(folder, shapes["dit"], _SHARDS[size], draw)
    _write_adapter(folder / LORA, shapes["dit"], _RANK[size], draw)
    for part, name in (("text", TEXT), ("vae", VAE)):
        names = _released_names(part, config, shapes[part])
        tensors = {
            theirs: draw(f"{part}.{own}", shapes[part][own], _stored(part)).cpu() for theirs, own in names.items()
        }
        torch.save(tensors, folder / name)
        del tensors
    names = _released_names("audio", config, shapes["audio"])
    audio = {theirs: shapes["audio"][own] for theirs, own in names.items()}
    values = ((theirs, draw(f"audio.{own}", audio[theirs], torch.float32)) for theirs, own in names.items())
    write_safetensors(folder / SPEECH / "model.safetensors", audio, torch.float32, values)
    _write_json(folder / SPEECH / CONFIG, _speech_values(config.audio))
    front = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16_000}
    _write_json(folder / SPEECH / "preprocessor_config.json", front)
    _tokenizer().save_pretrained(folder / TOKENIZER)


def _stored(part: str) -> torch.dtype:
    """Precision of the released file."""
    return torch.bfloat16 if part in ("dit", "text") else torch.float32


def _write_shards(folder: Path, shapes: Shapes, num_shards: int, draw: Any) -> None:
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0
    shards: list[Shapes] = [{} for _ in range(num_shards)]
    for key, shape in shapes.items():
        shards[min(num_shards - 1, done * num_shards // total)][key] = shape
        done += math.prod(shape)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{i:05}-of-{num_shards:05}.safetensors"
        values = ((key, draw(f"dit.{key}", shape, torch.bfloat16)) for key, shape in shard.items())
        write_safetensors(folder / name, shard, torch.bfloat16, values)
        weight_map |= dict.fromkeys(shard, name)
    _write_json(folder / INDEX, {"metadata": {"total_size": 2 * total}, "weight_map": weight_map})


def _write_adapter(path: Path, shapes: Shapes, rank: int, draw: Any) -> None:
    sides: Shapes = {}
    for module in target_modules(shapes):
        rows, columns = shapes[f"{module}.weight"]
        sides[f"{module}.lora_A.default.weight"] = (rank, columns)
        sides[f"{module}.lora_B.default.weight"] = (rows, rank)
    scaled = ((key, 0.3 * draw(f"lora.{key}", shape, torch.bfloat16)) for key, shape in sides.items())
    write_safetensors(path, sides, torch.bfloat16, scaled)


def _released_names(part: str, config: ModelConfig, own: Mapping[str, Any]) -> dict[str, str]:
    """Names in the released file to ours: those of all that a file of this kind may have which mean one of ours."""
    if part == "audio":
        factors = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        names = {}
        for name in own:
            theirs = name  # `wav2vec2.` in front in both
            for ours, old in factors.items():
                theirs = theirs.replace(ours, old)
            names[theirs] = name
        assert all(f"wav2vec2.{xlsr_key(theirs)}" == name for theirs, name in names.items())
        return names
    if part == "text":
        possible = {key: umt5_key(key) for key in _text_names(config.text.layers)}
    else:
        blocks = config.vae.residual_blocks
        possible = {key: wan_vae_key(key, blocks) for key in _vae_names()}
    names = {theirs: name for theirs, name in possible.items() if name in own}
    assert sorted(names.values()) == sorted(own), part
    return names


def _text_names(layers: int) -> Iterator[str]:
    yield from ("token_embedding.weight", "norm.weight")
    parts = ("norm1", *(f"attn.{x}" for x in "qkvo"), "pos_embedding.embedding", "norm2")
    for i in range(layers):
        yield from (f"blocks.{i}.{part}.weight" for part in (*parts, "ffn.gate.0", "ffn.fc1", "ffn.fc2"))


def _vae_names() -> Iterator[str]:
    modules = ["residual.0", "residual.2", "residual.3", "residual.6", "shortcut", "resample.1", "time_conv"]
    modules += ["norm", "to_qkv", "proj"]
    bodies = ["conv1", "conv2"]
    for side, group in (("encoder", "downsamples"), ("decoder", "upsamples")):
        bodies += [f"{side}.{name}" for name in ("conv1", "head.0", "head.2")]
        bodies += [f"{side}.middle.{i}.{module}" for i in range(3) for module in modules]
        bodies += [f"{side}.{group}.{i}.{module}" for i in range(32) for module in modules]
    for body in bodies:
        yield from (f"{body}.{leaf}" for leaf in ("weight", "bias", "gamma"))


def _dit_values(dit: DiTConfig) -> dict[str, Any]:
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "freq_dim", "text_dim", "text_len")
    names += ("audio_dim", "num_audio_token", "cond_dim", "eps")
    switches = {"enable_adain": True, "adain_mode": "attn_norm", "zero_timestep": True, "enable_motioner": False}
    switches |= {"add_last_motion": True, "qk_norm": True, "cross_attn_norm": True, "enable_framepack": True}
    return {
        "_class_name": "WanModel_S2V",
        "model_type": "s2v",
        **{name: getattr(dit, name) for name in names},
        "patch_size": list(dit.patch_size),
        "audio_inject_layers": list(dit.audio_inject_layers),
        "framepack_drop_mode": "padd",
        "zero_init": True,
        "window_size": [-1, -1],
        **switches,
    }


def _speech_values(audio: XLSRAudioConfig) -> dict[str, Any]:
    return {
        "model_type": "wav2vec2",
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "hidden_act": "gelu",
        "conv_dim": [audio.conv_width] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "hidden_size": audio.dim,
        "intermediate_size": audio.ffn_dim,
        "num_hidden_layers": audio.layers,
        "num_attention_heads": audio.heads,
        "num_conv_pos_embeddings": audio.position_kernel,
        "num_conv_pos_embedding_groups": audio.position_groups,
    }


def _tokenizer() -> Any:
    """Whole words and single letters, with the numbers that the text encoder reserves for padding and the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.forge", description="Write a random checkpoint.")
    parser.add_argument("folder")
    parser.add_argument("--size", choices=("mini", "14b"), default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where values are drawn: cpu or cuda")
    given = parser.parse_args(arguments)
    return exit_code_of("model.forge", lambda: forge(given.folder, given.size, given.seed, given.device))


if __name__ == "__main__":
    sys.exit(main())

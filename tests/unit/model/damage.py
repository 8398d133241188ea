"""Ways in which a released folder can be wrong, each with the sentence that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.published import SPEECH
from model.survey import INDEX, TEXT, TOKENIZER, VAE

SHARD = "diffusion_pytorch_model-0000{}-of-00002.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    is_safe = path.suffix == ".safetensors"
    tensors = load_file(path) if is_safe else torch.load(path, weights_only=True)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path) if is_safe else torch.save(tensors, path)


Q = "blocks.0.self_attn.q.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
    "wrong switch": (
        lambda f: edit(f / "config.json", lambda c: c.update(enable_motioner=True)),
        r"config\.json.*enable_motioner is True; only False",
    ),
    "other width": (
        lambda f: edit(f / "config.json", lambda c: c.update(ffn_dim=100)),
        r"blocks\.0\.ffn\.0\.bias in .*00001-of-00002\.safetensors is \[96\], not \[100\]",
    ),
    "fewer layers": (
        lambda f: edit(f / "config.json", lambda c: c.update(num_layers=3)),
        r"safetensors has 27 tensors too many, first blocks\.3\.",
    ),
    "more layers": (
        lambda f: edit(f / "config.json", lambda c: c.update(num_layers=5)),
        r"lacks 27 tensors of the dit, first blocks\.4\.",
    ),
    "no index": (lambda f: (f / INDEX).unlink(), r"index\.json is missing"),
    "wrong index": (
        lambda f: edit(f / INDEX, lambda c: c["weight_map"].update({Q: SHARD.format(2)})),
        rf"index\.json places {Q} in .*00002-of-00002\.safetensors, which lacks it",
    ),
    "index leaves one out": (
        lambda f: edit(f / INDEX, lambda c: c["weight_map"].pop(Q)),
        rf"00001-of-00002\.safetensors holds {Q}, which .* does not place there",
    ),
    "no shard": (lambda f: (f / SHARD.format(2)).unlink(), r"00002-of-00002\.safetensors is missing"),
    "shard cut": (lambda f: cut(f / SHARD.format(1)), r"00001-of-00002\.safetensors has \d+ bytes but its header"),
    "shard too many": (
        lambda f: shutil.copy(f / SHARD.format(1), f / "old.safetensors"),
        r"old\.safetensors is not in .*index\.json",
    ),
    "integers": (
        lambda f: edit_tensors(f / SHARD.format(1), lambda t: t.update({Q: t[Q].to(torch.int8)})),
        rf"{Q} in .* is I8; only F32, F16 and BF16",
    ),
    "not finite": (
        lambda f: edit_tensors(f / SHARD.format(1), lambda t: t[Q].fill_(float("nan"))),
        rf"{Q} in .* holds values that are not finite",
    ),
    "no text file": (lambda f: (f / TEXT).unlink(), r"models_t5.*\.pth is missing"),
    "text file cut": (lambda f: cut(f / TEXT), r"models_t5.*\.pth is broken, cut short"),
    "text key unknown": (
        lambda f: edit_tensors(f / TEXT, lambda t: t.update({"blocks.0.ffn.up.weight": torch.ones(2)})),
        r"models_t5.*\.pth has the unknown tensor blocks\.0\.ffn\.up\.weight",
    ),
    "VAE key missing": (
        lambda f: edit_tensors(f / VAE, lambda t: t.pop("decoder.middle.1.proj.weight")),
        r"VAE\.pth lacks 1 tensors of the vae, first decoder\.mid_block\.attentions\.0\.proj\.weight",
    ),
    "VAE shape": (
        lambda f: edit_tensors(f / VAE, lambda t: t.update({"conv1.bias": torch.zeros(3)})),
        r"conv1\.bias in .*VAE\.pth is \[3\], not \[32\]",
    ),
    "VAE is a program": (lambda f: torch.save(Path("x"), f / VAE), r"VAE\.pth is broken, cut short, or not a file of"),
    "no speech folder": (lambda f: shutil.rmtree(f / SPEECH), r"preprocessor_config\.json is missing"),
    "other speech encoder": (
        lambda f: edit(f / SPEECH / "config.json", lambda c: c.update(do_stable_layer_norm=False)),
        r"english/config\.json.*do_stable_layer_norm is False",
    ),
    "other sample rate": (
        lambda f: edit(f / SPEECH / "preprocessor_config.json", lambda c: c.update(sampling_rate=8000)),
        r"preprocessor_config\.json has sampling_rate 8000",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / TOKENIZER), r"tokenizer folder .*umt5-xxl does not exist"),
    "broken tokenizer": (
        lambda f: cut(f / TOKENIZER / "tokenizer.json"),
        r"the tokenizer in .*umt5-xxl cannot be read",
    ),
}

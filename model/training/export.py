"""Stage `export`: one safetensors file with weights, configuration and the evaluation's figures; and its inverse."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from torch import nn

from model.config import tiny
from model.training.decoder_stage import BLOCKS, WIDTHS
from model.training.sitting import load_shards, save_shards
from model.weights import build_modules, checkpoint_path, load_checkpoint, read_metadata, save_checkpoint

INT8_PARTS = ("dit", "text")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run(work: Path, out: Path | None, sigmas: tuple[float, ...] | None, history: str | None) -> dict[str, object]:
    """Gather the stages' averaged weights from `work` into the checkpoint `out` (default: the package's tiny)."""
    config = tiny()
    sampler = replace(config.sampler, sigmas=sigmas) if sigmas else config.sampler
    stream = replace(config.stream, history=history) if history else config.stream
    config = replace(config, sampler=sampler, stream=stream)
    modules = build_modules(config)
    learned, note = load_shards(work / "teacher")
    nn.ModuleDict({"dit": modules["dit"], "text": modules["text"]}).load_state_dict(learned)
    modules["vae"].load_state_dict(load_shards(work / "vae")[0])
    audio = load_shards(work / "audio")[0]
    modules["audio"].load_state_dict(
        {k.removeprefix("encoder."): v for k, v in audio.items() if k.startswith("encoder.")}
    )
    metrics: dict[str, object] = {"commit": _commit(), "teacher": note}
    for stage in ("vae", "audio", "measure", "eval"):
        file = work / f"{stage}.json"
        if file.is_file():
            metrics[stage] = json.loads(file.read_text())
    out = out or checkpoint_path("tiny")
    save_checkpoint(out, modules, config, metrics, INT8_PARTS)
    size_mb = out.stat().st_size / 1e6
    print(f"export: {out.name}, {size_mb:.1f} MB", flush=True)
    return {"file": out.name, "size_mb": round(size_mb, 2)}


def add_decoder(work: Path, checkpoint: Path, out: Path | None) -> dict[str, object]:
    """Write a finished checkpoint again with the small decoder from `work` in it (default: in its place)."""
    config, metrics = read_metadata(checkpoint)
    _, modules = load_checkpoint(checkpoint)
    old = modules["vae"].state_dict()
    config = replace(config, vae=replace(config.vae, small_widths=WIDTHS, small_blocks=BLOCKS))
    modules["vae"] = build_modules(config)["vae"]
    learned, metrics["decoder"] = load_shards(work / "decoder")
    kept = {k: v for k, v in old.items() if not k.startswith("small_decoder.")}
    modules["vae"].load_state_dict(kept | {f"small_decoder.{k}": v for k, v in learned.items()})
    out = out or checkpoint
    save_checkpoint(out, modules, config, metrics, INT8_PARTS)
    size_mb = out.stat().st_size / 1e6
    print(f"export: {out.name} with a small decoder, {size_mb:.1f} MB", flush=True)
    return {"file": out.name, "size_mb": round(size_mb, 2)}


def unpack(checkpoint: Path, work: Path) -> None:
    """Put the parts of a finished checkpoint into `work` as the stages leave them, so that they go on with --resume."""
    _, modules = load_checkpoint(checkpoint)
    whole, small = modules["vae"].state_dict(), "small_decoder."
    if any(k.startswith(small) for k in whole):
        save_shards(work / "decoder", {k.removeprefix(small): v for k, v in whole.items() if k.startswith(small)})
    save_shards(work / "vae", {k: v for k, v in whole.items() if not k.startswith(small)}, {"from": checkpoint.name})
    parts = {
        "teacher": {"dit.": modules["dit"], "text.": modules["text"]},
        "audio": {"encoder.": modules["audio"]},
    }
    for stage, owners in parts.items():
        tensors = {prefix + k: v for prefix, module in owners.items() for k, v in module.state_dict().items()}
        save_shards(work / stage, tensors, {"from": checkpoint.name})

"""A released folder written anew, so that it loads in one pass: its adapter merged, its linear layers rounded to fp8.

Tensors pass one at a time, so the host holds one layer. The folder keeps the released layout and is checked as
strictly; a rounded weight is what loading would have rounded, stored with its scales. It takes no second adapter.

    python -m model.convert FOLDER OUT [--lora FILE] [--fp8]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.adapter_files import adapter_file
from model.errors import CheckpointError, exit_code_of
from model.fp8 import Rounded, can_round
from model.fp8_kernels import to_fp8_rows
from model.published import CONFIG, SPEECH, read_json
from model.released import ALPHA, by_file, stored_tensors
from model.survey import INDEX, MERGED, SCALE, STORED, LoadPlan, plan_released
from model.tensor_files import FP8, write_safetensors
from model.weights import build_modules

_NAME = "diffusion_pytorch_model-00001-of-00001.safetensors"


def convert(
    folder: str | Path, out: str | Path, adapter: str | Path | None = None, alpha: float = ALPHA, fp8: bool = False
) -> None:
    """Write a folder in the released layout.

    Args:
        folder: as for `load_released`.
        out: new folder; it appears when it is complete.
        adapter: merged into the transformer.
        alpha: its scale times its rank.
        fp8: round the transformer's linear layers.

    Raises:
        CheckpointError: as `load_released`, or there is nothing to do, or the output exists.
    """
    out = Path(out).expanduser()
    if adapter is None and not fp8:
        raise CheckpointError(f"nothing is to be done to {folder}; name an adapter, or ask for fp8")
    if out.exists():
        raise CheckpointError(f"{out} exists; name a new folder")
    plan = plan_released(folder, adapter)
    if any(source.scale for source in plan.sources["dit"].values()):
        raise CheckpointError(f"the layers of {folder} are in fp8 already; convert the folder that it was made from")
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.safetensors", "*.index.json", "*.bin", "*.msgpack")
    shutil.copytree(plan.folder, unfinished, ignore=ignored)
    (unfinished / SPEECH).mkdir(exist_ok=True)
    shutil.copy(plan.folder / SPEECH / "model.safetensors", unfinished / SPEECH)
    values = read_json(plan.folder / CONFIG)
    if plan.adapter_path is not None:
        values[MERGED] = plan.adapter_path.name
    (unfinished / CONFIG).write_text(json.dumps(values, indent=2), encoding="utf-8")
    _write_transformer(plan, unfinished, alpha, _linear_weights(plan) if fp8 else set())
    unfinished.replace(out)


def _linear_weights(plan: LoadPlan) -> set[str]:
    with torch.device("meta"):
        dit = build_modules(plan.config)["dit"]
    return {f"{name}.weight" for name, module in dit.named_modules() if can_round(name, module)}


def _write_transformer(plan: LoadPlan, folder: Path, alpha: float, linear: set[str]) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, source in (entry for entries in by_file(plan.sources["dit"]).values() for entry in entries):
        shapes[name], dtypes[name] = source.entry.shape, FP8 if name in linear else STORED[source.entry.dtype]
        if name in linear:
            shapes[name + SCALE], dtypes[name + SCALE] = (source.entry.shape[0], 1), torch.float32

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, value in stored_tensors(plan, "dit", alpha, "cpu"):
            if name in linear:
                rounded = Rounded(*to_fp8_rows(value))
                yield from ((name, rounded.values), (name + SCALE, rounded.scales))
            else:
                yield name, value

    write_safetensors(folder / _NAME, shapes, dtypes, tensors())
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, _NAME)}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.convert", description="Write a folder that loads at once.")
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--lora", help="adapter to merge: its file, its folder, or its name on the hub")
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--fp8", action="store_true", help="round the transformer's linear layers")
    given = parser.parse_args(arguments)

    def work() -> None:
        adapter = adapter_file(given.lora) if given.lora else None
        convert(given.folder, given.out, adapter, given.alpha, given.fp8)

    return exit_code_of("model.convert", work)


if __name__ == "__main__":
    sys.exit(main())

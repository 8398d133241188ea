"""The folder of a released checkpoint, loaded one tensor at a time.

`model.survey` has compared every name and shape before. Loading goes file by file and tensor by tensor to the target
device and precision, and merges an adapter on the way, so the host never holds more than one layer besides the target
itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.disk_cache import DiskCache, identity_of
from model.errors import CheckpointError
from model.fp8 import Fp8Linear, Rounded
from model.lora import merge_pair
from model.published import CONFIG
from model.share import WHOLE_SHARE, Share
from model.survey import TEXT, TOKENIZER, VAE, LoadPlan, Source, plan_released
from model.tensor_files import reading
from model.weights import build_modules

ALPHA = 64.0
"""Of the published adapter, whose file does not carry it; its rank is 128."""


def stored_tensors(
    plan: LoadPlan, part: str, alpha: float, device: str | torch.device, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor | Rounded]]:
    """One part's parameters in file order, on the device, in the stored precision, the adapter merged.

    Args:
        plan, part: what and of what.
        alpha, device: as for `load_released`.
        wanted: names to read; None: all.

    Raises:
        CheckpointError: values are not finite.
    """
    adapter = plan.adapter if part == "dit" else None
    with _reading_adapter(plan) as adapter_value:
        for path, entries in by_file(plan.sources[part]).items():
            with reading(path) as value_of:
                for name, source in entries:
                    if wanted is not None and name not in wanted:
                        continue
                    value = _owned(value_of(source.key), device)
                    if source.scale is not None:
                        scales = _owned(value_of(source.scale), device)
                        _check_finite(scales, source.scale, path)
                        yield name, Rounded(value, scales)
                        continue
                    if adapter is not None and name in adapter.plain:
                        value = _owned(adapter_value(adapter.plain[name]), device).to(value.dtype)
                    if adapter is not None and name in adapter.pairs:
                        a, b = (_owned(adapter_value(side), device) for side in adapter.pairs[name])
                        value = merge_pair(value, a, b, alpha)
                    _check_finite(value, source.key, path)
                    yield name, value
                    del value  # before the next one is read


def _check_finite(value: Tensor, key: str, path: Path) -> None:
    if not bool(value.isfinite().all()):
        raise CheckpointError(f"{key} in {path} holds values that are not finite; copy it again")


def _reading_adapter(plan: LoadPlan) -> Any:
    if plan.adapter_path is None:
        return contextlib.nullcontext(None)
    return reading(plan.adapter_path)


def _owned(value: Tensor, device: str | torch.device) -> Tensor:
    """A copy that no longer depends on the file."""
    return torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)


def load_released(
    folder: str | Path,
    *,
    adapter: str | Path | None = None,
    alpha: float = ALPHA,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    share: Share = WHOLE_SHARE,
    keep_fp8: bool = False,
    text_device: str | torch.device | None = None,
    cache: Path | None = None,
    cache_bytes: int = 0,
    defer_text: bool = False,
) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """Read a released folder into modules in evaluation mode.

    Args:
        folder: as for `survey`.
        adapter: as for `survey`; merged on the way.
        alpha: its scale times its rank.
        device: where the modules live.
        dtype: of the transformer and the text encoder; the VAE and the speech encoder are float32.
        share: parts and layers to read.
        keep_fp8: leave layers that are stored in fp8 as they are; otherwise they are widened to `dtype`.
        text_device: where the text encoder lives; None: with the others.
        cache, cache_bytes: folder for encoded prompts and portraits and its bound; None keeps nothing.
        defer_text: read the prompt encoder when a prompt comes that is not on disk.

    Raises:
        CheckpointError: one sentence naming the file, and the key where one is at fault, before any weight is read.
    """
    plan = plan_released(folder, adapter)
    places = {"text": text_device} if text_device is not None else {}

    def tensors(part: str, wanted: Collection[str] | None = None) -> Iterator[tuple[str, Tensor | Rounded]]:
        return stored_tensors(plan, part, alpha, places.get(part, device), wanted)

    modules = assemble(plan.config, tensors, dtype, share, keep_fp8, leave_out=("text",) if defer_text else ())
    from model.umt5 import Thrift, load_tokenizer

    def cache_of(precision: torch.dtype, *names: str) -> DiskCache | None:
        if cache is None:
            return None
        identity = f"{identity_of(*(plan.folder / name for name in names))} {precision} {torch.device(device).type}"
        return DiskCache(cache, cache_bytes, identity)

    if "text" in modules:
        text = modules["text"]
        text.tokenizer = load_tokenizer(plan.folder / TOKENIZER)
        fill = (lambda: fill_part("text", text, tensors("text"), dtype)) if defer_text else None
        tokenizer = sorted(str(path.relative_to(plan.folder)) for path in (plan.folder / TOKENIZER).iterdir())
        place_of_text = torch.device(places.get("text", device))
        text.thrift = Thrift(cache=cache_of(dtype, TEXT, CONFIG, *tokenizer), device=place_of_text, fill=fill)
    if "vae" in modules:
        modules["vae"].cache = cache_of(torch.float32, VAE)
    return plan.config, modules


def assemble(
    config: ModelConfig,
    tensors: Callable[[str, Collection[str]], Iterator[tuple[str, Tensor | Rounded]]],
    dtype: torch.dtype,
    share: Share = WHOLE_SHARE,
    keep_fp8: bool = False,
    leave_out: Collection[str] = (),
) -> dict[str, nn.Module]:
    """Modules built without memory and filled tensor by tensor.

    Args:
        config: what to build.
        tensors: those of a part's parameters that are named, on their device; names of one shared tensor may repeat it.
        dtype, share, keep_fp8: as for `load_released`.
        leave_out: parts that stay without memory, for `fill_part`.
    """
    with torch.device("meta"):
        modules = build_modules(share.config(config), share.parts)
    for part, module in modules.items():
        if part not in leave_out:
            names = share.names(part, module.state_dict(), config.dit)
            own = ((names[name], value) for name, value in tensors(part, names))
            fill_part(part, module, own, dtype, keep_fp8)
    return modules


def fill_part(
    part: str,
    module: nn.Module,
    tensors: Iterator[tuple[str, Tensor | Rounded]],
    dtype: torch.dtype,
    keep_fp8: bool = False,
) -> None:
    """Give a module that was built without memory its parameters; arguments as for `assemble`."""
    wanted = dtype if part in ("dit", "text") else torch.float32
    for name, value in tensors:
        if isinstance(value, Rounded) and keep_fp8:
            place_rounded(module, name, value)
        else:
            place(module, name, (value.wide() if isinstance(value, Rounded) else value).to(wanted))
    if part == "text":
        module.encoder.embed_tokens.weight = module.shared.weight
    bare = [name for name, value in module.state_dict().items() if value.is_meta]
    assert not bare, f"{part}.{bare[0]} was not filled"


def place(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module one parameter's value."""
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def place_rounded(module: nn.Module, name: str, weight: Rounded) -> None:
    """Put a layer in fp8 in a linear layer's place; its bias may have come before or come later."""
    path = name.rpartition(".")[0]
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, Fp8Linear(weight, module.get_submodule(path).bias))


def by_file(sources: Mapping[str, Source]) -> dict[Path, list[tuple[str, Source]]]:
    files: dict[Path, list[tuple[str, Source]]] = {}
    for name, source in sources.items():
        files.setdefault(source.path, []).append((name, source))
    return files

"""A released folder, checked from headers first: names and shapes of all files against the modules that will run.

`survey` tells all it finds, and `avatarcast doctor` prints that list; `plan_released` stops at its first failure. The
modules are built without memory; the index is followed, never the folder's listing. A folder that `model.convert` has
written may hold the transformer's linear layers in fp8: their values as `F8_E4M3`, a float32 scale per row beside them
(`….weight_scale`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.component_config import XLSRAudioConfig
from model.config import DiTConfig, ModelConfig
from model.errors import CheckpointError
from model.fp8 import can_round
from model.lora import AdapterPlan, plan_adapter
from model.published import CONFIG, SPEECH, published, read_json
from model.published_keys import umt5_key, umt5_sizes, wan_vae_key, wan_vae_sizes, xlsr_key
from model.tensor_files import Entry, entries_of
from model.weights import build_modules

INDEX = "diffusion_pytorch_model.safetensors.index.json"
TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
VAE = "Wan2.1_VAE.pth"
TOKENIZER = "google/umt5-xxl"
MERGED = "avatarcast_merged"
"""Key of `config.json` that says which adapter a converted folder already holds."""
ROUNDED = "F8_E4M3"
"""Precision of the linear layers of a folder that was converted to fp8."""
SCALE = "_scale"
"""Follows the name of such a weight in the name of its scales."""
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found about one file."""

    file: str
    level: Literal["ok", "warn", "fail"]
    text: str
    """One sentence; of a failure with the remedy."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one parameter comes from."""

    path: Path
    key: str
    entry: Entry
    scale: str | None = None
    """Name of a rounded weight's scales, in the same file."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything that loading needs to know."""

    config: ModelConfig
    folder: Path
    sources: dict[str, dict[str, Source]]
    """Per part, by the name in its module."""
    adapter: AdapterPlan | None
    adapter_path: Path | None


class _Survey:
    """Collects findings; each file's check returns None where it failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[Finding] = []
        self.merged: Any = None

    def note(self, path: Path, level: Literal["ok", "warn", "fail"], text: str) -> None:
        self.findings.append(Finding(str(path), level, text))

    def attempt(self, path: Path, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except CheckpointError as error:
            self.note(path, "fail", str(error))
        except KeyError as error:
            self.note(path, "fail", f"{path} lacks {error}; copy the released file")
        except (ValueError, TypeError, AttributeError) as error:
            self.note(path, "fail", f"{path}: {error}; copy the released file")
        return None

    def dit_sources(self) -> dict[str, Source] | None:
        """The index followed, never the folder's listing."""
        index = self.folder / INDEX
        weight_map = self.attempt(index, lambda: dict(read_json(index)["weight_map"]))
        if weight_map is None:
            return None
        shards, failed = {}, False
        for name in sorted({str(shard) for shard in weight_map.values()}):
            path = self.folder / name
            if path.name != name:
                self.note(index, "fail", f"{index} points outside its folder ({name}); copy the released file")
                return None
            shards[name] = self.attempt(path, lambda path=path: entries_of(path))
            failed = failed or shards[name] is None
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in shards:
                self.note(path, "fail", f"{path} is not in {INDEX}; remove it, or copy the index that belongs to it")
                failed = True
        for key, name in weight_map.items():
            if shards[name] is not None and key not in shards[name]:
                self.note(index, "fail", f"{index} places {key} in {name}, which lacks it; copy the index again")
                return None
        for name, entries in shards.items():
            extra = sorted(key for key in entries or () if weight_map.get(key) != name)
            if extra:
                path = self.folder / name
                self.note(path, "fail", f"{path} holds {extra[0]}, which {INDEX} does not place there; copy both again")
                return None
        if failed:
            return None
        return self.attempt(index, lambda: self._with_scales(weight_map, shards))

    def _with_scales(self, weight_map: Mapping[str, str], shards: Mapping[str, Any]) -> dict[str, Source]:
        """Every tensor of the shards, scales with the weights that they belong to."""
        rounded = {key for key, name in weight_map.items() if shards[name][key].dtype == ROUNDED}
        sources = {}
        for key, name in weight_map.items():
            path, entry, scale = self.folder / name, shards[name][key], None
            if key.removesuffix(SCALE) in rounded - {key}:
                continue
            if key in rounded:
                scale, found = key + SCALE, shards[name].get(key + SCALE)
                wanted = Entry((entry.shape[0], 1), "F32")
                if found != wanted:
                    is_now = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                    raise CheckpointError(f"{scale} in {path} is {is_now}, not F32 {list(wanted.shape)}; convert again")
            sources[key] = Source(path, key, entry, scale)
        return sources

    def renamed(self, path: Path, rename: Callable[[str], str | None], strict: bool) -> dict[str, Source] | None:
        """A single file's tensors under our names; unknown ones are an error, or with `strict` off left out."""

        def work() -> dict[str, Source]:
            sources: dict[str, Source] = {}
            for key, entry in entries_of(path).items():
                name = rename(key)
                if name is None and strict:
                    raise CheckpointError(f"{path} has the unknown tensor {key}; copy the released file")
                if name is not None:
                    sources[name] = Source(path, key, entry)
            return sources

        return self.attempt(path, work)

    def speech_config(self) -> XLSRAudioConfig | None:
        path, front = self.folder / SPEECH / CONFIG, self.folder / SPEECH / "preprocessor_config.json"

        def check_front() -> bool:
            values = read_json(front)
            for name, wanted in (("sampling_rate", 16_000), ("do_normalize", True)):
                if values.get(name) != wanted:
                    raise CheckpointError(f"{front} has {name} {values.get(name)!r}; only {wanted!r} is supported")
            return True

        fine = self.attempt(front, check_front)
        config = self.attempt(path, lambda: XLSRAudioConfig.from_published(read_json(path)))
        return config if fine else None

    def tokenizer(self) -> None:
        from model.umt5 import load_tokenizer

        path = self.folder / TOKENIZER
        if self.attempt(path, lambda: load_tokenizer(path)) is not None:
            self.note(path, "ok", "the tokenizer can be read")

    def compare(self, part: str, sources: Mapping[str, Source], module: nn.Module, path: Path) -> bool:
        """Names and shapes of one part against its module."""
        wanted = wanted_of(part, module)
        linear = {f"{name}.weight" for name, m in module.named_modules() if part == "dit" and can_round(name, m)}
        missing, extra = sorted(set(wanted) - set(sources)), sorted(set(sources) - set(wanted))
        if missing:
            text = f"{path} lacks {len(missing)} tensors of the {part}, first {missing[0]}; copy the released file"
            self.note(path, "fail", text)
        if extra:
            first = sources[extra[0]]
            text = f"{first.path} has {len(extra)} tensors too many, first {first.key}; check it against {CONFIG}"
            self.note(first.path, "fail", text)
        for name in sorted(set(wanted) & set(sources)):
            source, shape = sources[name], list(wanted[name].shape)
            if list(source.entry.shape) != shape:
                text = f"{source.key} in {source.path} is {list(source.entry.shape)}, not {shape}; check {CONFIG}"
                self.note(source.path, "fail", text)
                return False
            if source.entry.dtype not in STORED and not (source.scale and name in linear):
                text = f"{source.key} in {source.path} is {source.entry.dtype}; only F32, F16 and BF16 are supported"
                self.note(source.path, "fail", text)
                return False
        if not missing and not extra:
            rounded = sum(source.scale is not None for source in sources.values())
            text = f"{len(sources)} tensors of the {part} fit" + (f", {rounded} of them in fp8" if rounded else "")
            for file in sorted({source.path for source in sources.values()}):
                self.note(file, "ok", text)
        return not missing and not extra


def survey(folder: str | Path, adapter: str | Path | None = None) -> tuple[list[Finding], LoadPlan | None]:
    """Check a released folder, and an adapter, from headers alone.

    Args:
        folder: as released (see `docs/checkpoints.md`), or as `convert` writes it.
        adapter: LoRA file, or a folder that holds one.

    Returns:
        All findings, and a plan where none is a failure.
    """
    folder = Path(folder).expanduser()
    state = _Survey(folder)
    if not folder.is_dir():
        state.note(folder, "fail", f"checkpoint folder {folder} does not exist; name the folder of the released files")
        return state.findings, None
    text_path, vae_path, speech_path = folder / TEXT, folder / VAE, folder / SPEECH / "model.safetensors"
    speech = state.speech_config()
    layers = 25 if speech is None else speech.layers + 1
    values = state.attempt(folder / CONFIG, lambda: dict(read_json(folder / CONFIG)))
    dit = None
    if values is not None:
        state.merged = values.pop(MERGED, None)
        dit = state.attempt(folder / CONFIG, lambda: DiTConfig.from_published(values, audio_layers=layers))
    vae_entries = state.attempt(vae_path, lambda: entries_of(vae_path))
    text_entries = state.attempt(text_path, lambda: entries_of(text_path))
    vae = text = None
    if vae_entries is not None:
        vae = state.attempt(vae_path, lambda: wan_vae_sizes({k: e.shape for k, e in vae_entries.items()}))
    if text_entries is not None and dit is not None:
        shapes = {k: e.shape for k, e in text_entries.items()}
        text = state.attempt(text_path, lambda: umt5_sizes(shapes, max_len=dit.text_len))
    sources = {
        "dit": state.dit_sources(),
        "vae": vae and state.renamed(vae_path, lambda key: wan_vae_key(key, vae.residual_blocks), True),
        "audio": state.renamed(speech_path, lambda key: (own := xlsr_key(key)) and f"wav2vec2.{own}", False),
        "text": text and state.renamed(text_path, umt5_key, True),
    }
    state.tokenizer()
    config = None
    if None not in (dit, vae, speech, text):
        name = folder.resolve().name
        config = state.attempt(folder / CONFIG, lambda: published(dit, vae, speech, text, name=name))
    if config is None or None in sources.values():
        return state.findings, None
    return state.findings, _fit(state, config, sources, adapter)


def _fit(state: _Survey, config: ModelConfig, sources: dict[str, Any], adapter: str | Path | None) -> LoadPlan | None:
    with torch.device("meta"):
        modules = build_modules(config)
    paths = {"dit": INDEX, "vae": VAE, "audio": f"{SPEECH}/model.safetensors", "text": TEXT}
    for part, module in modules.items():
        state.compare(part, sources[part], module, state.folder / paths[part])
    plan, path = None, None
    if adapter is not None:
        path = _adapter_path(Path(adapter).expanduser())
        is_rounded = any(source.scale for source in sources["dit"].values())
        plan = state.attempt(
            path, lambda: _plan_adapter(path, wanted_of("dit", modules["dit"]), state.merged, is_rounded)
        )
        if plan is not None:
            text = f"{len(plan.pairs)} layers are adapted, {len(plan.plain)} tensors replaced, none is left over"
            state.note(path, "ok", text)
    if any(finding.level == "fail" for finding in state.findings):
        return None
    return LoadPlan(config, state.folder, sources, plan, path)


def wanted_of(part: str, module: nn.Module) -> dict[str, Tensor]:
    """A part's parameters by name, every tensor once."""
    wanted = module.state_dict()
    if part == "text":
        wanted.pop("encoder.embed_tokens.weight")  # a second name of the shared embedding
    return wanted


def _adapter_path(path: Path) -> Path:
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    return found[0] if len(found) == 1 else path


def _plan_adapter(path: Path, wanted: Mapping[str, Tensor], merged: Any, is_rounded: bool) -> AdapterPlan:
    if merged is not None:
        raise CheckpointError(f"the checkpoint already holds the adapter {merged}; load it without {path}")
    if is_rounded:
        raise CheckpointError(f"the checkpoint's layers are in fp8, which take no adapter; convert it with {path}")
    shapes = {name: entry.shape for name, entry in entries_of(path).items()}
    try:
        return plan_adapter({name: tuple(t.shape) for name, t in wanted.items()}, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def plan_released(folder: str | Path, adapter: str | Path | None = None) -> LoadPlan:
    """As `survey`, for callers that go on to load.

    Raises:
        CheckpointError: the first failure, one sentence naming file and key.
    """
    findings, plan = survey(folder, adapter)
    if plan is None:
        raise CheckpointError(next(finding.text for finding in findings if finding.level == "fail"))
    return plan

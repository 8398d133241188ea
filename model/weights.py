"""One file, one model: weights, configuration and metrics in a single safetensors file.

Names are `part.parameter` (`dit.blocks.0.…`). Vectors are stored in float32, matrices in float16, and linear layers
on request in int8 with one scale per output row (`….weight` beside `….weight.scale`); everything is float32 again
after loading. The metadata carries the configuration and the metrics as JSON. Loading is strict: a checkpoint that
does not fit exactly is refused with the file and the name at fault.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import ModelConfig, RunConfig
from model.disk_cache import cache_folder
from model.errors import CheckpointError
from model.fast import can_fp8, device_of
from model.published import RANDOM, early_config
from model.share import PARTS, WHOLE_SHARE, Share

FORMAT = "avatarcast-1"
_SCALE = ".scale"


def build_modules(config: ModelConfig, parts: Collection[str] = PARTS) -> dict[str, nn.Module]:
    """Untrained modules of a configuration, one per part, by the `kind` of each.

    Works under `torch.device("meta")` for the published kinds: they hold no buffers but what the files carry.
    """
    makers = {"dit": _dit, "vae": _vae, "audio": _audio, "text": _text}
    return {part: makers[part](config).eval().requires_grad_(False) for part in PARTS if part in parts}


def _dit(config: ModelConfig) -> nn.Module:
    from model.dit import DiT

    return DiT(config.dit)


def _vae(config: ModelConfig) -> nn.Module:
    v = config.vae
    if isinstance(v, WanVAEConfig):
        from model.wan_vae import WanVAE

        return WanVAE(v)
    from model.vae import LightVAE

    return LightVAE(
        z_dim=v.z_dim,
        stride=v.stride[1],
        encoder_widths=v.encoder_widths,
        decoder_widths=v.decoder_widths,
        decoder_blocks=v.decoder_blocks,
        small_widths=v.small_widths,
        small_blocks=v.small_blocks,
    )


def _audio(config: ModelConfig) -> nn.Module:
    a = config.audio
    if isinstance(a, XLSRAudioConfig):
        from model.xlsr import XLSREncoder

        return XLSREncoder(a, config.window, config.geometry.frames_per_block, config.fps)
    from model.audio import AudioEncoder, AudioSizes

    sizes = AudioSizes(
        conv_width=a.conv_width,
        dim=a.dim,
        layers=a.layers,
        heads=a.heads,
        position_kernel=a.position_kernel,
        position_groups=a.position_groups,
    )
    return AudioEncoder(sizes, config.window, config.geometry.frames_per_block)


def _text(config: ModelConfig) -> nn.Module:
    if isinstance(config.text, UMT5TextConfig):
        from model.umt5 import UMT5Text

        return UMT5Text(config.text)
    from model.text import HashTextEncoder

    return HashTextEncoder(config.text)


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] to int8 [out, in] and float32 scales [out], the largest value of a row becoming 127."""
    scale = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def save_checkpoint(
    path: str | Path,
    modules: Mapping[str, nn.Module],
    config: ModelConfig,
    metrics: Mapping[str, Any],
    int8: bool | Collection[str] = False,
) -> None:
    """Write a checkpoint.

    Args:
        path: file to write; replaced at once when complete.
        modules: one module per part, as `build_modules` makes them.
        config: the configuration they were built from.
        metrics: plain values that JSON can hold.
        int8: store linear layers in int8: of all parts, of the named parts, or of none.
    """
    narrow = PARTS if int8 is True else tuple(int8 or ())
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        linears = {f"{name}.weight" for name, m in modules[part].named_modules() if type(m) is nn.Linear}
        for name, value in modules[part].state_dict().items():
            key, value = f"{part}.{name}", value.detach().cpu()
            if part in narrow and name in linears:
                tensors[key], tensors[key + _SCALE] = quantise_rows(value)
            elif value.is_floating_point():
                tensors[key] = (value.half() if value.squeeze().dim() > 1 else value.float()).contiguous()
            else:
                tensors[key] = value.contiguous()
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict()), "metrics": json.dumps(dict(metrics))}
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)


def checkpoint_path(name: str) -> Path:
    """`tiny` and other bare names are files of this package; anything else is a path."""
    packaged = Path(__file__).parent / "checkpoints" / f"{name}.safetensors"
    is_bare = "/" not in name and "\\" not in name and not name.endswith(".safetensors")
    return packaged if is_bare and (packaged.is_file() or not Path(name).is_dir()) else Path(name).expanduser()


def load_weights(run: RunConfig, share: Share = WHOLE_SHARE) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """Modules of whatever `run.checkpoint` names: a file of this program, a released folder, or random weights.

    They come on the device that `run` names. There the large ones are bfloat16 from the start unless float32 was asked
    for; on a processor float32, so that timing can choose.

    Args:
        run: what to load and where to.
        share: which parts and layers of it.

    Returns:
        Configuration of the whole checkpoint, and the share's modules.

    Raises:
        CheckpointError: one sentence naming the file, and the key where one is at fault.
        ValueError: the device cannot serve.
    """
    device = device_of(run)
    text = "cpu" if run.text_device == "cpu" else device
    is_narrow = run.dtype == "bfloat16" or (device.type == "cuda" and run.dtype == "auto")
    dtype = torch.bfloat16 if is_narrow else torch.float32
    from model.adapter_files import adapter_file

    adapter = adapter_file(run.lora) if run.lora else None  # asks the hub, so before the libraries that must not
    if run.checkpoint.startswith(RANDOM):
        from model.forge import random_modules

        name = run.checkpoint.removeprefix(RANDOM)
        return random_modules(name, device=device, dtype=dtype, share=share, text_device=text)
    path = checkpoint_path(run.checkpoint)
    if path.is_dir():
        from model.released import load_released

        keep = can_fp8(device) and run.weights_dtype != "bf16" and dtype == torch.bfloat16
        return load_released(
            path,
            adapter=adapter,
            alpha=run.lora_alpha,
            device=device,
            dtype=dtype,
            share=share,
            keep_fp8=keep,
            text_device=text,
            cache=cache_folder(run.cache),
            cache_bytes=int(run.cache_gb * 1e9),
            defer_text=run.text_load == "needed",
        )
    config, modules = load_checkpoint(path, share)
    return config, {name: module.to(text if name == "text" else device) for name, module in modules.items()}


def read_config(run: RunConfig) -> ModelConfig:
    """Configuration of whatever `run.checkpoint` names, without its weights.

    Raises:
        CheckpointError: as `load_weights`.
    """
    path = checkpoint_path(run.checkpoint)
    if run.checkpoint.startswith(RANDOM) or path.is_dir():
        return early_config(run.checkpoint)
    return read_metadata(path)[0]


def read_metadata(path: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and metrics of a checkpoint, without its weights.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    with _opened(Path(path)) as file:
        return _metadata(Path(path), file.metadata())


def load_checkpoint(path: str | Path, share: Share = WHOLE_SHARE) -> tuple[ModelConfig, dict[str, nn.Module]]:
    """Read a checkpoint into float32 modules in evaluation mode.

    Raises:
        CheckpointError: one sentence naming the file, and the key where one is at fault.
    """
    path = Path(path)
    with _opened(path) as file:
        config, _ = _metadata(path, file.metadata())
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    modules = build_modules(config)
    for part, module in modules.items():
        own = module.state_dict()
        values = _part(path, part, stored, own)
        module.load_state_dict(values)
    leftover = sorted(key for key in stored if key.split(".")[0] not in PARTS)
    if leftover:
        raise CheckpointError(f"{path} has the unknown tensor {leftover[0]}; use a checkpoint made for this version")
    if share == WHOLE_SHARE:
        return config, modules
    own = build_modules(share.config(config), share.parts)
    for part, module in own.items():
        values, names = modules[part].state_dict(), share.names(part, module.state_dict(), config.dit)
        module.load_state_dict({here: values[whole] for whole, here in names.items()})
    return config, own


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; name an existing .safetensors file, or tiny")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is broken or cut short ({error}); copy it again") from error


def _metadata(path: Path, metadata: dict[str, str] | None) -> tuple[ModelConfig, dict[str, Any]]:
    metadata = metadata or {}
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise CheckpointError(f"{path} is not a checkpoint of this program (format {found}, not {FORMAT})")
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        return config, json.loads(metadata.get("metrics", "{}"))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the configuration in {path} cannot be read: {error}; export it again") from error


def _part(path: Path, part: str, stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One part's tensors in float32, checked name by name against the module's own."""
    prefix = part + "."
    there = {key.removeprefix(prefix) for key in stored if key.startswith(prefix)}
    scales = {name for name in there if name.endswith(_SCALE) and name.removesuffix(_SCALE) in own}
    missing, extra = sorted(set(own) - there), sorted(there - set(own) - scales)
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of its own configuration, first {prefix}{missing[0]}"
        )
    if extra:
        raise CheckpointError(f"{path} has {len(extra)} tensors too many, first {prefix}{extra[0]}")
    values = {}
    for name, wanted in own.items():
        value = stored[prefix + name]
        if value.shape != wanted.shape:
            raise CheckpointError(f"{prefix}{name} in {path} is {list(value.shape)}, not {list(wanted.shape)}")
        if value.dtype == torch.int8:
            scale = stored.get(prefix + name + _SCALE)
            if scale is None or scale.shape != value.shape[:1]:
                raise CheckpointError(f"{prefix}{name} in {path} is int8 without one scale per row; export it again")
            value = value.float() * scale.float()[:, None]
        elif value.is_floating_point():
            value = value.float()
            if not bool(value.isfinite().all()):
                raise CheckpointError(f"{prefix}{name} in {path} holds values that are not finite; export it again")
        values[name] = value
    return values

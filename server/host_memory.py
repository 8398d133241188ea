"""Whether this machine's own memory holds a model that is to run on the processor; asked before anything is loaded.

Without this a 14B model on a laptop would be read for minutes until the system kills the process without a word.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil

from model.config import RunConfig
from model.errors import ModelError
from model.memory import GB, Duty, Setting, need_of
from model.parallel import Plan
from model.published import early_config
from model.setting import setting_of
from server.errors import StartError


def check_host(run: RunConfig) -> None:
    """Refuse what cannot be held.

    Args:
        run: what is to be loaded on the processor. A checkpoint that cannot be read is left to its loader, which says
            what is wrong with it.

    Raises:
        StartError: one sentence with how much is needed at least, and the remedy.
    """
    try:
        setting, needed = _setting(run), least_bytes(run)
    except ModelError:
        return
    have = host_bytes()
    if needed > have:
        config = setting.config
        raise StartError(
            f"{config.name} at {config.width}x{config.height} needs at least {needed / GB:.1f} GB of main memory on a "
            f"processor, and this machine has {have / GB:.1f} GB; use a GPU ('avatarcast plan' says which), a smaller "
            "size, or a smaller checkpoint"
        )


def least_bytes(run: RunConfig) -> float:
    """Bytes that one session needs at least: weights, rings and condition in bf16.

    Raises:
        ModelError: the checkpoint cannot be read.
    """
    setting = _setting(run)
    layers = range(setting.config.dit.num_layers)
    rings = 1 if setting.is_clean else setting.steps
    need = need_of(setting, Plan(), Duty(layers=layers, rings=rings, leads=True, decodes=False))
    return need.weights + need.rolling_cache + need.condition_cache


def host_bytes(root: Path = Path("/")) -> float:
    """Main memory of this machine, or of this container where it has less.

    Args:
        root: where /sys lies; tests hand in another.
    """
    have = float(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (root / "sys/fs/cgroup" / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            have = min(have, float(limit))
    return have


def _setting(run: RunConfig) -> Setting:
    """Sizes as far as headers tell them."""
    if not Path(run.checkpoint).expanduser().is_dir():
        return setting_of(run)
    config = early_config(run.checkpoint)  # raises where the folder's texts are missing or wrong
    setting = setting_of(run)
    return replace(setting, config=replace(setting.config, name=config.name))

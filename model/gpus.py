"""Which cards there are or shall be: what they hold, and what they do against the one that was measured. No torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from model.errors import UnsupportedError

USABLE = 0.923
"""Share of a card's nominal memory that a process can have."""
_MEBI = 2**20
_MOST_CARDS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A class of cards; estimates, from data sheets but for the H200."""

    name: str
    compute: float
    """Dense matrix products, as a share of an H200's."""
    host_gb_s: float
    """From page-locked main memory."""
    peer_gb_s: float
    """Between cards of one machine."""
    fp8: bool = True
    """Multiplies in fp8 (compute capability 8.9 and newer)."""


H200 = Speed(name="H200", compute=1.0, host_gb_s=55, peer_gb_s=300)
_CLASSES = (
    ("B200", Speed(name="B200", compute=2.2, host_gb_s=55, peer_gb_s=600)),
    ("H200", H200),
    ("H100", Speed(name="H100", compute=0.97, host_gb_s=55, peer_gb_s=300)),
    ("A100", Speed(name="A100", compute=0.31, host_gb_s=25, peer_gb_s=200, fp8=False)),
    ("L40S", Speed(name="L40S", compute=0.36, host_gb_s=25, peer_gb_s=20)),
    ("RTX 6000 Ada", Speed(name="RTX 6000 Ada", compute=0.36, host_gb_s=25, peer_gb_s=20)),
    ("A6000", Speed(name="A6000", compute=0.15, host_gb_s=25, peer_gb_s=20, fp8=False)),
    ("5090", Speed(name="RTX 5090", compute=0.21, host_gb_s=50, peer_gb_s=30)),
    ("4090", Speed(name="RTX 4090", compute=0.17, host_gb_s=25, peer_gb_s=20)),
    ("3090", Speed(name="RTX 3090", compute=0.07, host_gb_s=25, peer_gb_s=20, fp8=False)),
)
_BY_SIZE = ((24, "4090"), (32, "5090"), (48, "L40S"), (100, "H100"), (150, "H200"))
"""What a card of at most so many GB is taken for, where only its size is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One card."""

    name: str
    usable: float
    """Bytes that can be had."""
    speed: Speed


def speed_of(name: str, nominal_gb: float) -> Speed:
    """Class of a card by its name, or else by its size."""
    classes = dict(_CLASSES)
    for word, speed in _CLASSES:
        if word in name:
            return speed
    return classes[next((word for most, word in _BY_SIZE if nominal_gb <= most), "B200")]


def parse_gpus(text: str) -> list[Gpu]:
    """`4x24GB`, or several groups joined by commas, as cards.

    Raises:
        UnsupportedError: it cannot be read.
    """
    cards: list[Gpu] = []
    for group in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*GB?\s*", group, re.IGNORECASE)
        count, size = (int(match[1] or 1), float(match[2])) if match else (0, 0.0)
        if not 1 <= count <= _MOST_CARDS or not 1 <= size <= 1000:
            raise UnsupportedError(f"gpus is {text!r}; write 4x24GB, 1x80GB,1x24GB, or auto for this machine's")
        speed = speed_of("", size)
        cards += [Gpu(name=f"{size:g} GB", usable=USABLE * size * 1e9, speed=speed)] * count
    if len(cards) > _MOST_CARDS:
        raise UnsupportedError(f"gpus is {text!r}, {len(cards)} cards; name at most {_MOST_CARDS}")
    return cards


def installed_gpus() -> list[Gpu]:
    """This machine's cards that this process may use, with what is free on them now; none where there is no driver."""
    return [
        Gpu(name=name.removeprefix("NVIDIA "), usable=free, speed=speed_of(name, total / 1e9))
        for name, total, free in _driver_says("memory.free")
    ]


def memory_used() -> dict[str, float]:
    """Bytes in use, by whatever process, on every card that this process may use, by PyTorch's name for it."""
    return {f"cuda:{number}": used for number, (_, _, used) in enumerate(_driver_says("memory.used"))}


def _driver_says(what: str) -> list[tuple[str, float, float]]:
    """Name, bytes in all and a figure in bytes of every card that this process may use."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu=index,uuid,name,memory.total,{what}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = {}
    for line in run.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 5 or not parts[3].isdecimal() or not parts[4].isdecimal():
            continue
        found[parts[0]] = found[parts[1]] = (parts[2], _MEBI * float(parts[3]), _MEBI * float(parts[4]))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [card for name, card in found.items() if name.isdecimal()]
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    return [found[name] for name in wanted if name in found]

"""`avatarcast bench encode`: what one H264 encoder costs, by picture size and x264 preset.

A portrait of the gallery that sways, as an avatar does, goes through the session's own encoder: conversion from RGB
included, one thread, no clock. Processor time is the thread's own, so what else runs on the machine disturbs little.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from model.portrait import decode_image, fit_portrait
from server.config import Config, EncodeConfig
from server.encoder import H264Encoder
from server.errors import ConfigError
from server.metrics import percentile
from server.pages import Gallery

SIZES = ((256, 256), (512, 512), (384, 704), (720, 1280))
PRESETS = ("ultrafast", "superfast", "veryfast")
FPS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeBench:
    """What `bench encode` is asked to do."""

    pictures: int = 100
    """Measured pictures of each size and preset, after the first."""

    def __post_init__(self) -> None:
        if not 10 <= self.pictures <= 10_000:
            raise ConfigError(f"--pictures is {self.pictures}; it must be 10 to 10000")


def run_encode(config: Config, bench: EncodeBench, *, as_json: bool) -> int:
    """Measure and print; the exit code."""
    rows = []
    print(f"{'size':>9}  {'preset':<10} {'core-ms':>8} {'p95':>6} {'kbit/s':>7} {'key frame':>10} {'others':>8}")
    for width, height in SIZES:
        pictures = swaying(width, height)
        for preset in PRESETS:
            row = measure(pictures, replace(config.encode, preset=preset), bench.pictures)
            rows.append(row)
            print(
                f"{row['size']:>9}  {preset:<10} {row['core_ms']:8.2f} {row['core_ms_p95']:6.2f} {row['kbps']:7.0f}"
                f" {row['keyframe_bytes']:8d} B {row['picture_bytes']:6d} B"
            )
    if as_json:
        print(json.dumps({"bitrate_kbps": config.encode.bitrate_kbps, "fps": FPS, "rows": rows}))
    return 0


def swaying(width: int, height: int, count: int = FPS) -> list[np.ndarray]:
    """One second of a portrait that sways by a few percent and comes back; [height, width, 3] uint8 each."""
    gallery = Gallery()
    portrait = decode_image(gallery.picture(gallery.default()))
    wide = Image.fromarray(fit_portrait(portrait, width * 11 // 10, height * 11 // 10))
    found = []
    for index in range(count):
        phase = 2 * np.pi * index / count
        left, top = 0.05 * width * (1 + np.sin(phase)), 0.05 * height * (1 + 0.5 * np.cos(phase))
        box = (left, top, min(left + width, wide.width), min(top + height, wide.height))
        found.append(np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR, box=box)))
    return found


def measure(pictures: list[np.ndarray], config: EncodeConfig, count: int) -> dict[str, object]:
    """Encode `count` pictures and one key frame before them.

    Returns:
        `core_ms` (median processor milliseconds a picture), its 95th percentile, the rate in kbit/s of all but the
        first, and mean sizes of key frames and other pictures in bytes.
    """
    height, width = pictures[0].shape[:2]
    encoder = H264Encoder(width=width, height=height, fps=FPS, config=config)
    keys, others, times = [encoder.encode(pictures[0], 0).size], [], []
    for index in range(1, count + 1):
        began = time.thread_time()
        packet = encoder.encode(pictures[index % len(pictures)], index)
        times.append(1000 * (time.thread_time() - began))
        (keys if packet.is_keyframe else others).append(packet.size)
    spent = sum(keys[1:]) + sum(others)
    return {
        "size": f"{width}x{height}",
        "preset": config.preset,
        "core_ms": round(percentile(times, 0.5), 2),
        "core_ms_p95": round(percentile(times, 0.95), 2),
        "kbps": round(8 * spent * FPS / count / 1000),
        "keyframe_bytes": round(sum(keys) / len(keys)),
        "picture_bytes": round(sum(others) / len(others)),
    }

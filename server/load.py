"""What one session costs on this machine, measured when the engine is ready; admission counts with it."""

from __future__ import annotations

import os

from model.interface import ModelInfo
from server.admission import Load
from server.config import EncodeConfig
from server.encoder import measure_encode_s


def measure_load(info: ModelInfo, encode: EncodeConfig) -> Load:
    """Time the encoder at the model's size; takes some tenths of a second, so call it off the loop.

    Args:
        info: of the model that is ready.
        encode: how pictures are encoded.
    """
    geometry = info.geometry
    encode_s = measure_encode_s(
        width=geometry.width,
        height=geometry.height,
        fps=geometry.fps,
        config=encode,
        pictures=geometry.frames_per_block,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    block_s = info.interval_s or info.block_s
    return Load(
        block_s=block_s,
        encode_s=encode_s,
        period_s=geometry.block_s,
        cores=cores,
        overlap=max(1.0, info.block_s / block_s) if block_s else 1.0,
    )

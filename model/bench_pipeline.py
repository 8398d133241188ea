"""The whole road of a block on one device: transformer and decoder together; part of `avatarcast bench dit`.

Blocks run one after the other with the decoder on a stream of its own, so that it fills what the transformer leaves of
the device, and the pictures' copy to the host runs beside both. Timed from the call until pictures lie on the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from model.bench_timing import Timer, quantile
from model.bench_vae import DecodedStream, random_wan_decoder
from model.component_config import WanVAEConfig
from model.fast import release
from model.pictures import HostPictures, to_pixels

PICTURES = 12
"""A block."""


class Blocks(Protocol):
    """A stream of latents; `model.bench_dit.Run`."""

    device: torch.device

    def block(self) -> Tensor: ...


class Decoding:
    """Latents to pictures on the host, beside whatever else the device does."""

    def __init__(
        self, cfg: WanVAEConfig, device: torch.device, height: int, width: int, is_tiled: bool = False
    ) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        decoder = random_wan_decoder(cfg, device, dtype)
        decoder.is_tiled = is_tiled
        self._decoded = DecodedStream(decoder, cfg, height, width)
        self._dtype = dtype

    def __call__(self, latents: Tensor) -> HostPictures:
        """Queue a block's decoding."""
        latents = latents.to(self._dtype)
        if self._stream is None:
            return HostPictures(to_pixels(self._decoded.block(latents)))
        self._stream.wait_stream(torch.cuda.current_stream())
        latents.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            return HostPictures(to_pixels(self._decoded.block(latents)))


def _delivered(blocks: Blocks, decode: Decoding, count: int) -> Iterator[float]:
    """Moments at which a block's pictures were there, the next block already under way."""
    waiting: HostPictures | None = None
    for _ in range(count):
        pictures = decode(blocks.block())
        if waiting is not None:
            waiting.wait()
            yield time.perf_counter()
        waiting = pictures
    assert waiting is not None
    waiting.wait()
    yield time.perf_counter()


def first_pictures_ms(blocks: Blocks, decode: Decoding) -> float:
    """From a stream's first block until its pictures are on the host."""
    timer = Timer(blocks.device)
    return 1000 * timer.seconds(lambda: decode(blocks.block()).wait())


def spread_of(blocks: Blocks, decode: Decoding, count: int) -> dict[str, float]:
    """Pictures a second over `count` blocks with rings already full, and how even the blocks come.

    Memory growth is what the allocator holds after the last block over what it held after the first.
    """
    on_gpu = blocks.device.type == "cuda"
    marks, held = [], []
    for moment in _delivered(blocks, decode, count + 2):
        marks.append(moment)
        held.append(torch.cuda.memory_allocated() if on_gpu else 0)
    times = [1000 * (b - a) for a, b in zip(marks[1:], marks[2:], strict=False)]
    figures = {
        "fps": round(1000 * PICTURES / statistics.fmean(times), 2),
        "block_ms_p50": round(statistics.median(times), 2),
        "block_ms_p99": round(quantile(times, 0.99), 2),
        "p99_over_p50": round(quantile(times, 0.99) / statistics.median(times), 3),
        "blocks": len(times),
        "growth_bytes": held[-2] - held[1],
    }
    release()
    return figures

"""From latents to what is shown: the decoder's memory, seams between blocks, 8-bit pictures in main memory.

Used by the generator in one process and by the decoding rank of a plan.

Letters: F latent frames, T pictures, H and W pixels, h and w latent rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import StreamConfig
from model.pictures import HostPictures, to_pixels
from model.seams import soften_seam
from model.vae import Still

WARMUP_LATENTS = 7
"""Latents after which a decoder's memory is that of the whole stream, or near enough."""


@dataclass(slots=True)
class ScreenState:
    """What one stream carries."""

    vae: Any
    """The decoder's memory, of the VAE's own kind."""
    last_picture: Tensor | None = None
    """[1, 3, 1, H, W] float32, what the next block leads in from."""


class Screen:
    """A VAE as streams need it.

    Args:
        vae: see `model.vae`; on its device.
        stream: seams.
        dtype: of the decoder.
    """

    def __init__(self, vae: nn.Module, stream: StreamConfig, dtype: torch.dtype) -> None:
        self.vae, self._stream, self._dtype = vae, stream, dtype

    def look_at(self, picture: np.ndarray, device: torch.device, past: np.ndarray | None = None) -> tuple[Still, float]:
        """What the VAE makes of a fitted portrait, and how well it reproduces it in dB.

        Args:
            picture: [H, W, 3] uint8.
            device: of the VAE.
            past: [z, F, h, w] latents that the stream goes on from, in place of those of a still video.
        """
        wanted = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
        still = self.vae.still(wanted)
        error = (still.shown.float().clamp(-1, 1) - wanted).square().mean().item() / 4
        return still if past is None else self._behind(still, past), -10 * math.log10(max(error, 1e-10))

    def _behind(self, still: Still, past: np.ndarray) -> Still:
        """The same portrait behind latents of its own stream; those of another size are passed over."""
        known = still.past
        latents = torch.from_numpy(np.ascontiguousarray(past))[None].to(known.device, known.dtype)
        if latents.shape[1] != known.shape[1] or latents.shape[3:] != known.shape[3:]:
            return still
        known = torch.cat([known, latents], 2)[:, :, -known.shape[2] :]
        state = self.vae.decode(known[:, :, -WARMUP_LATENTS:].to(self._dtype))[1]
        return replace(still, past=known, state=state)

    def show(self, latents: Tensor, state: ScreenState) -> HostPictures:
        """A block's latents [1, z, F, h, w] as pictures on their way to main memory; `state` moves on."""
        video, state.vae = self.vae.decode(latents.to(self._dtype), state.vae)
        seam = self._stream
        video, state.last_picture = soften_seam(
            video.float(), state.last_picture, seam.seam_frames, seam.seam_threshold
        )
        return HostPictures(to_pixels(video))

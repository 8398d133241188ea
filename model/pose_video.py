"""A pose video as the transformer's pose condition: pictures in, latents out, block by block.

As published, every clip is encoded for itself, with its first picture twice in front and the first latent dropped, so
that twelve pictures become three latents. Encoding goes on from block to block within the clip, which gives the same
latents as the whole clip at once; nothing else is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.geometry import Geometry
from model.speakers import Fit


class PoseVideo:
    """One session's pose video.

    Args:
        vae: the video VAE.
        fit: how a picture is brought to the stream's size, as for the portrait.
        geometry: of the stream.
        device: of the VAE.
    """

    def __init__(self, vae: nn.Module, fit: Fit, geometry: Geometry, device: torch.device) -> None:
        self._vae, self._fit, self._geometry, self._device = vae, fit, geometry, device
        self._clip = -1
        self._memory: Any = None

    def block(self, block: int, pictures: np.ndarray | None) -> Tensor:
        """Pose latents of one block, [1, z, F, h, w].

        Args:
            block: index on the session's clock; blocks come in rising order.
            pictures: [frames_per_block, height, width, 3] uint8 RGB, any size; None is black, as after the end.
        """
        geometry = self._geometry
        width, height = geometry.width, geometry.height
        if pictures is None:
            fitted = np.zeros((geometry.frames_per_block, height, width, 3), np.uint8)
        else:
            fitted = np.stack([self._fit(picture, width, height) for picture in pictures])
        video = torch.from_numpy(fitted).to(self._device).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        clip = block // geometry.blocks_per_clip
        begins = clip != self._clip
        if begins:
            self._clip, self._memory = clip, None
            video = torch.cat([video[:, :, :1], video], 2)
        latents, self._memory = self._vae.encode(video, self._memory)
        return latents[:, :, 1:] if begins else latents

"""From decoded video to 8-bit pictures in main memory.

Pixels are rounded where they were decoded; on a GPU the copy goes to page-locked memory, beside whatever the device
does next, and only who reads the pictures waits for it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_pixels(video: Tensor) -> Tensor:
    """Video [1, 3, T, H, W], about -1..1, to [T, H, W, 3] uint8 RGB, contiguous, on its device."""
    pixels = video[0].permute(1, 2, 3, 0).float().mul(127.5).add_(128).clamp_(0, 255)
    return pixels.to(torch.uint8, memory_format=torch.contiguous_format)


class HostPictures:
    """Pictures, or another tensor, on their way to main memory."""

    def __init__(self, pixels: Tensor) -> None:
        """
        Args:
            pixels: [T, H, W, 3] uint8, not changed any more; the copy is queued behind what the device's current
                stream has to do.
        """
        self._pixels, self._copied = pixels, None
        if pixels.is_cuda:
            self._pixels = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            self._pixels.copy_(pixels, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> np.ndarray:
        """[T, H, W, 3] uint8, or what was given, once the copy is there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._pixels.numpy()


def to_pictures(video: Tensor) -> np.ndarray:
    """Video [1, 3, T, H, W], about -1..1, to [T, H, W, 3] uint8 RGB in main memory."""
    return HostPictures(to_pixels(video)).wait()

"""Takes the small jump out of block boundaries, as a video codec's deblocking filter does in space.

Two blocks agree on everything that sound, pose and portrait determine, but not on the last percent of texture and
colour. What differs little between the last picture of a block and the first of the next is such residue: it is kept
and faded out over some pictures. What differs much is motion (lips, lids) and stays untouched.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTH = 0.75
"""Share of a small difference that is taken out of the first picture."""


def soften_seam(video: Tensor, last: Tensor | None, frames: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Lead a block in from the picture before it.

    Args:
        video: [B, 3, T, H, W], about -1..1; changed in place.
        last: [B, 3, 1, H, W] last picture of the block before; None at the start of a stream.
        frames: pictures over which a difference fades; 0 leaves the video as it is.
        threshold: differences well below this share of the full range are residue, well above it motion.

    Returns:
        The video, and its last picture for the next block.
    """
    if frames and last is not None:
        count = min(frames, video.shape[2])
        difference = last - video[:, :, :1]
        size = difference.abs().amax(1, keepdim=True) / (2 * threshold)
        residue = difference * torch.exp(-(size**2)) * STRENGTH
        for picture in range(count):
            video[:, :, picture].add_(residue[:, :, 0], alpha=1 - picture / frames)
    return video, video[:, :, -1:].clone()

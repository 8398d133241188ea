"""What a picture is like as a portrait: size, sharpness, exposure, evenness of light, shape.

Measured on the square that a film shows, scaled to 256 pixels, so that figures do not depend on the resolution. No face
is looked for: the middle of that square is where a portrait's face is. PIL and numpy only, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.portrait import fit_portrait

SIDE_PX = 256
FACE = slice(SIDE_PX // 5, SIDE_PX - SIDE_PX // 5)
"""Rows and columns of the middle, where the face is."""
_LUMA = np.array([0.299, 0.587, 0.114])
_EDGE_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class PortraitQuality:
    """Figures of one picture."""

    width_px: int
    height_px: int
    sharpness: float
    """Steepest change of brightness over two pixels (of 256 across), levels of 255: mean of the strongest 2 %."""
    brightness: float
    """Mean of the middle, levels of 255."""
    lost_percent: float
    """Of the middle: so dark or so bright that nothing can be told apart."""
    unevenness_stops: float
    """Brightness of the middle's left half against its right half; a stop is a factor of two in light."""
    aspect: float
    """Longer side over shorter side."""


def measure_portrait(image: np.ndarray) -> PortraitQuality:
    """Measure a picture.

    Args:
        image: [height, width, 3] uint8 RGB.

    Raises:
        PortraitError: the array is no such picture.
    """
    height, width = image.shape[:2]
    luma = fit_portrait(image, SIDE_PX, SIDE_PX) @ _LUMA  # [256, 256], 0..255
    face = luma[FACE, FACE]
    light = np.square(face / 255) + 1e-4  # roughly linear, as light is
    half = light.shape[1] // 2
    return PortraitQuality(
        width_px=width,
        height_px=height,
        sharpness=_sharpness(luma),
        brightness=float(face.mean()),
        lost_percent=100 * float(((face < 8) | (face > 250)).mean()),
        unevenness_stops=abs(float(np.log2(light[:, :half].mean() / light[:, half:].mean()))),
        aspect=max(width, height) / min(width, height),
    )


def _sharpness(luma: np.ndarray) -> float:
    down, across = np.abs(luma[2:, 1:-1] - luma[:-2, 1:-1]), np.abs(luma[1:-1, 2:] - luma[1:-1, :-2])
    inner = slice(SIDE_PX // 8, -SIDE_PX // 8)
    steep = np.sort(np.maximum(down, across)[inner, inner].ravel())
    return float(steep[-round(_EDGE_SHARE * len(steep)) :].mean())

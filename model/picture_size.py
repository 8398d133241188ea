"""Picture sizes the published way: an area chooses the size, the picture's shape the aspect. No torch.

Sides are multiples of 64 and the area is never exceeded; pictures are not enlarged but by that rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

DIVISOR = 64


def size_within_area(height: int, width: int, area: int, divisor: int = DIVISOR) -> tuple[int, int]:
    """The largest output size of a picture within an area.

    Args:
        height, width: of the picture, in pixels.
        area: largest number of output pixels.

    Returns:
        Height and width, multiples of `divisor`.

    Raises:
        ValueError: the area is smaller than one cell.
    """
    if area < divisor * divisor:
        raise ValueError(f"the area is {area} pixels; it must hold at least one cell of {divisor}x{divisor}")
    pixels, sides = height * width, height + width
    if pixels <= area:
        low, high = 0.1, 1.0
    else:
        slack = divisor - 1
        high = math.sqrt(area / pixels)
        low = (-slack * sides + math.sqrt((slack * sides) ** 2 - 2 * pixels * (slack**2 - area))) / (2 * pixels)
    for i in range(100):
        scale = high - (high - low) * i / 100
        out = tuple(-(-int(side * scale) // divisor) * divisor for side in (height, width))
        if 0 < out[0] * out[1] <= area:
            return out
    aspect = width / height
    rows = min(int(math.sqrt(area / aspect)), height)
    columns = min(int(math.sqrt(area * aspect)), width)
    return max(rows // divisor, 1) * divisor, max(columns // divisor, 1) * divisor


class ShortSideFit(NamedTuple):
    """How the published pipelines place a picture: short sides are matched, the rest is cropped or left black."""

    height: int
    """Of the resized picture."""
    width: int
    """Of the resized picture."""
    pad: tuple[int, int, int, int]
    """Black pixels left, top, right, bottom."""
    top: int
    """First row kept, after padding."""
    left: int
    """First column kept, after padding."""


def short_side_fit(height: int, width: int, out_height: int, out_width: int) -> ShortSideFit:
    """Place a picture for parity with the published pipelines; live streams cover instead (`model.portrait`)."""
    short = min(out_height, out_width)
    rows, columns = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    missing_x, missing_y = max(out_width - columns, 0), max(out_height - rows, 0)
    pad = (missing_x // 2, missing_y // 2, (missing_x + 1) // 2, (missing_y + 1) // 2)
    top = round((rows + missing_y - out_height) / 2)
    left = round((columns + missing_x - out_width) / 2)
    return ShortSideFit(rows, columns, pad, top, left)

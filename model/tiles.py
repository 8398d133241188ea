"""A picture in four tiles, decoded one after the other: a quarter of the room for what is between, the same pictures.

A tile is cut with a rim of its neighbours' rows and columns. What a convolution gets wrong at a cut, for want of what
lies behind it, reaches one pixel further with every convolution; the rim is as wide as it gets by the end, and is
dropped. So the result is that of the whole picture, whatever the weights, which blending tiles would not give.

Letters: B batch, T frames, H and W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Rows, or columns, of a tile."""

    start: int
    stop: int
    """With the rim."""
    kept_start: int
    kept_stop: int
    """Without."""
    total: int
    """Of the picture."""

    def cut(self, scale: int) -> slice:
        """With the rim, where the picture has `scale` times as many rows."""
        return slice(self.start * scale, self.stop * scale)

    def kept(self, scale: int) -> slice:
        """Without the rim, in the picture."""
        return slice(self.kept_start * scale, self.kept_stop * scale)

    def inner(self, scale: int) -> slice:
        """Without the rim, in the tile."""
        return slice((self.kept_start - self.start) * scale, (self.kept_stop - self.start) * scale)


@dataclass(frozen=True, slots=True)
class Tile:
    """One of them, in rows and columns of what is cut; what is made of it may be finer by a whole factor."""

    rows: Span
    columns: Span

    def of(self, whole: Tensor | None) -> Tensor | None:
        """Its part of a picture [B, T, H, W, C], rim included."""
        if whole is None:
            return None
        scale = whole.shape[2] // self.rows.total
        return whole[:, :, self.rows.cut(scale), self.columns.cut(scale)]

    def into(self, whole: Tensor | None, part: Tensor | None) -> Tensor | None:
        """Put a tile's result, without its rim, in its place; the picture is made where there is none yet."""
        if part is None:
            return None
        scale = part.shape[2] // (self.rows.stop - self.rows.start)
        if whole is None:
            size = self.rows.total * scale, self.columns.total * scale
            whole = part.new_empty(*part.shape[:2], *size, part.shape[4])
        inner = part[:, :, self.rows.inner(scale), self.columns.inner(scale)]
        whole[:, :, self.rows.kept(scale), self.columns.kept(scale)] = inner
        return whole


def tiles(height: int, width: int, rim: int) -> Iterator[Tile]:
    """Two by two tiles of a picture of so many rows and columns."""
    for rows in _halves(height, rim):
        for columns in _halves(width, rim):
            yield Tile(rows, columns)


def _halves(total: int, rim: int) -> tuple[Span, ...]:
    middle = total // 2
    if middle == 0:
        return (Span(0, total, 0, total, total),)
    first = Span(0, min(total, middle + rim), 0, middle, total)
    return first, Span(max(0, middle - rim), total, middle, total, total)

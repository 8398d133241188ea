"""A plan's memory as a picture: a bar per device, a colour per kind of content, the card's limit as a line."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from model.memory import GB
from model.planner import Layout
from server.planning import devices_of

_PARTS = (
    ("weights", "#4C78A8"),
    ("rolling_cache", "#F58518"),
    ("condition_cache", "#E45756"),
    ("activations", "#72B7B2"),
    ("vae", "#54A24B"),
    ("reserve", "#BAB0AC"),
)
_LABELS = ("weights", "rings of keys", "condition", "activations", "VAE", "reserve")
_LEFT, _RIGHT, _TOP, _ROW, _BAR = 190, 170, 110, 54, 34
_WIDTH = 1200
_INK, _PALE = "#222222", "#888888"


def draw(layout: Layout, path: Path, heading: str) -> None:
    """Write the chart as PNG.

    Args:
        layout: what is drawn, one row a device.
        path: the file.
        heading: stands above.
    """
    rows = devices_of(layout)
    limits = [gpu.usable / GB for gpu in layout.gpus]
    scale = (_WIDTH - _LEFT - _RIGHT) / (1.05 * max(*limits, *(row["total_gb"] for row in rows)))
    picture = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(rows) + 70), "white")
    pen = ImageDraw.Draw(picture)
    plain, small, large = (ImageFont.load_default(size) for size in (17, 14, 22))
    pen.text((24, 18), heading, _INK, large)
    _legend(pen, small)
    bottom = _TOP + _ROW * len(rows)
    _axis(pen, small, scale, bottom)
    for index, (row, limit) in enumerate(zip(rows, limits, strict=True)):
        top, x = _TOP + _ROW * index + (_ROW - _BAR) // 2, float(_LEFT)
        duty = layout.duties[index]
        held = f"layers {duty.layers.start}-{duty.layers.stop - 1}" if len(duty.layers) else "decoder"
        pen.text((24, top - 2), row["name"], _INK, plain)
        pen.text((24, top + 18), held, _PALE, small)
        for name, colour in _PARTS:
            wide = row[f"{name}_gb"] * scale
            pen.rectangle((x, top, x + wide, top + _BAR), fill=colour)
            text = f"{row[f'{name}_gb']:.1f}"
            if wide > pen.textlength(text, small) + 8:
                pen.text((x + wide / 2, top + _BAR / 2), text, "white", small, anchor="mm")
            x += wide
        at = _LEFT + limit * scale
        pen.line((at, top - 6, at, top + _BAR + 6), fill="#B00020", width=3)
        free = row["free_gb"]
        words = f"{free:.1f} GB free" if free >= 0 else f"lacks {-free:.1f} GB"
        pen.text((max(at, x) + 12, top + _BAR / 2), words, _INK if free >= 0 else "#B00020", plain, anchor="lm")
    picture.save(path)


def _legend(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    x = 24.0
    for (_, colour), label in zip(_PARTS, _LABELS, strict=True):
        pen.rectangle((x, 62, x + 16, 78), fill=colour)
        pen.text((x + 22, 70), label, _INK, font, anchor="lm")
        x += 46 + pen.textlength(label, font)
    pen.line((x + 6, 60, x + 6, 80), fill="#B00020", width=3)
    pen.text((x + 16, 70), "what the card has", _INK, font, anchor="lm")


def _axis(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, scale: float, bottom: float
) -> None:
    """Marks at round numbers of GB, about eight of them."""
    most = (_WIDTH - _LEFT - _RIGHT) / scale
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200) if most / s <= 9)
    for mark in range(0, int(most) + 1, step):
        x = _LEFT + mark * scale
        pen.line((x, _TOP - 4, x, bottom + 4), fill="#E4E4E4")
        pen.text((x, bottom + 8), f"{mark} GB", _PALE, font, anchor="ma")

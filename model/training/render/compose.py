"""The renderer: layers from back to front, eager or compiled layer by layer.

`render` is pure and deterministic: the same tables give the same picture bit for bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.training.render import body, eyes, hair, head, mouth
from model.training.render.frame import Table, picture_view, spread

MOTION = (
    "jaw", "open", "width", "round", "press", "ftuck", "teeth", "tongue", "smile", "blink",
    "gaze_x", "gaze_y", "brow", "brow_tilt", "yaw", "pitch", "roll", "tx", "ty", "breath",
)  # fmt: skip
"""Names of the motion values, each [n] float: shares 0..1 (width, smile, gaze, brows -1..1), angles in radians
(yaw +-0.35, pitch +-0.2, roll +-0.15), shifts in picture units (+-0.06), breath -1..1."""

Renderer = Callable[[Table, Table, int], tuple[Tensor, dict[str, Tensor]]]
_OVER_PICTURE = (
    hair.bun, body.hood_back, body.neck, body.clothes, head.ears, head.skin, head.nose,
)  # fmt: skip
_OVER_EYES = (eyes.brows, hair.beard)
_OVER_MOUTH = (eyes.glasses, hair.hair_front, hair.hair_locks)


def neutral(n: int, device: torch.device | str = "cpu") -> Table:
    """Motion of `n` still faces: mouth closed, eyes open, looking at the camera."""
    return {name: torch.zeros(n, device=device) for name in MOTION}


def take(identity: Table, index: Tensor | int | slice) -> Table:
    """Rows of a table; an int keeps the batch dimension."""
    if isinstance(index, int):
        index = slice(index, index + 1) if index != -1 else slice(-1, None)
    return {name: value[index] for name, value in identity.items()}


def concat(identities: list[Table]) -> Table:
    """One table with the rows of all."""
    return {name: torch.cat([table[name] for table in identities]) for name in identities[0]}


def render(identity: Table, motion: Table, size: int = 256, wrap: Callable | None = None):
    """Draw one picture a row.

    Args:
        identity: table of [n] and [n, 3] tensors, from `sample_identity`.
        motion: MOTION name to [n].
        size: side of the square picture in pixels, 32 or more.
        wrap: applied to every layer function (used by `compiled`).

    Returns:
        The pictures [n, 3, size, size] float32 in 0..1, and what is known of them: `mouth_xy` [n, 2] and `eyes`
        [n, 2, 2] (picture's left eye first) as x, y in -1..1; `aperture` [n], the opening's height in head units.
    """
    do = wrap or (lambda layer: layer)
    i, m = spread(identity), spread(motion)
    v = do(picture_view)(size, i, m)
    eye_xy, mouth_xy = eyes.eye_centers(i, m), mouth.mouth_center(i, m)
    img = do(body.background)(v, i)
    img = do(hair.hair_back)(img, v, i, m)
    for layer in _OVER_PICTURE:
        img = do(layer)(img, v, i, m)
    img = do(eyes.eyes)(img, eye_xy, i, m)
    for layer in _OVER_EYES:
        img = do(layer)(img, v, i, m)
    img = do(mouth.mouth)(img, mouth_xy, i, m)
    for layer in _OVER_MOUTH:
        img = do(layer)(img, v, i, m)
    return img.clamp(0, 1), {"mouth_xy": mouth_xy, "eyes": eye_xy, "aperture": mouth.aperture(i, m)}


_COMPILED: dict[Callable, Callable] = {}


def compiled(**options) -> Renderer:
    """`render` with every layer compiled on its own (small graphs compile fast); options go to `torch.compile`."""

    def wrap(layer: Callable) -> Callable:
        if layer not in _COMPILED:
            _COMPILED[layer] = torch.compile(layer, dynamic=False, **options)
        return _COMPILED[layer]

    return lambda identity, motion, size: render(identity, motion, size, wrap)


@torch.no_grad()
def render_frames(
    identity: Table, motion: Table, size: int, batch: int = 64, renderer: Renderer | None = None
) -> tuple[Tensor, Tensor]:
    """Draw many pictures in batches of one fixed size (so a compiled renderer compiles once).

    Returns:
        Pictures [n, 3, size, size] uint8 and mouth centres [n, 2] in pixels (x, y).
    """
    n, device = identity["skin"].shape[0], identity["skin"].device
    pictures, mouths = [], []
    for start in range(0, n, batch):
        rows = torch.arange(start, start + batch, device=device).clamp(max=n - 1)
        img, aux = (renderer or render)(take(identity, rows), take(motion, rows), size)
        keep = min(batch, n - start)
        pictures.append((img[:keep] * 255).round().to(torch.uint8))
        mouths.append((aux["mouth_xy"][:keep] + 1) / 2 * size)
    return torch.cat(pictures), torch.cat(mouths)

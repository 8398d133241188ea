"""Contact sheets: people, mouths and poses side by side, for a critical eye after every change to the renderer."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from model.training import speech
from model.training.render.compose import concat, neutral, render, take
from model.training.render.frame import Table
from model.training.render.heroes import heroes
from model.training.render.identity import sample_identity

GAP = 3
"""White pixels between pictures."""
POSES = (
    {"yaw": -0.35}, {"yaw": -0.18}, {"yaw": 0.18}, {"yaw": 0.35}, {"roll": 0.15}, {"roll": -0.15, "ty": -0.05},
    {"pitch": -0.2}, {"pitch": 0.2}, {"gaze_x": 0.7}, {"gaze_y": -0.5}, {"blink": 0.5}, {"blink": 1.0},
    {"smile": 0.8}, {"smile": -0.5, "brow_tilt": 0.6}, {"brow": 0.9}, {"brow": -0.6, "brow_tilt": -0.6},
    {"open": 0.8, "jaw": 0.8, "yaw": 0.3}, {"round": 1.0, "open": 0.3, "pitch": -0.15},
)  # fmt: skip


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures [n, 3, S, S] in rows of `columns`."""
    n, _, size, _ = pictures.shape
    rows = -(-n // columns)
    out = torch.ones(3, rows * (size + GAP) + GAP, columns * (size + GAP) + GAP)
    for k in range(n):
        y, x = (GAP + (size + GAP) * part for part in divmod(k, columns))
        out[:, y : y + size, x : x + size] = pictures[k]
    return Image.fromarray((out * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


@torch.no_grad()
def people(count: int = 24, seed: int = 1, size: int = 160) -> Image.Image:
    """Random people at rest."""
    table = sample_identity(count, torch.Generator().manual_seed(seed))
    return sheet(render(table, neutral(count), size)[0], 6)


@torch.no_grad()
def gallery(size: int = 160) -> Image.Image:
    """The gallery's people at rest."""
    table = heroes()
    return sheet(render(table, neutral(len(table["scale"])), size)[0], 6)


@torch.no_grad()
def mouths(who: Table, size: int = 160) -> Image.Image:
    """Every viseme class in the order of `speech.NAMES` on each person of `who`."""
    pictures = []
    for row in range(len(who["scale"])):
        motion = neutral(len(speech.NAMES))
        for k, target in enumerate(speech.VISEMES.values()):
            for name, value in zip(speech.PARAMS, target, strict=True):
                motion[name][k] = value
        table = concat([take(who, slice(row, row + 1))] * len(speech.NAMES))
        pictures.append(render(table, motion, size)[0])
    return sheet(torch.cat(pictures), 11)


@torch.no_grad()
def poses(who: Table, size: int = 160) -> Image.Image:
    """POSES on the first person of `who`."""
    motion = neutral(len(POSES))
    for k, pose in enumerate(POSES):
        for name, value in pose.items():
            motion[name][k] = value
    return sheet(render(concat([take(who, slice(0, 1))] * len(POSES)), motion, size)[0], 6)


def draw_sheets(folder: str | Path) -> None:
    """Write people.png, gallery.png, mouths.png and poses.png."""
    folder, who = Path(folder), heroes()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "people": people(),
        "gallery": gallery(),
        "mouths": mouths(take(who, torch.tensor([4, 5])), 128),
        "poses": poses(take(who, torch.tensor([10]))),
    }
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    draw_sheets(Path(__file__).parents[3] / "docs" / "tiny")

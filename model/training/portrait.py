"""The portrait maker: `avatarcast portrait` draws people that the tiny checkpoint can animate, and the gallery.

Portraits come from the renderer that the checkpoint was trained on, so all of them are inside its domain.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.training.render import neutral, render
from model.training.render.frame import Table
from model.training.render.heroes import HEROES, heroes
from model.training.render.identity import sample_identity
from model.training.render.palette import NAMED

SIZES = (64, 1024)
"""Smallest and largest side of a portrait, pixels."""
OPTIONS = {
    "hair": "style",
    "hair_color": "hair",
    "skin": "skin",
    "beard": "beard",
    "clothes": "collar",
    "clothes_color": "cloth",
    "background": "background",
}
"""Options of `draw_portrait` that take a name, and the palette each takes it from."""
_SUPERSAMPLE = 2


def names(option: str) -> tuple[str, ...]:
    """The names that an option of OPTIONS takes."""
    return NAMED[OPTIONS[option]]


def draw_portrait(
    out: str | Path, seed: int = 0, *, size: int = 512, glasses: bool | None = None, **looks: str | None
) -> Path:
    """Draw one person and write a PNG file.

    Args:
        out: the file; its folder is made where it is missing.
        seed: chooses everything that is not asked for.
        size: side in pixels, 64 to 1024.
        glasses: with, without, or as the seed has it.
        looks: names for the options in OPTIONS; None leaves one to the seed.

    Returns:
        The file's path.

    Raises:
        ValueError: an option, a name or a size that does not exist; the text lists what does.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"out is {str(out)!r}; portraits are PNG files, name it {out.with_suffix('.png').name!r}")
    picture = portrait(seed, size=size, glasses=glasses, **looks)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(out, optimize=True)
    return out


def portrait(seed: int = 0, *, size: int = 512, glasses: bool | None = None, **looks: str | None) -> np.ndarray:
    """The picture of `draw_portrait`, [size, size, 3] uint8 RGB."""
    _check_size(size)
    choose = _choices(looks)
    if glasses is not None:
        choose["glasses"] = float(glasses)
    identity = sample_identity(1, torch.Generator().manual_seed(seed), choose=choose)
    return _pictures(identity, size)[0]


def _check_size(size: int) -> None:
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size is {size}; choose {SIZES[0]} to {SIZES[1]} pixels")


def _choices(looks: dict[str, str | None]) -> dict[str, float]:
    """Names to palette indices; who asks for a beard gets a man's brows and lips with it."""
    choose: dict[str, float] = {}
    for option, name in looks.items():
        if option not in OPTIONS:
            raise ValueError(f"{option} is no option of a portrait; there are {', '.join([*OPTIONS, 'glasses'])}")
        if name is None:
            continue
        if name not in names(option):
            raise ValueError(f"{option.replace('_', '-')} is {name!r}; choose one of {', '.join(names(option))}")
        choose[OPTIONS[option]] = names(option).index(name)
    if choose.get("beard"):
        choose["feminine"] = 0.0
    return choose


@torch.no_grad()
def _pictures(identity: Table, size: int) -> np.ndarray:
    """Faces at rest, looking at the camera, [n, size, size, 3] uint8; drawn larger and averaged down."""
    img, _ = render(identity, neutral(identity["skin"].shape[0]), size * _SUPERSAMPLE)
    img = torch.nn.functional.avg_pool2d(img, _SUPERSAMPLE)
    return (img * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_gallery(folder: str | Path, size: int = 512) -> list[Path]:
    """Write the gallery: one PNG file a hero, and index.json with `id`, `name` and `file` in the gallery's order."""
    _check_size(size)
    folder, table = Path(folder), heroes()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, hero in enumerate(HEROES):
        files.append(folder / f"{hero.id}.png")
        picture = _pictures({name: value[k : k + 1] for name, value in table.items()}, size)[0]
        Image.fromarray(picture).save(files[-1], optimize=True)
    index = [{"id": hero.id, "name": hero.name, "file": f"{hero.id}.png"} for hero in HEROES]
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    return files


def main(arguments: list[str]) -> int:
    """`avatarcast portrait`: returns the exit status, 2 for a wrong option."""
    parser = argparse.ArgumentParser(
        prog="avatarcast portrait",
        description="Draw a portrait inside the tiny checkpoint's domain.",
        epilog="What is not chosen follows from the seed.",
    )
    parser.add_argument("out", type=Path, nargs="?", help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0, help="another person for every number")
    for option in OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}", metavar="NAME", help=", ".join(names(option)))
    parser.add_argument("--glasses", action=argparse.BooleanOptionalAction, help="with or without")
    parser.add_argument("--size", type=int, default=512, help="side in pixels, %(default)s by default")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="write the whole gallery there instead")
    options = vars(parser.parse_args(arguments))
    out, folder = options.pop("out"), options.pop("gallery")
    if (out is None) == (folder is None):
        parser.error("name the PNG file to write, or a folder with --gallery")
    try:
        files = draw_gallery(folder, options["size"]) if folder else [draw_portrait(out, **options)]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(*files, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Files that `generate` is given besides the portrait: sounds and masks of several speakers (`a+b`), a pose video."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.interface import MOST_SPEAKERS
from model.portrait import MAX_SIDE_PX
from server.errors import ConfigError
from streaming.film import read_pictures

_SAME_SHAPE = 0.02
"""Masks whose aspect differs by less than this share of the portrait's are resized to it."""
_BLACK = (0, 0, 0, 255)


def split_files(flag: str, files: Path) -> tuple[Path, ...]:
    """`a.wav+b.wav` as two files; a file whose own name has a plus is one.

    Raises:
        ConfigError: one is not there.
    """
    parts = (files,) if files.is_file() else tuple(Path(part) for part in str(files).split("+"))
    for part in parts:
        if not part.is_file():
            raise ConfigError(f"--{flag} is {files}, but {part} is not a file; check the path")
    return parts


def split_sounds(files: Path) -> tuple[Path, ...]:
    """The sounds of `--audio`, one a speaker.

    Raises:
        ConfigError: one is not there, or there are too many.
    """
    if not files.is_file() and "+" not in str(files):
        raise ConfigError(f"--audio is {files}, which is not a file; check the path")
    sounds = split_files("audio", files)
    if len(sounds) > MOST_SPEAKERS:
        raise ConfigError(f"--audio names {len(sounds)} sounds; a picture has at most {MOST_SPEAKERS} speakers")
    return sounds


def split_masks(files: Path | None, sounds: Sequence[Path]) -> tuple[Path, ...]:
    """The masks of `--mask`, one for each of several sounds; none where no mask is named.

    Raises:
        ConfigError: one is not there, or they are not as many as the sounds.
    """
    if files is None:
        return ()
    masks = split_files("mask", files)
    if len(sounds) == 1:
        raise ConfigError("--mask is given, but --audio names one sound; masks tell several speakers apart")
    if len(masks) != len(sounds):
        raise ConfigError(f"--mask names {len(masks)} masks for {len(sounds)} sounds; give one for each, in one order")
    return masks


def read_masks(paths: Sequence[Path], portrait: np.ndarray) -> np.ndarray | None:
    """Masks as the model takes them; those of another size are resized with a notice.

    Args:
        paths: pictures, bright where the speaker's face is.
        portrait: [height, width, 3] uint8.

    Returns:
        [speakers, height, width] bool; None without paths.

    Raises:
        ConfigError: one cannot be read, has another shape than the portrait, or is empty.
    """
    if not paths:
        return None
    height, width = portrait.shape[:2]
    masks = []
    for path in paths:
        picture = _grey(path)
        if picture.size != (width, height):
            if abs(picture.width * height / (picture.height * width) - 1) > _SAME_SHAPE:
                raise ConfigError(
                    f"--mask {path} has {picture.width}x{picture.height} pixels and the portrait {width}x{height}; "
                    "draw it on the portrait itself"
                )
            print(
                f"--mask {path} is resized from {picture.width}x{picture.height} to {width}x{height}", file=sys.stderr
            )
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        mask = np.asarray(picture) > 127
        if not mask.any():
            raise ConfigError(f"--mask {path} is black all over; make it white where the speaker's face is")
        masks.append(mask)
    return np.stack(masks)


def check_pose_video(path: Path | None) -> None:
    """Look at the first picture of `--pose_video`, before a model is loaded for it.

    Raises:
        MediaFileError: it is not a video that can be read.
    """
    if path is not None:
        next(read_pictures(path, 25))


def _grey(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            if max(file.size) > MAX_SIDE_PX:
                raise ConfigError(
                    f"--mask {path} has {file.width}x{file.height} pixels; use at most {MAX_SIDE_PX} a side"
                )
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"--mask {path} is not a picture we can read; give a PNG, white on black") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, _BLACK), picture).convert("L")

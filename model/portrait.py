"""From the bytes of an uploaded picture to the portrait a stream shows: decoding with limits, then cover and crop.

Used by the model, which fits every portrait itself, and by the server, which shows the fitted picture while the model
still starts. PIL and numpy only, no torch.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from model.errors import PortraitError
from model.picture_size import short_side_fit

MAX_BYTES = 10 * 1024 * 1024
MAX_SIDE_PX = 4096
MIN_SIDE_PX = 64
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ANIMATED = ("PNG", "WEBP")  # a JPEG of several pictures (MPO, from phones) carries its main one first
_BACKGROUND = (255, 255, 255)


def decode_image(data: bytes) -> np.ndarray:
    """Decode an uploaded picture, upright, without its transparency.

    Size and kind are checked from the header, before any pixel is decoded.

    Args:
        data: the file: PNG, JPEG (RGB, grey or CMYK), WebP or BMP, at most MAX_BYTES, sides at most MAX_SIDE_PX.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        PortraitError: one sentence on what is wrong and what to send.
    """
    if not data:
        raise PortraitError("the image is empty; send a PNG, JPEG or WebP file")
    if len(data) > MAX_BYTES:
        megabytes = len(data) / 1024 / 1024
        raise PortraitError(f"the image has {megabytes:.1f} MiB; send one of at most {MAX_BYTES // 1024 // 1024} MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of large pictures and odd EXIF; both are judged here
        image = _open(data)
        _check_header(image)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(upright), dtype=np.uint8)
        except Exception as error:  # decoders raise anything on damaged files
            raise PortraitError("the image is damaged or cut short; save it again as PNG or JPEG") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PortraitError(f"the image is too large; its sides may have at most {MAX_SIDE_PX} pixels") from error
    except Exception as error:
        raise PortraitError("the file is not a picture we can read; send a PNG, JPEG or WebP file") from error


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE_PX:
        raise PortraitError(f"the image has {width}x{height} pixels; its sides may have at most {MAX_SIDE_PX}")
    if min(width, height) < MIN_SIDE_PX:
        raise PortraitError(f"the image has {width}x{height} pixels; its sides need at least {MIN_SIDE_PX}")
    if image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1:
        raise PortraitError("the image is animated; send a still picture")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a channel
        levels = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*_BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def fit_portrait(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale until the picture covers `width` x `height`, then crop the centre.

    Covering, unlike matching the short side, never leaves a black border.

    Args:
        image: [h, w, 3] uint8 RGB.

    Returns:
        [height, width, 3] uint8 RGB, a new array.

    Raises:
        PortraitError: if the array is no such picture.
    """
    _check_array(image)
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image.copy()
    scale = max(width / columns, height / rows)
    crop_w, crop_h = width / scale, height / scale
    left, top = (columns - crop_w) / 2, (rows - crop_h) / 2
    picture = Image.fromarray(np.ascontiguousarray(image))
    box = (left, top, left + crop_w, top + crop_h)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def fit_short_side(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Match the short sides, crop the centre, and leave black what is missing: as the published pipelines do.

    For parity only; `fit_portrait` never leaves a border.

    Args:
        image: [h, w, 3] uint8 RGB.

    Returns:
        [height, width, 3] uint8 RGB, a new array.

    Raises:
        PortraitError: if the array is no such picture.
    """
    _check_array(image)
    fit = short_side_fit(*image.shape[:2], height, width)
    picture = Image.fromarray(np.ascontiguousarray(image))
    resized = np.asarray(picture.resize((fit.width, fit.height), Image.Resampling.BILINEAR))
    left, top, right, bottom = fit.pad
    padded = np.pad(resized, ((top, bottom), (left, right), (0, 0)))
    return padded[fit.top : fit.top + height, fit.left : fit.left + width].copy()


def _check_array(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 1:
        form = f"{image.dtype} {'x'.join(map(str, image.shape))}"
        raise PortraitError(f"the portrait is {form}; it must be uint8, height x width x 3 (RGB)")

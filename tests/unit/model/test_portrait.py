"""Portraits: what is decoded, what is refused, and how a picture is fitted."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.errors import PortraitError
from model.portrait import MAX_BYTES, decode_image, fit_portrait


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width: int = 96, height: int = 80) -> Image.Image:
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


@pytest.mark.parametrize(("kind", "mean", "worst"), [("PNG", 0, 0), ("BMP", 0, 0), ("JPEG", 6, 24), ("WEBP", 6, 24)])
def test_still_pictures_are_decoded(kind, mean, worst):
    picture = gradient()
    decoded = decode_image(encoded(picture, kind, quality=95))
    assert decoded.shape == (80, 96, 3) and decoded.dtype == np.uint8
    off = np.abs(decoded.astype(int) - np.asarray(picture))
    assert off.mean() <= mean and off.max() <= worst


def test_exif_rotation_is_applied():
    picture = gradient(96, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    decoded = decode_image(encoded(picture, "PNG", exif=exif))
    assert decoded.shape == (96, 64, 3)
    assert np.array_equal(decoded, np.asarray(picture.transpose(Image.Transpose.ROTATE_270)))


def test_transparency_is_laid_on_white():
    picture = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    assert (decode_image(encoded(picture, "PNG")) == 255).all()
    palette = Image.new("P", (64, 64), 3)
    palette.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20, 30, 60, 90])
    assert (decode_image(encoded(palette, "PNG")) == (30, 60, 90)).all()
    assert (decode_image(encoded(palette, "PNG", transparency=3)) == 255).all()


def test_grey_sixteen_bit_and_cmyk_become_rgb():
    deep = Image.fromarray(np.full((64, 64), 128 * 257, np.uint16))
    assert (decode_image(encoded(deep, "PNG")) == 128).all()
    assert (decode_image(encoded(Image.new("L", (64, 64), 77), "PNG")) == 77).all()
    red = decode_image(encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red[..., 0].min() > 220 and red[..., 1:].max() < 60


def test_a_phone_jpeg_of_several_pictures_counts_as_its_first():
    first, second = Image.new("RGB", (64, 64), (10, 200, 10)), Image.new("RGB", (64, 64), (200, 10, 10))
    decoded = decode_image(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert decoded[..., 1].min() > 180


def refusal(data: bytes) -> str:
    with pytest.raises(PortraitError) as caught:
        decode_image(data)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 160
    return text


def test_animated_pictures_are_refused():
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (0, 250)]
    for kind in ("WEBP", "PNG"):
        assert "animated" in refusal(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert "not a picture" in refusal(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(999)])
def test_what_is_not_a_picture_is_refused(data):
    assert "send a PNG" in refusal(data)


def test_damaged_pictures_are_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(noise, kind)
        for share in (0.3, 0.6, 0.9):
            refusal(whole[: int(len(whole) * share)])


def test_any_mutation_is_decoded_or_refused_in_one_sentence():
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = np.frombuffer(encoded(gradient(64, 64), kind), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            where = rng.integers(0, len(whole), 4)
            broken[where] = rng.integers(0, 256, 4)
            try:
                assert decode_image(broken.tobytes()).ndim == 3
            except PortraitError as error:
                assert "\n" not in str(error)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_size_is_judged_from_the_header_alone():
    empty = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "4097x64" in refusal(png_header(4097, 64) + empty)
    assert "63x64" in refusal(png_header(63, 64) + empty)
    assert "4096" in refusal(png_header(50_000, 50_000) + empty)  # a decompression bomb
    assert "damaged" in refusal(png_header(4096, 4096) + empty)  # allowed size, no pixels


def test_bytes_are_counted_first():
    assert "10 MiB" in refusal(bytes(MAX_BYTES + 1))
    assert "not a picture" in refusal(bytes(MAX_BYTES))


@pytest.mark.parametrize("size", [(512, 256), (256, 512), (100, 64), (300, 301)])
def test_the_fitted_portrait_covers_and_keeps_the_centre(size):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 200
    side = min(width, height) // 4
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = (0, 255, 0)
    fitted = fit_portrait(image, 128, 128)
    assert fitted.shape == (128, 128, 3)
    green = fitted[..., 1] > 128
    assert abs(green.sum() - 32 * 32) < 150
    rows, columns = np.nonzero(green)
    assert abs(rows.mean() - 63.5) < 1 and abs(columns.mean() - 63.5) < 1
    assert fitted.reshape(-1, 3).max(1).min() > 100, "a border is black"


def test_fitting_again_changes_nothing_and_shares_nothing():
    once = fit_portrait(np.asarray(gradient()), 64, 96)
    again = fit_portrait(once, 64, 96)
    assert np.array_equal(once, again) and not np.shares_memory(once, again)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_arrays_that_are_no_rgb_picture_are_refused(shape):
    with pytest.raises(PortraitError, match="RGB"):
        fit_portrait(np.zeros(shape, np.uint8), 64, 64)
    with pytest.raises(PortraitError, match="float32"):
        fit_portrait(np.zeros((8, 8, 3), np.float32), 64, 64)

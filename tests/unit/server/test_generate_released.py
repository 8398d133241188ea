"""`avatarcast generate` from a folder in the released layout, with its adapter."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from model.forge import LORA, forge
from server.config import Config
from server.errors import ConfigError
from server.generate import FilmWish, run_generate


def wish(folder: Path, **changes: str) -> FilmWish:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / "face.png")
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(rng.normal(0, 3000, 8_000).astype("<i2").tobytes())
    return FilmWish(image=folder / "face.png", audio=folder / "voice.wav", out=folder / "film.mp4", **changes)


def test_a_forged_folder_makes_a_film(tmp_path: Path) -> None:
    forge(tmp_path / "mini", "mini")
    asked = wish(tmp_path, size="64x64", ckpt_dir=str(tmp_path / "mini"), lora=str(tmp_path / "mini" / LORA))
    assert run_generate(Config(), asked, as_json=True) == 0
    with av.open(str(asked.out)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(pictures) >= 12 and pictures[0].shape == (64, 64, 3) and pictures[-1].std() > 0


def test_an_adapter_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--lora is 'x' but checkpoint 'tiny' takes no adapter"):
        run_generate(Config(), wish(tmp_path, lora="x"), as_json=False)

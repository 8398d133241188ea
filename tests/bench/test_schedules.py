"""What fewer denoising steps cost on the shipped checkpoint: each schedule against the full one, same noise and sound.

Not part of the default suite. `pytest -m soak -s tests/bench/test_schedules.py` prints the table of
`docs/benchmarks.md`; PORTRAITS=12 takes the whole gallery.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.signal import resample_poly

import client_demo
from model.config import RunConfig
from model.generator import Generator
from model.interface import BlockRequest, SessionSpec
from model.profile import Profile
from model.weights import load_weights
from tests.e2e.serving import speech_wav

PORTRAITS = int(os.environ.get("PORTRAITS", "4"))
BLOCKS = 12
SCHEDULES = {"full": (1.0, 0.75, 0.5, 0.25), "light": (1.0, 0.5), "single": (1.0,)}
MOUTH = np.s_[:, 140:215, 80:176]


def generator(sigmas: tuple[float, ...]) -> Generator:
    config, modules = load_weights(RunConfig())
    modules["vae"].uses_small = True
    return Generator(config, modules, Profile.untimed(config, sigmas))


def speak(model: Generator, picture: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """[pictures, H, W, 3] float64 of a portrait that says the sound."""
    size, hop = model.info.window.samples, model.geometry.samples_per_block
    padded = np.pad(sound, (model.config.audio.left_samples, size)).astype(np.float32)
    model.open(SessionSpec(session="bench", image=picture, prompt="", seed=1))
    windows = [padded[block * hop :][:size] for block in range(BLOCKS)]
    requests = [
        BlockRequest(session="bench", block=block, epoch=0, window=window, posture="speaking", deadline_s=0)
        for block, window in enumerate(windows)
    ]
    frames = np.concatenate([model.step(request).frames for request in requests])
    model.close("bench")
    return frames.astype(np.float64)


def detail(frames: np.ndarray) -> float:
    """Mean size of the second difference in space."""
    inner = frames[:, 1:-1, 1:-1]
    around = frames[:, 2:, 1:-1] + frames[:, :-2, 1:-1] + frames[:, 1:-1, 2:] + frames[:, 1:-1, :-2]
    return float(np.abs(4 * inner - around).mean())


def against(frames: np.ndarray, full: np.ndarray) -> tuple[float, float, float]:
    """PSNR in dB, share of the detail, correlation of what moves at the mouth."""
    psnr_db = -10 * np.log10(np.square(frames - full).mean() / 255**2)
    mouths = [(m - m.mean(0)).ravel() for m in (frames[MOUTH], full[MOUTH])]
    return float(psnr_db), detail(frames) / detail(full), float(np.corrcoef(*mouths)[0, 1])


@pytest.mark.soak
def test_fewer_steps_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with wave.open(str(speech_wav(tmp_path / "speech.wav"))) as source:
        sound = np.frombuffer(source.readframes(-1), "<i2").astype(np.float64) / 32_768
    sound = resample_poly(sound, 1, 3)
    models = {name: generator(sigmas) for name, sigmas in SCHEDULES.items()}
    gallery = sorted((Path(client_demo.__file__).parent / "gallery").glob("*.png"))[:PORTRAITS]
    rows: dict[str, list[tuple[float, float, float]]] = {"light": [], "single": []}
    for path in gallery:
        picture = np.asarray(Image.open(path).convert("RGB"))
        spoken = {name: speak(model, picture, sound) for name, model in models.items()}
        for name, found in rows.items():
            found.append(against(spoken[name], spoken["full"]))
    with capsys.disabled():
        for name, found in rows.items():
            worst = np.min(found, 0)
            print(f"\n{name}: worst of {len(found)} portraits {worst[0]:.1f} dB, detail {worst[1]:.3f}", end=", ")
            print(f"mouth {worst[2]:.3f}", end="")
    assert np.min(rows["light"], 0)[2] >= 0.98
    assert np.min(rows["single"], 0)[2] >= 0.93
    assert np.min(rows["single"], 0)[1] >= 0.93

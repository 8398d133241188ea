"""`avatarcast generate` from a folder in the released layout, with its adapter."""

from __future__ import annotations

import re
import shutil
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect

from model.convert import convert
from model.errors import CheckpointError
from model.forge import LORA, forge
from model.published import forged_config
from server.cli import main
from server.config import Config, ModelSection
from server.errors import ConfigError
from server.generate import FilmWish, run_generate
from server.preview import preview_stream
from tests.unit.model.damage import DAMAGE
from tests.unit.server.running import fake_config, running
from tests.unit.server.test_events_socket import take
from tests.unit.server.test_push_audio import send, voice


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


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forge") / "mini"
    forge(folder, "mini")
    return folder


@pytest.mark.parametrize("damage", list(DAMAGE)[::2])
def test_damage_ends_the_command_with_2(
    damage: str, forged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(forged, tmp_path / "mini"))
    work, message = DAMAGE[damage]
    work(folder)
    asked = wish(tmp_path)
    words = ["--image", asked.image, "--audio", asked.audio, "--out", asked.out, "--size", "64x64"]
    with pytest.raises(SystemExit) as caught:
        main(["generate", *map(str, words), "--ckpt_dir", str(folder)])
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("avatarcast: ")]
    assert caught.value.code == 2 and len(sentences) == 1
    assert re.search(message, sentences[0]) and str(folder) in sentences[0]
    assert not asked.out.exists()


def test_a_film_from_a_folder_in_fp8(forged: Path, tmp_path: Path) -> None:
    convert(forged, tmp_path / "mini", fp8=True)
    asked = wish(tmp_path, size="64x64", ckpt_dir=str(tmp_path / "mini"))
    assert run_generate(Config(), asked, as_json=True) == 0 and asked.out.stat().st_size > 0


def test_sizes_of_a_folder_are_known_before_it_is_loaded(forged: Path) -> None:
    for checkpoint in (str(forged), "random:mini"):
        preview = preview_stream(ModelSection(checkpoint=checkpoint, size="64x96"))
        wanted = forged_config("mini")
        assert (preview.geometry.width, preview.geometry.height) == (64, 96)
        assert preview.window == wanted.window and preview.geometry.samples_per_block == 7680
    with pytest.raises(CheckpointError, match="'huge' is unknown; choose mini or 14b"):
        preview_stream(ModelSection(checkpoint="random:huge"))


@pytest.mark.soak
async def test_a_forged_folder_speaks_live(forged: Path) -> None:
    model = {"kind": "checkpoint", "checkpoint": str(forged), "size": "64x64", "dtype": "float32", "load": 1.0}
    async with running(fake_config(model=model), patience_s=100) as server:
        session = await server.open(mode="push")
        assert (session["media"]["width"], session["media"]["block_ms"]) == (64, 480)
        async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
            await take(socket, "hello")
            await send(socket, "start", sample_rate=16_000, segment="greeting")
            await socket.send(voice(0.6))
            await send(socket, "end")
            await take(socket, "playback_started", segment="greeting")
            report = await take(socket, "playback_finished", segment="greeting")
            assert not report["interrupted"] and abs(report["position_ms"] - 600) <= 5


def test_an_adapter_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--lora is 'x' but checkpoint 'tiny' takes no adapter"):
        run_generate(Config(), wish(tmp_path, lora="x"), as_json=False)

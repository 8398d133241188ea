"""Bad and odd input of `generate`: judged before a model loads, one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import io
import struct
import sys
import time
import tracemalloc
import wave
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

import model.worker
from model.errors import PortraitError
from model.fake import FakeModel
from model.interface import SessionInfo
from server import cli
from server.generate import read_portrait
from server.studio import Studio
from streaming.errors import MediaFileError
from streaming.film import sound_start_s
from streaming.offline import generate
from tests.fakes import PORTRAIT, babble
from tests.unit.server.running import FAKE, fake_config
from tests.unit.streaming.test_offline import SMALL, mouth_open, phrase, read_film, write_wav


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a portrait, a voice and a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("fake.yaml").write_text(yaml.safe_dump(FAKE))
    Image.new("RGB", (90, 120), (120, 140, 180)).save("face.png")
    write_wav(Path("voice.wav"), phrase(0.3))
    return tmp_path


def run(*arguments: str, config: str = "fake.yaml") -> int:
    wish = {"--config": config, "--image": "face.png", "--audio": "voice.wav", "--out": "film.mp4"}
    wish |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", *(word for pair in wish.items() for word in pair)])
    return caught.value.code


def png(size: tuple[int, int], **how: object) -> bytes:
    data = io.BytesIO()
    Image.new("L", size).save(data, "PNG", **how)
    return data.getvalue()


def big_header(width: int, height: int) -> bytes:
    """A small bitmap that says it is a huge one."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(info), 0, 0, 14 + len(info)) + info


PORTRAITS = {
    "empty": (b"", "is empty"),
    "text": (b"hello" * 9, "not a picture"),
    "tiny": (png((40, 200)), "at least 64"),
    "wide": (png((5000, 64)), "at most 4096"),
    "bomb": (big_header(60_000, 60_000), "at most 4096"),
    "cut": (png((300, 300))[:80], "cut short"),
    "animated": (png((80, 80), save_all=True, append_images=[Image.new("L", (80, 80), 9)]), "animated"),
    "heavy": (b"\x89PNG" + b"\0" * (10 * 1024 * 1024), "10.0 MiB"),
}
SOUNDS = {"empty": (b"", "not a sound file"), "text": (b"hello" * 99, "not a sound file"), "none": (None, "no sound")}


@pytest.mark.parametrize(("option", "case"), [("--image", k) for k in PORTRAITS] + [("--audio", k) for k in SOUNDS])
def test_bad_files_are_refused_before_a_model_loads(folder, capfd, monkeypatch, option: str, case: str) -> None:
    monkeypatch.setattr(model.worker, "load", lambda spec: pytest.fail("a model was loaded"))
    data, part = (PORTRAITS if option == "--image" else SOUNDS)[case]
    if data is None:
        write_wav(Path("bad"), np.zeros(0))
    else:
        Path("bad").write_bytes(data)
    assert run(option, "bad") == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert len(err) == 1 and part in err[0] and "bad" in err[0], err
    assert {p.name for p in folder.iterdir()} == {"fake.yaml", "face.png", "voice.wav", "bad"}


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--infer_frames", "11", "--infer_frames is 11; a clip has at least one block of 12"),
        ("--size", "100x100", "100x100"),
        ("--size", "10*10", "at least one cell of 64x64"),
    ],
)
def test_what_the_checkpoint_cannot_do_is_told_before_it_loads(folder, capfd, monkeypatch, option, value, part) -> None:
    monkeypatch.setattr(model.worker, "load", lambda spec: pytest.fail("a model was loaded"))
    assert run(option, value, config="tiny") == 2
    assert part in capfd.readouterr().err and not Path("film.mp4").exists()


def test_a_portrait_that_is_never_ending_is_not_read_to_its_end() -> None:
    with pytest.raises(PortraitError, match="at most 10 MiB"):
        read_portrait(Path("/dev/zero"))


def test_a_cmyk_portrait_serves(folder) -> None:
    Image.new("CMYK", (90, 120), (10, 90, 20, 0)).save("ink.jpg")
    assert run("--image", "ink.jpg") == 0


def test_silence_is_told_and_makes_a_film(folder, capfd) -> None:
    write_wav(Path("still.wav"), np.zeros(20_000))
    assert run("--audio", "still.wav") == 0
    assert "silent throughout" in capfd.readouterr().err and Path("film.mp4").exists()


def test_what_is_not_read_of_a_prompt_is_told(folder, capfd, monkeypatch) -> None:
    upstream = FakeModel.open

    def cut_open(self, spec) -> SessionInfo:  # noqa: ANN001
        return replace(upstream(self, spec), prompt_cut=spec.prompt[5:])

    monkeypatch.setattr(FakeModel, "open", cut_open)
    assert run("--prompt", "smile and frown") == 0
    assert "not read: ' and frown'" in capfd.readouterr().err


def encode(path: Path, codec: str, rate_hz: int, channels: int) -> Path:
    """A phrase in some coding, rate and number of channels."""
    sound = phrase(1.0)
    sound = np.interp(np.arange(int(len(sound) * rate_hz / 16_000)) * 16_000 / rate_hz, np.arange(len(sound)), sound)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(channels, "mono")
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate_hz, layout=layout)
        resampler = av.AudioResampler(format=stream.codec_context.codec.audio_formats[0], layout=layout, rate=rate_hz)
        planes = np.repeat(sound.astype(np.float32)[None], channels, 0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        fifo = av.AudioFifo()
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            piece.pts = None
            fifo.write(piece)
        while (piece := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            piece.pts = None
            target.mux(stream.encode(piece))
        target.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels"),
    [
        ("a.wav", "pcm_u8", 8_000, 1),
        ("b.wav", "pcm_s24le", 44_100, 2),
        ("c.wav", "pcm_f32le", 192_000, 6),
        ("d.wav", "pcm_s16le", 6_000, 1),
        ("a.mp3", "mp3", 44_100, 2),
        ("b.mp3", "mp3", 16_000, 1),
        ("a.m4a", "aac", 48_000, 2),
        ("b.m4a", "aac", 22_050, 1),
        ("c.m4a", "aac", 44_100, 6),
        ("a.flac", "flac", 96_000, 1),
        ("a.ogg", "libopus", 48_000, 2),
    ],
)
def test_sound_of_any_coding_rate_and_channels_keeps_step(tmp_path, name, codec, rate_hz, channels) -> None:
    audio = encode(tmp_path / name, codec, rate_hz, channels)
    assert abs(sound_start_s(audio) - 0.5) < 0.08
    report = generate(FakeModel(SMALL), image=PORTRAIT, audio=audio, out=tmp_path / "film.mp4")
    images, played, *_ = read_film(report.path)
    assert abs(len(images) - len(phrase(1.0)) / 640) < 4
    level = [np.abs(played[i * 640 : (i + 1) * 640]).max(initial=0) > 0.05 for i in range(len(images))]
    assert abs(int(np.flatnonzero(level)[0]) - int(np.flatnonzero(mouth_open(images))[0])) <= 1


def test_long_silence_is_streamed(tmp_path) -> None:
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        for _ in range(10):
            file.writeframes(bytes(2 * 8_000 * 60))
        file.writeframes((babble(0.5) * 20_000).astype("<i2").tobytes())
    tracemalloc.start()
    assert abs(sound_start_s(tmp_path / "long.wav") - 600) < 0.3
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    with pytest.raises(MediaFileError, match="not a sound"):
        sound_start_s(Path(__file__))


def hours(path: Path, speech_s: float) -> Path:
    """Three hours of sound that hardly take room on disk: some speech, and silence to the end."""
    length = 3 * 3600 * 8_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.setnframes(length)
        file.writeframes((babble(speech_s)[::2] * 20_000).astype("<i2").tobytes())
    with path.open("r+b") as file:
        head = file.read(44)
        file.seek(0)
        file.write(head[:4] + struct.pack("<I", 36 + 2 * length) + head[8:40] + struct.pack("<I", 2 * length))
        file.truncate(44 + 2 * length)
    return path


def test_hours_of_sound_are_read_as_far_as_the_film_goes(folder) -> None:
    hours(Path("long.wav"), 4.0)
    tracemalloc.start()
    started_s, seen = time.monotonic(), []
    report = generate(
        FakeModel(SMALL),
        image=PORTRAIT,
        audio=Path("long.wav"),
        out=Path("film.mp4"),
        max_frames=96,
        on_progress=seen.append,
    )
    assert report.frames == 96 and seen[-1].eta_s == 0 and len(read_film(report.path)[0]) == 96
    assert tracemalloc.get_traced_memory()[1] < 20_000_000 and time.monotonic() - started_s < 20
    tracemalloc.stop()


def test_hours_of_sound_show_their_length_and_can_be_cut_off(folder) -> None:
    seen = []
    report = generate(
        FakeModel(SMALL),
        image=PORTRAIT,
        audio=hours(Path("long.wav"), 2.0),
        out=Path("film.mp4"),
        on_progress=seen.append,
        should_stop=lambda: len(seen) == 3,
    )
    assert seen[-1].num_frames == 3 * 3600 * 25 and seen[-1].eta_s > 0
    assert report.interrupted and len(read_film(report.path)[0]) == 36


def test_hours_are_not_heard_at_once(folder, capfd, monkeypatch) -> None:
    monkeypatch.setattr(model.worker, "load", lambda spec: pytest.fail("a model was loaded"))
    hours(Path("long.wav"), 1.0)
    with pytest.raises(SystemExit) as caught:
        cli.main("generate --config fake.yaml --image face.png --audio long.wav --parity --out film.mp4".split())
    (sentence,) = capfd.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and not Path("film.mp4").exists()
    assert sentence.startswith("avatarcast: long.wav lasts 10800 s; parity hears a file at once, at most 600 s")


def test_a_length_that_a_file_does_not_state_is_counted(folder, monkeypatch) -> None:
    monkeypatch.setattr("streaming.offline.LONGEST_WHOLE_S", 1.0)
    with pytest.raises(MediaFileError, match="voice.wav lasts more than 1 s"):
        generate(FakeModel(SMALL), image=PORTRAIT, audio=Path("voice.wav"), out=Path("film.mp4"), parity=True)
    assert not list(folder.glob("*.mp4*"))


def test_the_studio_goes_the_same_way(folder, monkeypatch) -> None:
    studio, seen = Studio(fake_config(), folder / "made"), []
    assert studio.make(None, "voice.wav", "", 0, print)[1] == "Choose a portrait first."
    film, said = studio.make("face.png", "voice.wav", "smile", 3, lambda share, word: seen.append(share))
    assert said.startswith("Done: 1.6 s at 64x64") and seen[-1] == 1 and Path(film).name == "voice.mp4"
    film, said = studio.make("fake.yaml", "voice.wav", "", 0, print)
    assert film is None and "not a picture" in said
    film, said = studio.make("face.png", "voice.wav", "", 0, lambda share, word: studio.stop() if share else None)
    assert said.startswith("Stopped: 0.5 s") and Path(film).exists()


def test_the_studio_says_what_it_lacks(capfd, monkeypatch) -> None:
    def studio(*options: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(["studio", *options])
        assert caught.value.code == 2
        return capfd.readouterr().err

    monkeypatch.delenv("AVATARCAST_API_KEY", raising=False)
    assert "AVATARCAST_API_KEY" in studio("--server_name", "0.0.0.0")
    assert "--server_port is 70000" in studio("--server_port", "70000")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'avatarcast[studio]'" in studio()

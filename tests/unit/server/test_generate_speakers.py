"""`generate` with several speakers, masks and a pose video: what it makes, and what it refuses in one sentence."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from server.film_inputs import read_masks
from streaming.film import read_pictures
from tests.unit.server.test_cli import folder, run

__all__ = ["folder"]

MINI = ("--config", "mini.yaml", "--size", "64x64")


def write_tone(path: str, hz: float, seconds: float, level: float = 0.5, rate_hz: int = 16_000) -> None:
    at = np.arange(int(seconds * rate_hz)) / rate_hz
    with wave.open(path, "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(rate_hz)
        sink.writeframes((level * 32767 * np.sin(2 * np.pi * hz * at)).astype("<i2").tobytes())


def write_video(path: str, pictures: list[np.ndarray], fps: int) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_masks() -> None:
    for name, columns in (("left.png", slice(0, 40)), ("right.png", slice(50, 90))):
        mask = np.zeros((120, 90), np.uint8)
        mask[20:90, columns] = 255
        Image.fromarray(mask).save(name)


@pytest.fixture
def pair(folder: Path) -> Path:
    """Also two sounds, two masks and a short pose video."""
    write_tone("low.wav", 300, 2.0)
    write_tone("high.wav", 1000, 1.4, rate_hz=44_100)
    write_masks()
    write_video("pose.mp4", [np.full((48, 64, 3), 10 * i, np.uint8) for i in range(20)], 25)
    Path("mini.yaml").write_text("model: {checkpoint: 'random:mini', dtype: float32, device: cpu, threads: 1}\n")
    return folder


def spectrum(path: str) -> tuple[np.ndarray, np.ndarray, float]:
    with av.open(path) as film:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        parts = [out.to_ndarray()[0] for frame in film.decode(audio=0) for out in resampler.resample(frame)]
    sound = np.concatenate(parts)
    middle = sound[4000:20_000]
    return np.fft.rfftfreq(len(middle), 1 / 16_000), 2 * np.abs(np.fft.rfft(middle)) / len(middle), len(sound) / 16_000


def test_two_sounds_are_mixed_and_the_shortest_ends_the_film(pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = ("generate", "--config", "fake.yaml", "--image", "face.png", "--audio", "low.wav+high.wav")
    assert run(*both, "--out", "both.mp4", "--json") == 0
    assert json.loads(capfd.readouterr().out.strip().splitlines()[-1])["frames"] == 35
    hz, level, seconds = spectrum("both.mp4")
    assert abs(seconds - 1.4) < 0.07
    for tone in (300, 1000):
        assert level[np.abs(hz - tone) < 2].max() == pytest.approx(0.25, abs=0.02), "the mean of both"
    Path("low.wav").rename("a+b.wav")
    assert run(*both[:-1], "a+b.wav", "--num_clip", "1") == 0, "a plus in a file's own name is no separator"


def test_mini_speaks_with_two_faces_and_a_pose_video(pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = (
        "generate",
        *MINI,
        "--image",
        "face.png",
        "--audio",
        "low.wav+high.wav",
        "--num_clip",
        "1",
        "--infer_frames",
        "12",
    )
    every = ("--mask", "left.png+right.png", "--pose_video", "pose.mp4", "--parity")
    assert run(*both, *every, "--out", "film.mp4") == 0, capfd.readouterr().err
    pictures = list(read_pictures(Path("film.mp4"), 25))
    assert len(pictures) == 12 and pictures[0].shape == (64, 64, 3) and pictures[-1].std() > 0


def test_pictures_come_at_the_rate_of_the_film(pair: Path) -> None:
    write_video("slow.mp4", [np.full((48, 64, 3), 25 * i, np.uint8) for i in range(10)], 10)
    level = [int(picture.mean() / 25 + 0.5) for picture in read_pictures(Path("slow.mp4"), 25)]
    assert level == [int(k / 25 * 10 + 1e-9) for k in range(25)]
    same = [int(picture.mean() / 10 + 0.5) for picture in read_pictures(Path("pose.mp4"), 25)]
    assert same == list(range(20))
    assert len(list(read_pictures(Path("pose.mp4"), 16))) == 13


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"--audio": "low.wav+gone.wav"}, ["--audio is low.wav+gone.wav", "gone.wav is not a file"]),
        ({"--audio": "+".join(["low.wav"] * 5)}, ["--audio names 5 sounds", "at most 4 speakers"]),
        ({"--mask": "left.png"}, ["--mask names 1 masks for 2 sounds"]),
        ({"--mask": "left.png+right.png+left.png"}, ["--mask names 3 masks for 2 sounds"]),
        ({"--mask": "left.png+gone.png"}, ["--mask is left.png+gone.png", "gone.png is not a file"]),
        ({"--mask": "left.png+low.wav"}, ["--mask low.wav is not a picture"]),
        ({"--mask": "left.png+wide.png"}, ["--mask wide.png has 200x50 pixels", "90x120"]),
        ({"--mask": "left.png+black.png"}, ["--mask black.png is black all over"]),
        ({"--audio": "low.wav", "--mask": "left.png"}, ["--mask is given, but --audio names one sound"]),
        ({"--pose_video": "gone.mp4"}, ["--pose_video is gone.mp4"]),
        ({"--pose_video": "low.wav"}, ["low.wav is not a video we can read"]),
        ({"--pose_video": "torn.mp4"}, ["torn.mp4 is not a video we can read"]),
        ({"--pose_video": "pose.mp4"}, ["takes no pose video", "leave it out"]),
    ],
)
def test_bad_input_is_one_sentence(
    pair: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, str], parts: list[str]
) -> None:
    Image.new("L", (200, 50), 255).save("wide.png")
    Image.new("L", (90, 120), 0).save("black.png")
    Path("torn.mp4").write_bytes(Path("pose.mp4").read_bytes()[:300])
    wish = {
        "--config": "fake.yaml",
        "--image": "face.png",
        "--audio": "low.wav+high.wav",
        "--out": "film.mp4",
    } | changes
    assert run("generate", *(part for pair in wish.items() for part in pair)) == 2
    err = capfd.readouterr().err
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("avatarcast: ") and all(part in sentence for part in parts), sentence
    assert "Traceback" not in err and not Path("film.mp4").exists()


def test_a_mask_of_another_size_is_resized_with_a_notice(pair: Path, capfd: pytest.CaptureFixture[str]) -> None:
    portrait = np.zeros((240, 180, 3), np.uint8)
    masks = read_masks((Path("left.png"), Path("right.png")), portrait)
    assert masks.shape == (2, 240, 180) and masks.dtype == bool
    assert masks[0, 60:160, 10:70].all() and not masks[0, :, 90:].any()
    assert "left.png is resized from 90x120 to 180x240" in capfd.readouterr().err
    glass = Image.new("RGBA", (90, 120), (255, 255, 255, 0))
    glass.paste((255, 255, 255, 255), (10, 10, 30, 30))
    glass.save("glass.png")
    (seen,) = read_masks((Path("glass.png"),), portrait[::2, ::2])
    assert seen.sum() == 400, "what is transparent is no face"

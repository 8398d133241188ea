"""`generate` with the published model's parts at laptop size: 16 pictures a second, both size rules, many clips."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from model.setting import setting_of
from server.config import Config, ModelSection
from server.errors import ConfigError
from server.generate import FilmWish, model_section
from tests.unit.server.test_cli import GENERATE, folder, run
from tests.unit.server.test_generate_speakers import write_tone

__all__ = ["folder"]


@pytest.fixture
def mini(folder: Path) -> tuple[str, ...]:
    write_tone("short.wav", 300, 0.85)
    Path("mini.yaml").write_text("model: {checkpoint: 'random:mini', dtype: float32, device: cpu, threads: 1}\n")
    return ("generate", "--config", "mini.yaml", "--image", "face.png", "--audio", "short.wav", "--json")


@pytest.mark.parametrize(
    ("fps", "frames", "size", "shown", "notice"),
    [
        (16, 14, ("--size", "64*96"), (64, 64), "--size 64*96 is an area: the film has 64x64 pixels"),
        (25, 22, ("--size", "64*48", "--size_rule", "exact"), (64, 48), ""),
    ],
)
def test_picture_rate_and_size(
    mini: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    fps: int,
    frames: int,
    size: tuple[str, ...],
    shown: tuple[int, int],
    notice: str,
) -> None:
    """The portrait is 90x120, the sound 0.85 s long; an area keeps to multiples of 64, a size is taken as it is."""
    assert run(*mini, *size, "--fps", str(fps), "--out", "film.mp4") == 0
    told = capfd.readouterr()
    report = json.loads(told.out.strip().splitlines()[-1])
    assert report["frames"] == frames and report["seconds"] == pytest.approx(frames / fps)
    assert (report["width"], report["height"]) == shown
    assert notice in told.err and ("is an area" in told.err) == bool(notice)
    with av.open("film.mp4") as film:
        pictures = [frame.time for frame in film.decode(video=0)]
        video = film.streams.video[0]
        assert video.average_rate == fps and (video.width, video.height) == shown
        assert film.duration / 1e6 == pytest.approx(frames / fps, abs=0.07)
    with av.open("film.mp4") as film:
        sound = list(film.decode(audio=0))
    assert pictures == pytest.approx([k / fps for k in range(frames)], abs=1e-4)
    assert sound[0].time == pytest.approx(0, abs=0.001)
    assert sound[-1].time + sound[-1].samples / sound[-1].sample_rate == pytest.approx(0.85, abs=0.07)


@pytest.mark.parametrize("size", [("--size", "100x100"), ("--size", "30*30"), ("--size", "0x64")])
def test_sizes_that_cannot_be(mini: tuple[str, ...], capfd: pytest.CaptureFixture[str], size: tuple[str, ...]) -> None:
    assert run(*mini, *size, "--out", "film.mp4") == 2
    assert capfd.readouterr().err.strip().count("\n") <= 1


def test_pictures_of_a_clip_are_a_released_checkpoints_past() -> None:
    def section(checkpoint: str, frames: int) -> ModelSection:
        there = Path(__file__)
        wish = FilmWish(image=there, audio=there, out=Path("film.mp4"), ckpt_dir=checkpoint, infer_frames=frames)
        return model_section(Config(), wish)

    assert [section("random:mini", frames).clip_blocks for frames in (48, 24, 80)] == [0, 2, 6]
    assert setting_of(section("random:14b", 96)).keys > setting_of(section("random:14b", 48)).keys
    assert section("tiny", 24).clip_blocks == 0  # it learned its own
    with pytest.raises(ConfigError, match="--infer_frames is 204; use at most 192"):
        section("random:mini", 204)


def test_more_clips_than_there_is_sound(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*GENERATE, "--num_clip", "10000", "--out", "film.mp4", "--json") == 0
    assert json.loads(capfd.readouterr().out.strip().splitlines()[-1])["frames"] == 50

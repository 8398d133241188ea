"""`generate` with the published model's parts at laptop size: 16 pictures a second, both size rules, many clips."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from tests.unit.server.test_cli import GENERATE, folder, run
from tests.unit.server.test_generate_speakers import write_tone

__all__ = ["folder"]


@pytest.fixture
def mini(folder: Path) -> tuple[str, ...]:
    write_tone("short.wav", 300, 1.3)
    Path("mini.yaml").write_text("model: {checkpoint: 'random:mini', dtype: float32, device: cpu, threads: 1}\n")
    return ("generate", "--config", "mini.yaml", "--image", "face.png", "--audio", "short.wav", "--json")


@pytest.mark.parametrize(("fps", "frames"), [(16, 21), (25, 33)])
def test_pictures_a_second(mini: tuple[str, ...], capfd: pytest.CaptureFixture[str], fps: int, frames: int) -> None:
    assert run(*mini, "--size", "64x64", "--fps", str(fps), "--out", "film.mp4") == 0
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert report["frames"] == frames and report["seconds"] == pytest.approx(frames / fps)
    with av.open("film.mp4") as film:
        pictures = [frame.time for frame in film.decode(video=0)]
        assert film.streams.video[0].average_rate == fps
        assert film.duration / 1e6 == pytest.approx(frames / fps, abs=0.07)
    with av.open("film.mp4") as film:
        sound = list(film.decode(audio=0))
    assert pictures == pytest.approx([k / fps for k in range(frames)], abs=1e-4)
    assert sound[0].time == pytest.approx(0, abs=0.001)
    assert sound[-1].time + sound[-1].samples / sound[-1].sample_rate == pytest.approx(1.3, abs=0.07)


@pytest.mark.parametrize(
    ("size", "shown", "notice"),
    [
        (("--size", "128*128"), (64, 128), "--size 128*128 is an area: the film has 64x128 pixels"),
        (("--size", "96x80"), (96, 80), ""),
        (("--size", "128x128", "--size_rule", "area"), (64, 128), "is an area"),
        (("--size", "96*80", "--size_rule", "exact"), (96, 80), ""),
    ],
)
def test_sizes_by_both_rules(
    mini: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
    size: tuple[str, ...],
    shown: tuple[int, int],
    notice: str,
) -> None:
    """The portrait is 90x120, so an area gives an upright film."""
    assert run(*mini, *size, "--num_clip", "1", "--infer_frames", "12", "--out", "film.mp4") == 0
    told = capfd.readouterr()
    report = json.loads(told.out.strip().splitlines()[-1])
    assert (report["width"], report["height"]) == shown
    assert notice in told.err and ("is an area" in told.err) == bool(notice)
    with av.open("film.mp4") as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == shown


@pytest.mark.parametrize("size", [("--size", "100x100"), ("--size", "30*30"), ("--size", "0x64")])
def test_sizes_that_cannot_be(mini: tuple[str, ...], capfd: pytest.CaptureFixture[str], size: tuple[str, ...]) -> None:
    assert run(*mini, *size, "--out", "film.mp4") == 2
    assert capfd.readouterr().err.strip().count("\n") <= 1


def test_more_clips_than_there_is_sound(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*GENERATE, "--num_clip", "10000", "--out", "film.mp4", "--json") == 0
    assert json.loads(capfd.readouterr().out.strip().splitlines()[-1])["frames"] == 50

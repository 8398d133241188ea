"""The command line's own work: spelling, exit codes, and `generate` and `bench live` end to end with the fake model."""

from __future__ import annotations

import json
import re
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from server import cli
from server.bench import synthetic_voice
from server.generate import progress_line
from streaming.offline import Progress
from tests.unit.server.running import FAKE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a portrait, a voice and a configuration."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 120), (120, 140, 180)).save("face.png")
    sound = (synthetic_voice(2.0) * 32767).astype("<i2")
    with wave.open("voice.wav", "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(48_000)
        sink.writeframes(sound.tobytes())
    Path("fake.yaml").write_text(yaml.safe_dump(FAKE))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


GENERATE = ("generate", "--config", "fake.yaml", "--image", "face.png", "--audio", "voice.wav")


def test_generate_writes_a_film_in_step(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*GENERATE, "--out", "film.mp4", "--base-seed=3", "--prompt", "smile", "--json") == 0
    out, _ = capfd.readouterr()
    report = json.loads(out.strip().splitlines()[-1])
    assert report["frames"] == 50
    assert (report["width"], report["height"], report["interrupted"]) == (64, 64, False)
    with av.open("film.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 50
        assert float(film.streams.video[0].average_rate) == 25
        assert film.streams.audio


def test_the_default_name_and_the_seed(folder: Path) -> None:
    assert run(*GENERATE) == 0
    assert run(*GENERATE, "--save_file", "again.mp4") == 0
    assert run(*GENERATE, "--out", "other.mp4", "--base_seed", "9") == 0
    pictures = {}
    for name in ("output.mp4", "again.mp4", "other.mp4"):
        with av.open(name) as film:
            pictures[name] = np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])
    assert (pictures["output.mp4"] == pictures["again.mp4"]).all()
    assert (pictures["output.mp4"] != pictures["other.mp4"]).any()


def test_any_seed_is_told_and_repeats(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*GENERATE, "--base_seed", "-1", "--out", "any.mp4") == 0
    (seed,) = re.findall(r"--base_seed -1 takes (\d+)", capfd.readouterr().err)
    assert run(*GENERATE, "--base_seed", seed, "--out", "same.mp4") == 0
    assert Path("any.mp4").read_bytes() == Path("same.mp4").read_bytes()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"--image": "gone.png"}, ["--image is gone.png", "check the path"]),
        ({"--audio": "gone.wav"}, ["--audio is gone.wav"]),
        ({"--image": "voice.wav"}, ["--image is voice.wav", "not a picture"]),
        ({"--audio": "face.png"}, ["face.png"]),
        ({"--out": "no/such/film.mp4"}, ["--out is no/such/film.mp4", "make it first"]),
        ({"--out": "film.avi"}, ["--out is film.avi", ".mp4"]),
        ({"--out": "."}, ["--out is .", "a folder"]),
        ({"--size": "big"}, ["--size is 'big'", "256x256"]),
        ({"--base_seed": "-2"}, ["--base_seed is -2", "or -1 for any"]),
        ({"--base_seed": "x"}, ["--base_seed"]),
        ({"--config": "nothing"}, ["'nothing' is unknown"]),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, str], parts: list[str]
) -> None:
    wish = {"--config": "fake.yaml", "--image": "face.png", "--audio": "voice.wav", "--out": "film.mp4"} | changes
    assert run("generate", *(part for pair in wish.items() for part in pair)) == 2
    _, err = capfd.readouterr()
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("avatarcast: ")
    assert all(part in sentence for part in parts), sentence
    assert "Traceback" not in err
    assert not Path("film.mp4").exists()


def test_missing_options_and_unknown_commands(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--audio", "voice.wav") == 2
    assert "--image" in capfd.readouterr().err
    assert run("sing") == 2
    assert run("bench", "sing") == 2
    assert run("bench", "live", "--config", "fake.yaml", "--seconds", "0") == 2
    assert "--seconds is 0" in capfd.readouterr().err


def test_an_interrupted_film_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.fake import FakeModel

    made = []
    upstream = FakeModel.step

    def step(self, request):  # noqa: ANN001, ANN202
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(request.block)
        return upstream(self, request)

    monkeypatch.setattr(FakeModel, "step", step)
    assert run(*GENERATE, "--out", "film.mp4") == 130
    with av.open("film.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 24


def test_bench_live_prints_a_table_and_one_json_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "live", "--config", "fake.yaml", "--seconds", "3", "--audio", "voice.wav", "--json") == 0
    lines = capfd.readouterr().out.strip().splitlines()
    figures = json.loads(lines[-1])
    assert figures["bench"] == "live"
    assert 4 <= figures["blocks"] <= 9
    assert 5 <= figures["block_ms"]["p50"] <= figures["block_ms"]["p95"] < 400
    assert 0 < figures["rtf"] < figures["rtf_with_encode"] < 1
    assert 600 < figures["mouth_latency_ms"]["p50"] <= figures["mouth_latency_ms"]["p95"] < 1200
    assert {"server", "model", "encoder"} == set(figures["cpu_ms_per_block"])
    assert figures["cpu_ms_per_block"]["encoder"] > 0
    assert figures["rss_mb"]["total"] == pytest.approx(
        figures["rss_mb"]["server"] + figures["rss_mb"]["model"], abs=0.2
    )
    assert any(line.startswith("microphone to lip") for line in lines)


def test_bench_sessions_adds_one_at_a_time(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.bench_sessions.WARM_UP_S", 0.5)
    assert run("bench", "sessions", "--config", "fake.yaml", "--seconds", "3", "--most", "2", "--json") == 0
    lines = capfd.readouterr().out.strip().splitlines()
    figures = json.loads(lines[-1])
    assert [level["sessions"] for level in figures["levels"]] == [1, 2][: len(figures["levels"])]
    assert figures["kept_up"] <= len(figures["levels"]) and figures["admitted"] >= 1
    first = figures["levels"][0]
    assert first["fps_slowest"] > 20 and first["block_ms"]["p50"] >= 5
    assert 600 < first["mouth_latency_ms_p95_slowest"] < 1500
    assert any(line.startswith("kept up with") for line in lines)
    assert run("bench", "sessions", "--most", "0") == 2
    assert "--most is 0" in capfd.readouterr().err


def test_options_are_spelt_either_way_and_values_stay() -> None:
    assert cli._underscored("--base-seed=a-b") == "--base_seed=a-b"
    assert cli._underscored("--base-seed") == "--base_seed"
    assert cli._underscored("a-b") == "a-b"
    assert cli._underscored("-h") == "-h"


def test_progress_is_one_line() -> None:
    assert progress_line(Progress(frames=24, num_frames=None, fps=30.0, eta_s=None)) == "24 pictures, 30.0 a second"
    line = progress_line(Progress(frames=60, num_frames=120, fps=30.0, eta_s=62.0))
    assert line.count("█") == line.count("░") == 15
    assert line.endswith("60/120 pictures, 30.0 a second, 1:02 left")


def test_train_and_portrait_read_their_own_options(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("portrait", "--help") == 0
    assert "--hair" in capfd.readouterr().out
    assert run("train", "sing") == 2
    assert run("portrait", "--seed", "7", "--hair-color", "black", str(tmp_path / "mine.png")) in (0, 2)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(["--url", "rooms"], "--url"), (["--url", "ws://rooms", "--server", "here"], "server is 'here'")],
)
def test_the_livekit_worker_names_what_it_cannot_use(
    arguments: list[str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("livekit-worker", *arguments) == 2
    assert field in capsys.readouterr().err


def test_the_livekit_worker_asks_for_credentials(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIVEKIT_TOKEN", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert run("livekit-worker", "--url", "ws://127.0.0.1:9", "--room", "lobby") == 2
    assert "LIVEKIT_API_KEY" in capsys.readouterr().err

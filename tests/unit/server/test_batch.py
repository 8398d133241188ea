"""`avatarcast batch`: manifests and folders, one load, failures that stop nothing, resuming, Ctrl-C."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

import model.worker
from model.fake import FakeModel
from server import cli
from server.errors import ConfigError
from server.manifest import read_jobs
from tests.unit.server.running import FAKE
from tests.unit.streaming.test_offline import phrase, write_wav


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder `in` of two pairs and a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("fake.yaml").write_text(yaml.safe_dump(FAKE))
    Path("in").mkdir()
    for name, grey in (("anna", 90), ("bert", 160)):
        Image.new("RGB", (90, 120), (grey, 140, 180)).save(f"in/{name}.png")
        write_wav(Path(f"in/{name}.wav"), phrase(0.3))
    return tmp_path


def batch(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    """Exit code, the JSON object, stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["batch", *arguments, "--config", "fake.yaml", "--json"])
    out, err = capfd.readouterr()
    last = out.strip().splitlines()[-1] if out.strip() else "{}"
    return caught.value.code, json.loads(last), err


def states(report: dict) -> dict[str, str]:
    return {Path(job["film"]).name: job["state"] for job in report["jobs"]}


def test_one_load_and_a_failed_job_stops_nothing(folder, capfd, monkeypatch) -> None:
    loads = []
    load = model.worker.load
    monkeypatch.setattr(model.worker, "load", lambda spec: loads.append(1) or load(spec))
    Path("in/cut.png").write_bytes(Path("in/anna.png").read_bytes()[:60])
    shutil.copy("in/anna.wav", "in/cut.wav")
    code, report, err = batch(capfd, "in", "--out", "films")
    assert code == 1 and len(loads) == 1 and "Traceback" not in err
    assert states(report) == {"anna.mp4": "done", "bert.mp4": "done", "cut.mp4": "failed"}
    assert "damaged" in report["jobs"][2]["reason"] and (report["done"], report["failed"]) == (2, 1)
    with av.open("films/bert.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 40
    assert not Path("films/cut.mp4").exists() and not list(Path("films").glob(".*"))


def test_resume_makes_only_what_is_missing_or_changed(folder, capfd) -> None:
    assert batch(capfd, "in")[0] == 0
    before = Path("films/anna.mp4").stat().st_mtime_ns
    code, report, _ = batch(capfd, "in", "--resume")
    assert code == 0 and set(states(report).values()) == {"skipped"} and report["skipped"] == 2
    assert Path("films/anna.mp4").stat().st_mtime_ns == before
    Path("in/bert.txt").write_text("smile\n")
    Path("films/anna.mp4").write_bytes(Path("films/anna.mp4").read_bytes()[:-1])
    assert set(states(batch(capfd, "in", "--resume")[1]).values()) == {"done"}, "a prompt came, a film was cut"
    assert set(states(batch(capfd, "in")[1]).values()) == {"done"}, "without --resume all are made"


def test_ctrl_c_keeps_what_was_made_and_is_not_taken_for_finished(folder, capfd, monkeypatch) -> None:
    upstream, made = FakeModel.step, []

    def step(self, request):  # noqa: ANN001, ANN202
        made.append(request.block)
        if len(made) == 3:
            raise KeyboardInterrupt
        return upstream(self, request)

    monkeypatch.setattr(FakeModel, "step", step)
    code, report, _ = batch(capfd, "in")
    assert code == 130 and states(report) == {"anna.mp4": "interrupted", "bert.mp4": "not begun"}
    with av.open("films/anna.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 24
    code, report, _ = batch(capfd, "in", "--resume")
    assert code == 0 and set(states(report).values()) == {"done"}


ROWS = [
    {"image": "anna.png", "audio": "anna.wav", "prompt": "smile, then frown", "base_seed": 4, "out": "one"},
    {"image": "anna.png", "audio": "bert.wav", "num_clip": 1},
]


@pytest.mark.parametrize("kind", ["csv", "json", "yaml"])
def test_every_kind_of_manifest_says_the_same(folder, kind) -> None:
    path = Path("in") / f"jobs.{kind}"
    if kind == "csv":
        head, second = "image,audio,prompt,base_seed,out,num_clip", "anna.png,bert.wav,,,,1"
        path.write_text(f'\ufeff{head}\nanna.png,anna.wav,"smile, then frown",4,one,\n{second}\n')
    else:
        path.write_text(json.dumps(ROWS) if kind == "json" else yaml.safe_dump({"jobs": ROWS}))
    jobs, notices = read_jobs(path, Path("films"))
    assert [job.film for job in jobs] == [Path("films/one.mp4"), Path("films/bert.mp4")] and not notices
    assert jobs[0].wish == {
        "image": Path("in/anna.png"), "audio": Path("in/anna.wav"), "prompt": "smile, then frown", "base_seed": 4,
    }  # fmt: skip
    assert jobs[1].wish["num_clip"] == 1 and jobs[1].wish.get("prompt", "") == ""


def test_a_folder_pairs_by_stem_and_says_what_is_left_over(folder) -> None:
    write_wav(Path("in/lonely.wav"), np.zeros(10))
    jobs, notices = read_jobs(Path("in"), Path("films"))
    assert [job.film.name for job in jobs] == ["anna.mp4", "bert.mp4"] and "lonely.wav" in notices[0]
    Path("in/bert.png").unlink()
    jobs, notices = read_jobs(Path("in"), Path("films"))
    assert len(jobs) == 3 and {job.wish["image"].name for job in jobs} == {"anna.png"} and not notices


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.csv", "image,sound\na.png,a.wav\n", ["job 1", "sound is unknown", "image, audio"]),
        ("a.csv", "image,audio\na.png,a.wav,x\n", ["job 1", "quotes"]),
        ("a.csv", "image,audio\n", ["holds no job"]),
        ("a.json", "[{]", ["no valid JSON"]),
        ("a.json", "[3]", ["job 1", "no mapping"]),
        ("a.json", '"x"', ["no list of jobs"]),
        ("a.yaml", "- {image: a.png}", ["audio is missing"]),
        ("a.yaml", "- {image: a.png, audio: a.wav, base_seed: yes}", ["base_seed is True", "whole number"]),
        ("a.yaml", "- {image: a.png, audio: a.wav}\n- {image: b.png, audio: a.wav}", ["jobs 1 and 2", "a.mp4"]),
        ("a.txt", "x", [".csv, .json or .yaml"]),
        ("a.csv", b"\xff\xfe\x00", ["UTF-8"]),
        ("a.csv", None, ["cannot be read"]),
    ],
)
def test_a_bad_manifest_is_one_sentence(tmp_path: Path, name: str, text: str | bytes | None, parts: list[str]) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_jobs(tmp_path / name, tmp_path)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value

"""`avatarcast check`: figures against sounds and pictures whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from model.portrait_quality import measure_portrait
from server import cli
from server.check import judge_portrait, judge_sound
from streaming.sound_quality import measure_sound
from tests.fakes import babble
from tests.unit.streaming.test_offline import write_wav

GALLERY = Path(__file__).parents[3] / "client_demo" / "gallery"
RNG = np.random.default_rng(0)


def voice(path: Path, *, gain: float = 0.3, noise: float = 0.0, lead_s: float = 0.2, **form: int) -> Path:
    """Speech of known peak, in noise of known strength, after a known silence."""
    speech = babble(2.0)
    sound = np.concatenate([np.zeros(int(16_000 * lead_s)), speech / np.abs(speech).max() * gain, np.zeros(8000)])
    return write_wav(path, np.clip(sound + noise * RNG.standard_normal(len(sound)), -1, 1), **form)


def levels(found) -> dict[str, str]:  # noqa: ANN001
    return {finding.subject: finding.level for finding in found if finding.level != "ok"}


def test_a_good_voice_is_good_and_its_figures_are_true(tmp_path: Path) -> None:
    q = measure_sound(voice(tmp_path / "a.wav", noise=0.001, lead_s=0.5, rate_hz=16_000, channels=2))
    assert levels(judge_sound(q)) == {}
    assert (q.rate_hz, q.channels) == (16_000, 2) and abs(q.length_s - 3.0) < 0.01
    assert abs(q.leading_silence_s - 0.5) < 0.1 and q.clipped_percent == 0
    assert abs(q.level_dbfs - q.snr_db + 60) < 1, "noise of 0.001 stands at -60 dBFS"


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({"rate_hz": 8_000}, {"rate": "warn"}),
        ({"rate_hz": 6_000}, {"rate": "fail"}),
        ({"channels": 6}, {"channels": "warn"}),
        ({"gain": 0.02, "noise": 1e-5}, {"level": "warn"}),
        ({"gain": 0.001}, {"level": "fail"}),
        ({"gain": 40.0}, {"level": "warn", "clipping": "fail"}),
        ({"noise": 0.02}, {"signal to noise": "warn"}),
        ({"noise": 0.2}, {"signal to noise": "fail"}),
        ({"lead_s": 3.0}, {"leading silence": "warn"}),
    ],
)
def test_each_fault_of_a_sound_is_told(tmp_path: Path, how: dict, found: dict[str, str]) -> None:
    got = levels(judge_sound(measure_sound(voice(tmp_path / "a.wav", **how))))
    assert found.items() <= got.items(), got


def judge(image: Image.Image) -> dict[str, str]:
    return levels(judge_portrait(measure_portrait(np.array(image.convert("RGB")))))


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.png")), ids=lambda p: p.stem)
def test_shipped_portraits_are_good(path: Path) -> None:
    assert judge(Image.open(path)) == {}


def test_each_fault_of_a_portrait_is_told() -> None:
    good = Image.open(GALLERY / "jonas.png").convert("RGB")
    array = np.array(good).astype(float)
    lit = array * np.linspace(0.15, 1, 512)[None, :, None]
    assert judge(good.resize((200, 200)))["size"] == "warn"
    assert judge(good.filter(ImageFilter.GaussianBlur(5)))["sharpness"] == "warn"
    assert judge(good.filter(ImageFilter.GaussianBlur(12)))["sharpness"] == "fail"
    assert judge(Image.fromarray((array * 0.25).astype(np.uint8)))["exposure"] == "warn"
    assert judge(Image.fromarray((array * 0.05).astype(np.uint8)))["exposure"] == "fail"
    assert "exposure" in judge(Image.fromarray(np.clip(array * 2.5, 0, 255).astype(np.uint8)))
    assert "lost detail" in judge(Image.fromarray(np.clip(array * 2.5, 0, 255).astype(np.uint8)))
    assert judge(Image.fromarray(lit.astype(np.uint8)))["even light"] in ("warn", "fail")
    assert judge(good.crop((0, 100, 512, 356)))["aspect"] == "warn"


def test_the_command_prints_figure_threshold_and_remedy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*names: str) -> int:
        with pytest.raises(SystemExit) as caught:
            cli.main(["check", *names])
        return caught.value.code

    sound = voice(tmp_path / "a.wav", lead_s=3.0)
    assert run(str(GALLERY / "sofia.png"), str(sound), "--json") == 0
    out = capfd.readouterr().out.strip().splitlines()
    report = json.loads(out[-1])
    assert report["ok"] and [file["kind"] for file in report["files"]] == ["portrait", "audio"]
    late = next(f for f in report["files"][1]["findings"] if f["subject"] == "leading silence")
    assert late["level"] == "warn" and 2.8 < late["figure"] < 3.3 and "1 s" in late["threshold"] and late["remedy"]
    (tmp_path / "cut.png").write_bytes((GALLERY / "sofia.png").read_bytes()[:900])
    assert run(str(tmp_path / "cut.png")) == 1 and "damaged" in capfd.readouterr().out
    assert run(str(tmp_path / "gone.png")) == 2 and "check the path" in capfd.readouterr().err

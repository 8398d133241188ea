"""`avatarcast check`: will this portrait, this sound do? Each figure with its threshold and what to do about it.

`fail` is what `generate` refuses, or what cannot come out well; `warn` is what shows in the film.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from model.errors import PortraitError
from model.portrait_quality import PortraitQuality, measure_portrait
from server.errors import ConfigError
from server.generate import read_portrait
from server.manifest import PORTRAITS
from streaming.errors import StreamingError
from streaming.sound_quality import MEASURED_S, SoundQuality, measure_sound

Level = Literal["ok", "warn", "fail"]
_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8")


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure of one file."""

    subject: str
    level: Level
    figure: float | None
    """None where the file cannot be read."""
    text: str
    """The figure with its unit."""
    threshold: str
    """What is ok."""
    remedy: str = ""
    """What to do; empty where all is well."""


def run_check(files: Sequence[Path], *, as_json: bool) -> int:
    """Judge files and print a line a figure.

    Returns:
        Exit code: 1 if a figure fails, else 0.

    Raises:
        ConfigError: a file is not there.
    """
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file; check the path")
    report = []
    for path in files:
        kind, findings = check_file(path)
        report.append((path, kind, findings))
        print(f"{path} ({kind})")
        for line in lines(findings):
            print(f"  {line}")
    ok = not any(finding.level == "fail" for _, _, findings in report for finding in findings)
    if as_json:
        told = [{"path": str(p), "kind": kind, "findings": [asdict(f) for f in found]} for p, kind, found in report]
        print(json.dumps({"ok": ok, "files": told}))
    return 0 if ok else 1


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings as a table."""
    for found in findings:
        remedy = f"; {found.remedy}" if found.remedy else ""
        threshold = f" ({found.threshold})" if found.threshold else ""
        yield f"{found.level:4}  {found.subject:15} {found.text}{threshold}{remedy}"


def check_file(path: Path) -> tuple[Literal["portrait", "audio"], list[Finding]]:
    """Judge one file; what it is, is told from its first bytes or else its name."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    is_webp = start[:4] == b"RIFF" and start[8:] == b"WEBP"
    if start.startswith(_PICTURE_STARTS) or is_webp or path.suffix.lower() in PORTRAITS:
        try:
            return "portrait", list(judge_portrait(measure_portrait(read_portrait(path))))
        except PortraitError as error:
            return "portrait", [_unreadable(str(error).removeprefix(f"--image is {path}: "))]
    try:
        return "audio", list(judge_sound(measure_sound(path)))
    except StreamingError as error:
        return "audio", [_unreadable(str(error))]


def judge_portrait(quality: PortraitQuality) -> Iterator[Finding]:
    """All figures of a portrait."""
    q, side = quality, min(quality.width_px, quality.height_px)
    size = f"{q.width_px}x{q.height_px} px"
    yield _at_least("size", side, 256, 64, size, "short side 256 px or more", "use a larger original")
    yield _at_least(
        "sharpness", q.sharpness, 50, 25, f"{q.sharpness:.0f}", "50 or more", "use a picture that is in focus"
    )
    text, want = f"brightness {q.brightness:.0f} of 255", "60 to 220"
    if q.brightness < 128:
        yield _at_least("exposure", q.brightness, 60, 30, text, want, "use a brighter picture")
    else:
        yield _at_most("exposure", q.brightness, 220, 240, text, want, "use a darker picture")
    remedy = "use a picture whose face is neither black nor burnt out"
    yield _at_most("lost detail", q.lost_percent, 5, 30, f"{q.lost_percent:.1f} %", "at most 5 %", remedy)
    text = f"left and right differ by {q.unevenness_stops:.2f} stops"
    yield _at_most("even light", q.unevenness_stops, 1.0, 2.5, text, "at most 1", "light the face from the front")
    remedy = "cut it closer to a square around head and shoulders"
    yield _at_most("aspect", q.aspect, 1.5, 4, f"{q.aspect:.2f} : 1", "at most 1.5 : 1", remedy)


def judge_sound(quality: SoundQuality) -> Iterator[Finding]:
    """All figures of a sound file."""
    q = quality
    remedy = "record at 16 kHz or more; what is missing cannot be brought back"
    yield _at_least("rate", q.rate_hz, 16_000, 8_000, f"{q.rate_hz} Hz", "16000 Hz or more", remedy)
    remedy = "give the voice's own channel; they are mixed to one"
    yield _at_most("channels", q.channels, 2, 64, f"{q.channels}", "1 or 2", remedy)
    text, want = f"{q.level_dbfs:.1f} dBFS", "-35 to -9 dBFS"
    if q.level_dbfs < -20:
        yield _at_least("level", q.level_dbfs, -35, -50, text, want, "raise it; below -50 dBFS nobody speaks")
    else:
        yield _at_most("level", q.level_dbfs, -9, 0, text, want, "lower it")
    remedy = "record nearer to the microphone, or take the noise out"
    yield _at_least("signal to noise", q.snr_db, 20, 10, f"{q.snr_db:.0f} dB", "20 dB or more", remedy)
    text = f"{q.clipped_percent:.3f} % of the samples"
    yield _at_most("clipping", q.clipped_percent, 0.01, 5, text, "at most 0.01 %", "record again at a lower gain")
    text = f"{q.leading_silence_s:.2f} s"
    remedy = "cut it off; the film begins with it"
    yield _at_most("leading silence", q.leading_silence_s, 1.0, float("inf"), text, "at most 1 s", remedy)
    note = f", figures of the first {MEASURED_S:.0f} s" if q.length_s > MEASURED_S else ""
    yield Finding("length", "ok", round(q.length_s, 3), f"{q.length_s:.2f} s{note}", "")


def _at_least(subject: str, value: float, ok: float, fail: float, text: str, want: str, remedy: str) -> Finding:
    return _finding(subject, "ok" if value >= ok else "warn" if value >= fail else "fail", value, text, want, remedy)


def _at_most(subject: str, value: float, ok: float, fail: float, text: str, want: str, remedy: str) -> Finding:
    return _finding(subject, "ok" if value <= ok else "warn" if value <= fail else "fail", value, text, want, remedy)


def _finding(subject: str, level: Level, value: float, text: str, want: str, remedy: str) -> Finding:
    return Finding(subject, level, round(float(value), 4), text, want, "" if level == "ok" else remedy)


def _unreadable(sentence: str) -> Finding:
    return Finding("file", "fail", None, "cannot serve", "", sentence)

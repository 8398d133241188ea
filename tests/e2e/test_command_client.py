"""The command-line client against the real server: a recorded voice goes in, and the file that comes out is in step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from client_demo.client import TalkConfig, talk
from client_demo.microphone import ClientError, InputError
from tests.e2e import lipsync
from tests.e2e.serving import ROOT, Server

MOUTH = (0.28, 0.50, 0.72, 0.88)
FPS = 25


def lips_of(path: Path) -> lipsync.LipSync:
    """How lips and sound of a recorded file belong together."""
    crops: list[np.ndarray] = []
    times: list[float] = []
    sound: list[np.ndarray] = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0], container.streams.audio[0]):
            if isinstance(frame, av.VideoFrame):
                grey = frame.to_ndarray(format="gray")
                height, width = grey.shape
                left, top, right, bottom = MOUTH
                region = grey[int(top * height) : int(bottom * height) : 4, int(left * width) : int(right * width) : 4]
                crops.append(region.ravel().astype(np.float64))
                times.append(frame.time)
            else:
                if not sound:
                    sound.append(np.zeros(round(frame.time * frame.sample_rate)))
                sound.append(frame.to_ndarray()[0])
                rate = frame.sample_rate
    samples = np.concatenate(sound)
    starts = [round(time * rate) for time in times]
    use = [k for k, start in enumerate(starts) if 0 <= start and start + rate // FPS <= len(samples)]
    rms = [np.sqrt(np.mean(samples[starts[k] : starts[k] + rate // FPS] ** 2)) for k in use]
    return lipsync.measure(np.array(crops)[use], np.array(rms), fps=FPS)


async def test_the_recording_is_in_step(server: Server, voice: Path, tmp_path: Path) -> None:
    out = tmp_path / "avatar.mp4"
    heard: dict[str, list[float]] = {"video": [], "audio": []}
    config = TalkConfig(server=server.url, audio=voice, out=out, seconds=22)
    report = await talk(config, lambda kind, seconds, frame: heard[kind].append(seconds))
    assert report.aligned, "no sender reports tied picture and sound together"
    assert report.pictures > 0.8 * 22 * FPS
    assert report.blocks > 40
    assert {"hello", "block", "stats", "pong"} <= set(report.events)
    for times in heard.values():
        assert times == sorted(times)
    assert server.sessions() == 0, "the session was not deleted"
    lips = lips_of(out)
    assert lips.correlation >= 0.5
    assert lips.shifted < 0.25
    assert abs(lips.lag_ms) <= 80


def test_the_command_prints_one_json_object(server: Server, voice: Path) -> None:
    command = [sys.executable, "-m", "client_demo.client", "--server", server.url, "--audio", str(voice)]
    run = subprocess.run(
        [*command, "--seconds", "3", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["pictures"] > 20
    assert report["seconds"] >= 3


async def test_refusals_name_the_reason(server: Server, voice: Path, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="nobody"):
        await talk(TalkConfig(server=server.url, audio=voice, avatar="nobody"))
    with pytest.raises(ClientError, match="was not reached"):
        await talk(TalkConfig(server="http://127.0.0.1:1", audio=voice))
    text = tmp_path / "notes.txt"
    text.write_text("no sound", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be decoded"):
        await talk(TalkConfig(server=server.url, audio=text))
    with pytest.raises(InputError, match="is no file"):
        TalkConfig(audio=tmp_path / "absent.wav")
    assert server.sessions() == 0


def test_bad_arguments_exit_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "client_demo.client", "--audio", str(tmp_path / "absent.wav")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "which is no file" in run.stderr

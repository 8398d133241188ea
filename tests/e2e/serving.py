"""The real server as a subprocess, the way a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import wave
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from scipy.signal import resample_poly

ROOT = Path(__file__).parents[2]
FAKE = {"model": {"kind": "fake"}, "server": {"drain_s": 1.0}}
READY_S = 120.0


class Server:
    """`python -m server.cli serve` on a free port of the loopback address.

    Args:
        config: a configuration's name, or one as a mapping, which is written to a file first.
        env: additional environment.
        port: 0 takes any free one.

    Raises:
        AssertionError: it did not get ready; the text ends with what it printed.
    """

    def __init__(self, config: str | dict[str, Any], env: dict[str, str] | None = None, port: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="avatarcast-e2e-")
        name = config
        if not isinstance(config, str):
            path = Path(self._folder.name) / "config.yaml"
            path.write_text(yaml.safe_dump(config), encoding="utf-8")
            name = str(path)
        command = [sys.executable, "-m", "server.cli", "serve", "--config", str(name), "--port", str(port)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[str] = []
        self._ready = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(READY_S) or not self.url:
            self.stop()
            raise AssertionError(f"{' '.join(command)} was not ready within {READY_S:.0f} s:\n" + self.tail())

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.rstrip())
            if found := re.match(r"ready (http://\S+)", line):
                self.url = found[1].rstrip("/")
                self._ready.set()
        self._ready.set()

    def tail(self) -> str:
        return "\n".join(self.printed[-40:])

    def get(self, path: str, headers: dict[str, str] | None = None) -> Any:
        """The JSON at a path."""
        request = urllib.request.Request(self.url + path, headers=headers or {})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a JSON body."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def delete(self, path: str) -> None:
        urllib.request.urlopen(urllib.request.Request(self.url + path, method="DELETE"), timeout=10).close()

    def sessions(self) -> int:
        return self.get("/v1/capacity")["sessions"]

    def engines(self) -> list[psutil.Process]:
        """The model's processes."""
        return [child for child in self.children() if process_name(child) == "engine"]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for what is left after 20 s; returns the exit code."""
        children = self.children() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for child in children:
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                child.kill()
        code = self.process.wait()
        self._folder.cleanup()
        return code


def process_name(process: psutil.Process) -> str:
    """What a child of server or browser is for: engine, resource tracker, or Chromium's own name for it."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    if "spawn_main" in line:
        return "engine"
    if "resource_tracker" in line:
        return "resource_tracker"
    if found := re.search(r"--utility-sub-type=(?:\w+\.mojom\.)?(\w+)", line):
        return f"chromium {found[1]}"
    if found := re.search(r"--type=([\w-]+)", line):
        return f"chromium {found[1]}"
    return "chromium browser" if "chrom" in line else process.name()


class CpuMeter:
    """Processor time per process between `start` and `stop`, by purpose.

    Args:
        roots: processes whose whole trees count, with the name of the root itself.
    """

    def __init__(self, roots: dict[int, str]) -> None:
        self._roots = roots
        self._before: dict[int, float] = {}
        self._started_s = 0.0

    def start(self) -> None:
        self._before = {pid: used for pid, (_, used) in self._sample().items()}
        self._started_s = time.monotonic()

    def stop(self) -> tuple[float, dict[str, float]]:
        """Seconds passed, and seconds of processor time by name."""
        total: dict[str, float] = {}
        for pid, (name, used) in self._sample().items():
            total[name] = total.get(name, 0.0) + used - self._before.get(pid, 0.0)
        return time.monotonic() - self._started_s, total

    def _sample(self) -> dict[int, tuple[str, float]]:
        found: dict[int, tuple[str, float]] = {}
        for pid, name in self._roots.items():
            root = psutil.Process(pid)
            for process in [root, *root.children(recursive=True)]:
                if process.pid in found:  # counted with a root of its own
                    continue
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                found[process.pid] = (name if process.pid == pid else process_name(process), times.user + times.system)
        return found


def speech_wav(path: Path, *, repeat_to_s: float = 0.0) -> Path:
    """Write recorded human speech (LibriVox sentences of Debian's pocketsphinx-testdata), 48 kHz mono s16.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    listed = subprocess.run(["dpkg", "-L", "pocketsphinx-testdata"], capture_output=True, text=True, check=False).stdout
    files = sorted(Path(line) for line in listed.splitlines() if "librivox" in line and line.endswith(".wav"))
    if not files:
        raise FileNotFoundError("recorded speech is missing: apt-get install pocketsphinx-testdata")
    pieces = []
    for file in files:
        with wave.open(str(file)) as source:
            assert source.getframerate() == 16_000
            sound = np.frombuffer(source.readframes(-1), "<i2").astype(np.float64)
        pieces += [resample_poly(sound, 3, 1), np.zeros(24_000)]
    sound = np.clip(np.concatenate(pieces), -32_768, 32_767).astype("<i2")
    if repeat_to_s:
        sound = np.resize(sound, int(repeat_to_s * 48_000))
    with wave.open(str(path), "wb") as sink:
        sink.setnchannels(1)
        sink.setsampwidth(2)
        sink.setframerate(48_000)
        sink.writeframes(sound.tobytes())
    return path

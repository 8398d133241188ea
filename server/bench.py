"""`avatarcast bench live`: one real session on the real clock, measured where it counts.

The engine runs in its process, a voice is fed in as a microphone would, pictures go through the encoder and leave at
their time. What a network and a browser add is not in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import uvloop
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from server.config import Config, Secrets
from server.errors import ConfigError, StartError
from server.hub import Hub
from server.live import LiveSession
from server.machine import inspect_machine
from server.metrics import percentile
from server.schemas import NewSession
from server.tracks import AudioTrack, VideoTrack
from streaming.errors import MediaFileError
from streaming.events import Event
from streaming.film import read_sound

RATE_HZ = 48_000
PIECE = RATE_HZ // 50
WARM_UP_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBench:
    """What `bench live` is asked to do."""

    seconds: float = 30.0
    """Measured time, after a warm-up."""
    audio: Path | None = None
    """Voice to feed in; a synthetic one without."""

    def __post_init__(self) -> None:
        if not 3 <= self.seconds <= 86_400:
            raise ConfigError(f"--seconds is {self.seconds}; it must be 3 to 86400")
        if self.audio is not None and not self.audio.is_file():
            raise ConfigError(f"--audio is {self.audio}, which is not a file; check the path")


def run_live(config: Config, bench: LiveBench, *, as_json: bool) -> int:
    """Measure and print; the exit code."""
    voice = load_voice(bench.audio) if bench.audio else synthetic_voice(20.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure_live(config, bench.seconds, voice))
    for line in table(figures):
        print(line)
    if as_json:
        print(json.dumps(figures))
    return 0


async def measure_live(config: Config, seconds: float, voice: np.ndarray) -> dict[str, object]:
    """Run one session and measure it.

    Args:
        voice: [n] float32, 48 kHz mono; repeated as long as needed.

    Raises:
        StartError: the engine cannot start.
    """
    hub = Hub(config, Secrets())
    await hub.start()
    try:
        await hub.wait_started()
        if hub.start_error is not None:
            raise StartError(hub.start_error)
        live = await hub.open_session(NewSession(), None, client="bench")
        return await _Run(hub, live, voice).measure(seconds)
    finally:
        await hub.stop()


def load_voice(path: Path) -> np.ndarray:
    """A sound file as [n] float32, 48 kHz mono.

    Raises:
        MediaFileError: it cannot be read or holds no sound.
    """
    resampler = AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
    pieces = [out.to_ndarray()[0] for frame in read_sound(path) for out in resampler.resample(_plain(frame))]
    if not pieces:
        raise MediaFileError(f"{path.name} holds no sound; give another file")
    return np.concatenate(pieces)


def _plain(frame: AudioFrame) -> AudioFrame:
    frame.pts = None  # timestamps of damaged files would only disturb
    return frame


def synthetic_voice(seconds: float) -> np.ndarray:
    """Phrases with pauses that voice activity takes for speech: harmonics of a gliding pitch under syllables.

    Returns:
        [n] float32, 48 kHz mono.
    """
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch_hz = 120 + 30 * np.sin(2 * np.pi * 0.7 * at)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    voice = sum(np.sin(k * phase + k * k) / k for k in range(1, 25))
    syllables = 0.35 + 0.65 * np.clip(np.sin(2 * np.pi * 4.1 * at), 0, 1)
    phrases = (at % 3.1) < 2.3
    sound = voice * syllables * phrases
    return (0.25 * sound / np.abs(sound).max()).astype(np.float32)


class Visitor:
    """One session with somebody who speaks into it and receives it, and what that one sees.

    Args:
        live: the session, just opened.
        voice: [n] float32, 48 kHz mono; repeated as long as needed.
    """

    def __init__(self, live: LiveSession, voice: np.ndarray) -> None:
        self.live = live
        self.latencies_s: list[float] = []
        """Of every picture, from its sound's arrival to its leaving."""
        self.blocks: list[Event] = []
        self._voice = (np.clip(voice, -1, 1) * 32767).astype(np.int16)
        self._flowing = asyncio.Event()

    async def __aenter__(self) -> Visitor:
        """Speak, watch and listen; returns once blocks come."""
        self._tracks = VideoTrack(self.live.broadcast), AudioTrack(self.live.broadcast)
        works = self._speak(), self._watch(self._tracks[0]), self._listen(self._tracks[1])
        self._tasks = [asyncio.create_task(work) for work in works]
        self._unsubscribe = self.live.session.subscribe(self._note)
        await self._flowing.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for track in self._tracks:
            track.stop()

    def forget(self) -> None:
        """Drop what was seen so far."""
        self.latencies_s.clear()
        self.blocks.clear()

    async def _speak(self) -> None:
        """Feed the voice as a microphone does: 20 ms at a time, in real time."""
        start_s, sent = time.monotonic(), 0
        while True:
            piece = np.take(self._voice, range(sent, sent + PIECE), mode="wrap")
            frame = AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE_HZ, sent
            frame.time_base = Fraction(1, RATE_HZ)
            self.live.session.push_audio(frame)
            sent += PIECE
            await asyncio.sleep(max(0.0, start_s + sent / RATE_HZ - time.monotonic()))

    async def _watch(self, track: VideoTrack) -> None:
        try:
            while True:
                packet = await track.recv()
                index = round(packet.pts * packet.time_base * self.live.session.playout.fps)
                latency_s = self.live.figures.mouth_latency_s(index, time.monotonic())
                if latency_s is not None:
                    self.latencies_s.append(latency_s)
        except MediaStreamError:
            return

    async def _listen(self, track: AudioTrack) -> None:
        try:
            while True:
                await track.recv()
        except MediaStreamError:
            return

    def _note(self, event: Event) -> None:
        if event.type == "block":
            self.blocks.append(event)
            self._flowing.set()


class _Run:
    """One measured session."""

    def __init__(self, hub: Hub, live: LiveSession, voice: np.ndarray) -> None:
        self._hub = hub
        self._live = live
        self._visitor = Visitor(live, voice)

    async def measure(self, seconds: float) -> dict[str, object]:
        async with self._visitor as visitor:
            await asyncio.sleep(WARM_UP_S)
            visitor.forget()
            before, encoded_s = cpu_s(self._hub), self._live.figures.encode_s
            stats, began_s = self._live.session.stats(), time.monotonic()
            await asyncio.sleep(seconds)
            passed_s = time.monotonic() - began_s
            after = cpu_s(self._hub)
            used = {name: after[name] - before.get(name, 0.0) for name in after}
            used["encoder"] = self._live.figures.encode_s - encoded_s
            used["server"] -= used["encoder"]
            return self._figures(passed_s, used, stats.underruns, stats.deadline_misses)

    def _figures(self, passed_s: float, used: dict[str, float], underruns: int, misses: int) -> dict[str, object]:
        hub, stats = self._hub, self._live.session.stats()
        info = hub.engine.info
        assert info is not None
        period_ms = info.geometry.block_ms
        blocks = passed_s / info.geometry.block_s
        works = [block_work_ms(event) for event in self._visitor.blocks]
        encode_ms = 1000 * used["encoder"] / blocks
        rss = {name: round(size / 1e6, 1) for name, size in memory_bytes(hub).items()}
        machine = inspect_machine()
        return {
            "bench": "live",
            "model": info.name,
            "size": f"{info.geometry.width}x{info.geometry.height}",
            "profile": info.profile,
            "machine": {"architecture": machine.architecture, "cores": machine.cores},
            "seconds": round(passed_s, 1),
            "blocks": len(works),
            "block_ms": spread(works),
            "rtf": round(percentile(works, 0.5) / period_ms, 3),
            "rtf_with_encode": round((percentile(works, 0.5) + encode_ms) / period_ms, 3),
            "mouth_latency_ms": spread([1000 * s for s in self._visitor.latencies_s]),
            "cpu_ms_per_block": {name: round(1000 * s / blocks, 1) for name, s in used.items()},
            "cpu_cores": round(sum(used.values()) / passed_s, 3),
            "rss_mb": rss | {"total": round(sum(rss.values()), 1)},
            "underruns": stats.underruns - underruns,
            "deadline_misses": stats.deadline_misses - misses,
            "av_drift_ms": round(1000 * self._live.av_drift_s, 2),
            "loop_lag_p99_ms": round(1000 * hub.lag.p99_s(), 2),
        }


def cpu_s(hub: Hub) -> dict[str, float]:
    """Processor time so far, by process."""
    found = {}
    for name, pid in (("server", psutil.Process().pid), ("model", hub.engine.pid)):
        times = psutil.Process(pid).cpu_times()
        found[name] = times.user + times.system
    return found


def memory_bytes(hub: Hub) -> dict[str, int]:
    """Resident memory: of this process, and of all the model's."""
    found = {"server": psutil.Process().memory_info().rss}
    with contextlib.suppress(psutil.Error):
        ranks = [psutil.Process(pid).memory_info().rss for pid in hub.engine.pids]
        if ranks:
            found["model"] = sum(ranks)
    return found


def block_work_ms(event: Event) -> float:
    """Milliseconds of the model's work that a `block` event reports."""
    stages = (event.data.get(name, 0.0) for name in ("audio_ms", "dit_ms", "vae_ms"))
    return sum(float(value) for value in stages)  # type: ignore[arg-type]


def spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50": round(percentile(values, 0.5), 1), "p95": round(percentile(values, 0.95), 1)}


def table(figures: dict) -> list[str]:
    """The figures for people."""
    block, latency, cpu, rss = (figures[k] for k in ("block_ms", "mouth_latency_ms", "cpu_ms_per_block", "rss_mb"))
    rows = [
        ("model", f"{figures['model']} {figures['size']}, {figures['machine']['cores']} cores"),
        ("block time p50 / p95", f"{block['p50']:.0f} / {block['p95']:.0f} ms"),
        ("RTF / with encode", f"{figures['rtf']:.2f} / {figures['rtf_with_encode']:.2f}"),
        ("microphone to lip p50 / p95", f"{latency['p50']:.0f} / {latency['p95']:.0f} ms"),
        ("core-ms a block", ", ".join(f"{name} {value:.0f}" for name, value in cpu.items())),
        ("cores in use", f"{figures['cpu_cores']:.2f}"),
        ("memory", ", ".join(f"{name} {value:.0f} MB" for name, value in rss.items())),
        ("underruns, missed deadlines", f"{figures['underruns']}, {figures['deadline_misses']}"),
        ("picture after sound", f"{figures['av_drift_ms']:.1f} ms"),
        ("event loop lag p99", f"{figures['loop_lag_p99_ms']:.1f} ms"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]

"""Ten minutes of one session at engine level: memory flat, latency constant, nothing missed.

Runs the real engine process on the real clock with the shipped checkpoint if it is there, else with the stand-in model.
`AVATARCAST_SOAK_S` changes the length, `AVATARCAST_SOAK_KIND=fake` takes the stand-in. The machine must be free for it:
how long its processes waited for a processor is printed beside the result.
"""

import asyncio
import contextlib
import dataclasses
import gc
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.interface import SessionSpec
from streaming.clock import RealClock
from streaming.config import StreamingConfig
from streaming.engine import Engine
from streaming.session import Session
from tests.fakes import babble, microphone_frame

LENGTH_S = float(os.environ.get("AVATARCAST_SOAK_S", "600"))
WARM_S = min(60.0, LENGTH_S / 5)
TINY = Path(__file__).parents[2] / "model" / "checkpoints" / "tiny.safetensors"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(LENGTH_S + 300)]


def engine_spec() -> dict[str, object]:
    if TINY.exists() and os.environ.get("AVATARCAST_SOAK_KIND") != "fake":
        return {"kind": "checkpoint", "checkpoint": "tiny"}
    return {"kind": "fake", "block_s": 0.25, "threads": 1}


class Sender:
    """Pulls a session's pictures and sound when they are due, and notes how it went."""

    def __init__(self, session: Session, clock: RealClock) -> None:
        self._session, self._clock = session, clock
        self.lags_s: list[float] = []
        self.fresh = 0
        self.offsets: set[int] = set()

    async def pictures(self) -> None:
        playout = self._session.playout
        while True:
            await self._clock.sleep_until(playout.next_picture_s)
            due_s = playout.next_picture_s
            picture = playout.frame_due(self._clock.now())
            if picture is not None:
                self.lags_s.append(self._clock.now() - due_s)
                if picture.is_fresh:
                    self.fresh += 1
                    self.offsets.add(picture.index - picture.frame)

    async def sounds(self) -> None:
        playout = self._session.playout
        while True:
            await self._clock.sleep_until(playout.next_sound_s)
            while playout.next_audio(self._clock.now()) is not None:
                pass


async def speak(session: Session, clock: RealClock) -> None:
    """Talk and pause for ever, as a microphone: 20 ms frames of 48 kHz with timestamps."""
    sound = np.concatenate([babble(4.0), np.zeros(32_000), babble(2.0, seed=1), np.zeros(48_000)]).astype(np.float32)
    sound = np.repeat(sound, 3)
    start_s, index = clock.now(), 0
    while True:
        await clock.sleep_until(start_s + index * 0.02)
        at = index * 960 % (len(sound) - 960)
        session.push_audio(microphone_frame(sound[at : at + 960], pts=index * 960, rate_hz=48_000))
        index += 1


def waited_s(pid: int) -> float:
    """Seconds that a process's first thread was ready to run but had no processor; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def resident_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


async def test_ten_minutes_are_flat():
    clock = RealClock()
    engine = Engine(engine_spec(), StreamingConfig().engine)
    await engine.start()
    info = await engine.ready()
    image = np.full((info.geometry.height, info.geometry.width, 3), 150, np.uint8)
    session = Session(
        SessionSpec(session="soak", image=image),
        engine=engine,
        config=StreamingConfig(),
        clock=clock,
        fps=info.geometry.fps,
    )
    told: dict[str, list[dict]] = {"stats": [], "block": []}
    session.subscribe(lambda event: told[event.type].append(dict(event.data)) if event.type in told else None)
    stats, blocks = told["stats"], told["block"]
    await session.start()
    sender = Sender(session, clock)
    tasks = [asyncio.create_task(work) for work in (sender.pictures(), sender.sounds(), speak(session, clock))]
    try:
        await asyncio.sleep(WARM_S)
        gc.collect()
        warm = {"server": resident_mb(os.getpid()), "model": resident_mb(engine.pid)}
        before = dataclasses.replace(session.playout.counters)
        misses, began = session.blocks.counters.deadline_misses, time.monotonic()
        waited = waited_s(os.getpid()), waited_s(engine.pid)
        sender.lags_s.clear()
        stats.clear()
        blocks.clear()
        await asyncio.sleep(LENGTH_S - WARM_S)
        gc.collect()
        length_s = time.monotonic() - began
        waited = waited_s(os.getpid()) - waited[0], waited_s(engine.pid) - waited[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    end = {"server": resident_mb(os.getpid()), "model": resident_mb(engine.pid)}
    counters = session.playout.counters
    growth = {name: round(end[name] - warm[name], 1) for name in end}
    latency = [entry["latency_ms"] for entry in stats]
    creep_ms = float(np.mean(latency[-20:]) - np.mean(latency[:20]))
    print(
        f"{info.name}: {length_s:.0f} s, memory {end} MB, growth {growth} MB, latency creep {creep_ms:+.1f} ms, "
        f"underruns {counters.underruns - before.underruns}, picture lag p99 "
        f"{1000 * np.percentile(sender.lags_s, 99):.1f} ms, block p95 {stats[-1]['block_ms_p95']} ms"
    )
    slowest = max(blocks, key=lambda block: block["arrived_ms"] - block["window_closed_ms"])
    print(
        f"slowest block: {slowest}; worst picture lag {1000 * max(sender.lags_s):.0f} ms; "
        f"waited for a processor: server {waited[0]:.1f} s, model {waited[1]:.1f} s"
    )
    await session.close()
    await engine.stop()
    assert all(mb < 10 for mb in growth.values()), growth
    assert abs(creep_ms) < 40
    assert counters.underruns == before.underruns and session.blocks.counters.deadline_misses == misses
    assert len(sender.offsets) == 1, "frames keep their distance to the clock"
    assert counters.fresh_frames - before.fresh_frames >= 0.995 * length_s * info.geometry.fps

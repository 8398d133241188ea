"""A session on the real clock with the real process: smooth while it works, held while it is dead, smooth again."""

import asyncio
import os
import signal
import time

import numpy as np

from model.interface import SessionSpec
from streaming.clock import RealClock
from streaming.config import EngineConfig, StreamingConfig
from streaming.engine import Engine
from streaming.session import Session
from tests.fakes import babble, microphone_frame

CONFIG = StreamingConfig(engine=EngineConfig(restart_delays_s=(0.1, 0.2)))


class Live:
    """One session with somebody who speaks and somebody who watches."""

    def __init__(self, engine: Engine) -> None:
        self.clock = RealClock()
        image = np.full((256, 256, 3), 128, np.uint8)
        spec = SessionSpec(session="live", image=image)
        self.session = Session(spec, engine=engine, config=CONFIG, clock=self.clock)
        self.pictures: list = []
        self.sounds: list = []
        self.lags_s: list[float] = []
        self.events: list = []
        self.session.subscribe(self.events.append)

    async def watch(self) -> None:
        playout = self.session.playout
        while True:
            await self.clock.sleep_until(min(playout.next_picture_s, playout.next_sound_s))
            if (picture := playout.frame_due(self.clock.now())) is not None:
                self.pictures.append(picture)
            while (sound := playout.next_audio(self.clock.now())) is not None:
                self.sounds.append(sound)

    async def speak(self) -> None:
        sound, start_s = babble(60.0), self.clock.now()
        for index in range(3000):
            await self.clock.sleep_until(start_s + index * 0.02)
            self.session.push_audio(microphone_frame(sound[index * 320 : index * 320 + 320], pts=index * 320))

    async def feel(self) -> None:
        """Measure how late the loop wakes."""
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.01)
            self.lags_s.append(time.monotonic() - asked - 0.01)


async def test_a_kill_is_seen_within_a_second_and_survived():
    engine = Engine({"kind": "fake", "block_s": 0.2, "threads": 1}, CONFIG.engine)
    await engine.start()
    live = Live(engine)
    await live.session.start()
    tasks = [asyncio.create_task(work) for work in (live.watch(), live.speak(), live.feel())]
    try:
        await engine.ready()
        await asyncio.sleep(2.5)
        assert live.pictures[-1].is_fresh and live.session.state == "speaking"
        killed_at = len(live.pictures)
        os.kill(engine.pid, signal.SIGKILL)
        await asyncio.sleep(1.0)
        states = [event.data["state"] for event in live.events if event.type == "state"]
        assert "degraded" in states
        await asyncio.sleep(3.0)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await live.session.close()
        await engine.stop()
    assert engine.restarts == 1 and engine.pid is None
    after = live.pictures[killed_at:]
    assert after[-1].is_fresh, "it goes on by itself"
    assert any(not picture.is_fresh for picture in after)
    for sent, per_s in ((live.pictures, 25), (live.sounds, 50)):
        indices = [item.index for item in sent]
        assert indices == sorted(set(indices))
        assert len(indices) >= 0.97 * per_s * 6, "nothing stops while the model is dead"
    offsets = {picture.index - picture.frame for picture in live.pictures if picture.is_fresh}
    assert len(offsets) == 1, "and latency is what it was"
    print(f"loop lag p99 {1000 * np.percentile(live.lags_s, 99):.1f} ms")
    assert np.percentile(live.lags_s, 95) < 0.02

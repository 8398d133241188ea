"""Collaborators for tests: an engine in the test's own process, on any clock, and sound to feed it with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np

from model.control import Done, Ready, Report, Step
from model.fake import FakeConfig, FakeModel
from model.interface import AvatarModel, SessionSpec
from model.worker import Worker
from streaming.clock import VirtualClock
from streaming.config import EngineConfig, StreamingConfig
from streaming.engine import Engine
from streaming.events import Event
from streaming.judge import FRAME_SAMPLES
from streaming.playout import Picture
from streaming.session import Session

PORTRAIT = np.full((64, 64, 3), 128, np.uint8)


class InProcessEngine(Engine):
    """`Engine` without a process: the same bookkeeping over a `Worker` on the test's loop and clock.

    Args:
        model: called on the loop.
        clock: tells when blocks begin and end.
        block_s: what a block pretends to take; change it at any time.
    """

    def __init__(
        self,
        model: AvatarModel | None = None,
        clock: VirtualClock | None = None,
        *,
        block_s: float | None = None,
        config: EngineConfig | None = None,
    ) -> None:
        super().__init__({"kind": "in-process"}, config)
        self.model = model or FakeModel(FakeConfig(width=64, height=64))
        self.clock = clock or VirtualClock()
        self.block_s = self.model.info.block_s if block_s is None else block_s
        self.model.info = replace(self.model.info, block_s=self.block_s)
        self.requests: list = []
        self._shelf: dict[int, np.ndarray] = {}
        self._worker: Worker | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def held_blocks(self) -> int:
        """Blocks of pictures that nobody has released."""
        return len(self._shelf)

    def load(self) -> None:
        """Begin to start; `start` makes it ready."""
        self._set_state("starting")

    async def start(self) -> None:
        self.load()
        self._revive()

    async def stop(self) -> None:
        await self._end()
        self._set_state("stopped")

    async def kill(self) -> None:
        """The process dies."""
        await self._end()
        for tenant in self._tenants.values():
            tenant.is_open = False
            tenant.pending.clear()
        self.failure = "killed by the test"
        self._set_state("degraded")

    def revive(self) -> None:
        """A new one is ready."""
        self.restarts += 1
        self._revive()

    def write(self, frames: np.ndarray) -> int | None:
        slot = max(self._shelf, default=-1) + 1
        self._shelf[slot] = frames
        return slot

    def release(self, slot: int) -> None:
        del self._shelf[slot]

    def _revive(self) -> None:
        self._worker = Worker(self.model, store=self, report=self._tell, now=self.clock.now)
        self._task = asyncio.create_task(self._work(), name="in-process engine")
        self._receive(Ready(self.model.info, None))

    async def _end(self) -> None:
        self._worker = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _send(self, command) -> None:
        if isinstance(command, Step):
            self.requests.append(command.request)
        if self._worker is not None:
            self._worker.put(command)
            self._wake.set()

    async def _work(self) -> None:
        while True:
            job = self._worker.take()
            if job is None:
                self._wake.clear()
                wait_s = self._worker.desk.wait_s(self.clock.now())
                timer = None if wait_s is None else self.clock.call_at(self.clock.now() + wait_s, self._wake.set)
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
                continue
            self._started_s = self.clock.now()
            if isinstance(job, Step):
                await self.clock.sleep_until(self._started_s + self.block_s)
            self._worker.perform(job)

    def _tell(self, report: Report) -> None:
        if isinstance(report, Done):
            report = replace(report, started_s=self._started_s)
        asyncio.get_running_loop().call_soon(self._receive, report)

    def _pictures(self, slot: int) -> tuple[np.ndarray, Callable[[], None]]:
        def release() -> None:
            self._shelf.pop(slot, None)

        return self._shelf[slot], release


class Room:
    """A session with its engine on a virtual clock, and everything that happens in it."""

    def __init__(
        self,
        *,
        block_s: float = 0.1,
        model: AvatarModel | None = None,
        config: StreamingConfig | None = None,
        engine: InProcessEngine | None = None,
        **session: object,
    ) -> None:
        self.clock = engine.clock if engine else VirtualClock()
        self.engine = engine or InProcessEngine(model, self.clock, block_s=block_s)
        spec = SessionSpec(
            session=str(session.pop("name", "s")), image=session.pop("image", PORTRAIT), prompt="", seed=3
        )
        fps = self.engine.model.info.geometry.fps
        self.session = Session(
            spec, engine=self.engine, config=config or StreamingConfig(), clock=self.clock, fps=fps, **session
        )
        self.events: list[Event] = []
        self.pictures: list = []
        self.sounds: list = []
        self._fed = 0
        self.session.subscribe(self.events.append)

    async def __aenter__(self) -> Room:
        if self.engine.state == "stopped":
            await self.engine.start()
        await self.session.start()
        await self.clock.settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        with contextlib.suppress(Exception):
            await self.engine.stop()

    def told(self, type_: str) -> list[Event]:
        """Events of one type."""
        return [event for event in self.events if event.type == type_]

    def heard(self) -> np.ndarray:
        """All sound that left, 48 kHz."""
        return np.concatenate([sound.pcm for sound in self.sounds])

    def loud(self, begin_s: float, end_s: float) -> float:
        """Share of 20 ms pieces with sound between two session media times."""
        pieces = [sound.pcm for sound in self.sounds if begin_s <= sound.index * 0.02 < end_s]
        return float(np.mean([np.abs(pcm).max() > 600 for pcm in pieces]))

    def media_s(self, stream_s: float) -> float:
        """Session media time at which a moment of the stream is presented."""
        return self.session.playout.sample_s(round(stream_s * 16_000)) - self.session.playout.start_s

    def now_s(self) -> float:
        """Session media time."""
        return self.clock.now() - self.session.playout.start_s

    @property
    def start_s(self) -> float:
        """Clock time of sample 0."""
        assert self.session.stream is not None
        return self.session.stream.start_s

    async def until(self, stream_s: float) -> None:
        """Let the stream run to a time, pulling pictures and sound as a sender does."""
        await self.run(self.start_s + stream_s - self.clock.now())

    async def run(self, seconds: float) -> None:
        """Let time pass, pulling pictures and sound when they are due."""
        end_s = self.clock.now() + seconds
        playout = self.session.playout
        while (next_s := min(playout.next_picture_s, playout.next_sound_s)) <= end_s + 1e-9:
            await self.clock.advance_to(next_s)
            self.pull()
        await self.clock.advance_to(end_s)

    def pull(self) -> None:
        """Take what is due."""
        now_s = self.clock.now()
        if (picture := self.session.playout.frame_due(now_s)) is not None:
            self.pictures.append(picture)
        while (sound := self.session.playout.next_audio(now_s)) is not None:
            self.sounds.append(sound)

    async def speak(self, sound: np.ndarray, chunk: int = FRAME_SAMPLES) -> None:
        """Feed 16 kHz sound as a microphone does, from the next sample of the clock on, in real time."""
        for at in range(0, len(sound), chunk):
            frame = microphone_frame(sound[at : at + chunk], pts=self._fed)
            self._fed += chunk
            self.session.push_audio(frame)
            await self.run(chunk / 16_000)


def mouth_opening(picture: Picture) -> float:
    """How much of the stand-in's mouth is dark in a picture of 64x64: 0 closed."""
    region = picture.image[36:54, 22:42].astype(int).mean(-1)
    return float((region < 70).mean())


def microphone_frame(samples: np.ndarray, *, pts: int | None = None, rate_hz: int = 16_000) -> av.AudioFrame:
    """A mono float frame."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono")
    frame.sample_rate = rate_hz
    frame.pts = pts
    if pts is not None:
        frame.time_base = Fraction(1, rate_hz)
    return frame


def babble(seconds: float, seed: int = 0, level: float = 0.25) -> np.ndarray:
    """Sound that voice detectors take for speech: harmonics of a gliding pitch under syllables. 16 kHz float32."""
    rng = np.random.default_rng(seed)
    num = int(seconds * 16_000)
    at = np.arange(num) / 16_000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * at + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 25))
    syllables = 0.35 + 0.65 * np.clip(np.sin(2 * np.pi * 4.1 * at + rng.uniform(0, 6)), 0, 1)
    out = voice * syllables
    return (level * out / np.abs(out).max()).astype(np.float32)

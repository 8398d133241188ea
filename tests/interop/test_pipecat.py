"""The real `pipecat-ai` drives a session: a pipeline's speech goes in, pictures with their sound come out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from client_demo.pipecat_service import AvatarcastVideoService
from client_demo.remote_avatar import RemoteConfig
from tests.fakes import babble
from tests.unit.server.running import Running, running

RATE_HZ = 24_000


class Sink(FrameProcessor):
    """Keeps what reaches the transport's place, with the time."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[float, Frame]] = []
        self._came = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append((time.monotonic(), frame))
        self._came.set()
        await self.push_frame(frame, direction)

    def of(self, kind: type) -> list[Any]:
        return [frame for _, frame in self.frames if isinstance(frame, kind)]

    async def until(self, condition: Callable[[], bool], within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._came.clear()
                await self._came.wait()


class Bot:
    """A running pipeline of the service alone."""

    def __init__(self, config: RemoteConfig) -> None:
        self.sink = Sink()
        self.errors: list[ErrorFrame] = []
        service = AvatarcastVideoService(config)
        pipeline = Pipeline([service, self.sink])
        self.worker = PipelineWorker(
            pipeline, cancel_on_idle_timeout=False, enable_rtvi=False, params=PipelineParams(enable_metrics=True)
        )
        self._started = asyncio.Event()

        @self.worker.event_handler("on_pipeline_started")
        async def started(*_: object) -> None:
            self._started.set()

        @self.worker.event_handler("on_pipeline_error")
        async def failed(_: object, frame: ErrorFrame) -> None:
            self.errors.append(frame)

    async def __aenter__(self) -> Bot:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        self._running = asyncio.create_task(runner.run())
        await asyncio.wait_for(self._started.wait(), 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.queue_frame(EndFrame())
        await asyncio.wait_for(self._running, 30)

    async def say(self, seconds: float) -> None:
        """What a speech service sends: a whole sentence at once, in pieces of 40 ms."""
        sound = babble(seconds + 0.01)
        at_16k = np.arange(int(seconds * RATE_HZ)) * 16_000 / RATE_HZ
        pcm = (np.interp(at_16k, np.arange(len(sound)), sound) * 30_000).astype("<i2")
        frames: list[Frame] = [TTSStartedFrame()]
        for at in range(0, len(pcm), RATE_HZ // 25):
            frames.append(TTSAudioRawFrame(pcm[at : at + RATE_HZ // 25].tobytes(), RATE_HZ, 1))
        await self.worker.queue_frames([*frames, TTSStoppedFrame()])


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


def at(server: Running) -> RemoteConfig:
    return RemoteConfig(server=f"http://127.0.0.1:{server.port}")


async def test_a_sentence_comes_back_as_pictures_and_its_sound(server: Running) -> None:
    async with Bot(at(server)) as bot:
        await bot.sink.until(lambda: len(bot.sink.of(OutputImageRawFrame)) > 10)
        assert bot.sink.of(TTSAudioRawFrame) == [], "sound comes while somebody speaks, and then only"
        asked_s = time.monotonic()
        await bot.say(1.5)
        await bot.sink.until(lambda: bool(bot.sink.of(TTSStoppedFrame)))
    heard = np.concatenate([np.frombuffer(frame.audio, "<i2") for frame in bot.sink.of(TTSAudioRawFrame)])
    assert 1.4 <= len(heard) / 48_000 <= 1.75, "the end of the pipeline waits for what was said"
    assert np.abs(heard[: 48_000 * 3 // 2]).max() > 5000
    picture = bot.sink.of(OutputImageRawFrame)[-1]
    assert picture.size == (64, 64) and picture.format == "RGB" and len(picture.image) == 64 * 64 * 3
    order = [(at_s, type(frame)) for at_s, frame in bot.sink.frames if isinstance(frame, TTSAudioRawFrame)]
    span_s = order[-1][0] - order[0][0]
    seen = [at_s for at_s, frame in bot.sink.frames if isinstance(frame, OutputImageRawFrame) and at_s >= order[0][0]]
    fps = sum(at_s <= order[-1][0] for at_s in seen) / span_s
    print(f"Pipecat: {fps:.1f} fps, first sound {1000 * (order[0][0] - asked_s):.0f} ms after the sentence")
    assert fps == pytest.approx(22, abs=5)
    assert bot.errors == []


async def test_an_interruption_silences_the_avatar_and_the_next_sentence_is_heard(server: Running) -> None:
    async with Bot(at(server)) as bot:
        await bot.say(5.0)
        await bot.sink.until(lambda: len(bot.sink.of(TTSAudioRawFrame)) > 25)
        await bot.worker.queue_frames([UserStartedSpeakingFrame(), InterruptionFrame()])
        await bot.sink.until(lambda: bool(bot.sink.of(InterruptionFrame)))
        cut_s = next(at_s for at_s, frame in bot.sink.frames if isinstance(frame, InterruptionFrame))
        await asyncio.sleep(0.6)
        late = [at_s - cut_s for at_s, frame in bot.sink.frames if isinstance(frame, TTSAudioRawFrame)]
        assert max(late) < 0.15, "nothing of the sentence is heard after the interruption"
        [session] = (await server.http.get("/v1/sessions")).json()
        assert session["state"] == "listening"
        before = len(bot.sink.of(TTSAudioRawFrame))
        await bot.say(1.0)
        await bot.sink.until(lambda: len(bot.sink.of(TTSAudioRawFrame)) - before > 40)
    assert bot.errors == []
    assert (await server.http.get("/v1/capacity")).json()["sessions"] == 0, "the session is given back"


async def test_without_a_server_the_pipeline_says_so_and_runs_on() -> None:
    async with Bot(RemoteConfig(server="http://127.0.0.1:9")) as bot:
        await bot.say(0.2)
        await bot.sink.until(lambda: bool(bot.sink.of(TTSStoppedFrame)))
    assert "was not reached" in bot.errors[0].error
    assert len(bot.sink.of(TTSAudioRawFrame)) == 5, "speech passes through"

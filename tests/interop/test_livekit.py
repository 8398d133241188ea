"""The real `livekit-agents` drives a session: an agent's audio output, the avatar's receiver and runner are its own.

There is no LiveKit server here, so the room between the two is `livekit_room`; media sources are LiveKit's native ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from livekit import api, rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.io import PlaybackFinishedEvent

from client_demo.livekit_worker import RoomConfig, room_token, serve_room
from client_demo.microphone import InputError
from client_demo.remote_avatar import RemoteConfig
from tests.fakes import babble
from tests.interop.livekit_room import Room, pair
from tests.unit.server.running import running


@dataclass
class Scene:
    """An agent and its avatar in a room, and all that LiveKit was given to send."""

    agent: Room
    avatar: Room
    output: DataStreamAudioOutput
    pictures: list[tuple[float, rtc.VideoFrame]] = field(default_factory=list)
    sounds: list[tuple[float, rtc.AudioFrame]] = field(default_factory=list)
    reports: asyncio.Queue[PlaybackFinishedEvent] = field(default_factory=asyncio.Queue)

    async def say(self, seconds: float, rate_hz: int = 24_000, channels: int = 1) -> None:
        """What an agent does with a sentence: all of it at once, then the end."""
        sound = babble(seconds + 0.01)
        at = np.arange(int(seconds * rate_hz)) * 16_000 / rate_hz
        pcm = (np.interp(at, np.arange(len(sound)), sound) * 30_000).astype("<i2").repeat(channels)
        step = rate_hz // 10 * channels
        for start in range(0, len(pcm), step):
            piece = pcm[start : start + step]
            await self.output.capture_frame(rtc.AudioFrame(piece.tobytes(), rate_hz, channels, len(piece) // channels))
        self.output.flush()

    async def report(self, within_s: float = 10.0) -> PlaybackFinishedEvent:
        return await asyncio.wait_for(self.reports.get(), within_s)

    def heard(self) -> np.ndarray:
        return np.concatenate([np.frombuffer(frame.data, "<i2") for _, frame in self.sounds])

    async def speaking(self, sounds: int) -> None:
        before = len(self.sounds)
        async with asyncio.timeout(10):
            while len(self.sounds) < before + sounds:  # noqa: ASYNC110 - LiveKit's native source tells nobody
                await asyncio.sleep(0.02)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    agent, avatar = pair("my-agent", "avatarcast")
    output = DataStreamAudioOutput(agent, destination_identity="avatarcast")
    made = Scene(agent, avatar, output)
    output.on("playback_finished", made.reports.put_nowait)
    show, play = rtc.VideoSource.capture_frame, rtc.AudioSource.capture_frame

    def shown(self: rtc.VideoSource, frame: rtc.VideoFrame, **options: object) -> None:
        made.pictures.append((time.monotonic(), frame))
        show(self, frame, **options)

    async def played(self: rtc.AudioSource, frame: rtc.AudioFrame) -> None:
        made.sounds.append((time.monotonic(), frame))
        await play(self, frame)

    monkeypatch.setattr(rtc.VideoSource, "capture_frame", shown)
    monkeypatch.setattr(rtc.AudioSource, "capture_frame", played)
    async with running() as server:
        remote = RemoteConfig(server=f"http://127.0.0.1:{server.port}")
        work = asyncio.create_task(serve_room(avatar, remote, agent="my-agent"))
        async with asyncio.timeout(15):
            while not made.pictures:  # noqa: ASYNC110 - as above
                assert not work.done(), work
                await asyncio.sleep(0.05)
        yield made
        avatar.emit("disconnected")
        await asyncio.wait_for(work, 10)
        assert (await server.http.get("/v1/capacity")).json()["sessions"] == 0, "the room's session is given back"


async def test_utterances_are_spoken_and_each_reported_once(scene: Scene) -> None:
    assert [source for _, source in scene.avatar.local_participant.published] == [
        rtc.TrackSource.SOURCE_MICROPHONE,
        rtc.TrackSource.SOURCE_CAMERA,
    ]
    assert scene.sounds == [], "no sound while nobody speaks"
    await scene.say(1.2)
    await scene.say(0.6, rate_hz=16_000, channels=2)  # at once, as an agent with two sentences does
    first = await scene.report()
    length = len(scene.heard()) / 48_000
    second = await scene.report()
    assert not first.interrupted and first.playback_position == pytest.approx(1.2, abs=0.15)
    assert not second.interrupted and second.playback_position == pytest.approx(0.6, abs=0.15)
    assert length == pytest.approx(first.playback_position, abs=0.05)
    assert np.abs(scene.heard()).max() > 5000
    begun_s, over_s = scene.sounds[0][0], scene.sounds[-1][0]
    during = sum(begun_s <= at_s <= over_s for at_s, _ in scene.pictures)
    fps = during / (over_s - begun_s)
    print(f"LiveKit: {fps:.1f} fps, position {1000 * (first.playback_position - 1.2):+.0f} ms")
    assert fps == pytest.approx(22, abs=5)
    assert (scene.pictures[-1][1].width, scene.pictures[-1][1].height) == (64, 64)
    await asyncio.sleep(0.3)
    assert scene.reports.empty()


async def test_clear_buffer_stops_at_once_and_is_answered(scene: Scene) -> None:
    await scene.say(6.0)
    await scene.speaking(40)
    cut_s = time.monotonic()
    scene.output.clear_buffer()
    report = await scene.report(1.0)
    assert report.interrupted and 0.5 <= report.playback_position <= 1.5
    await asyncio.sleep(0.4)
    assert max(at_s for at_s, _ in scene.sounds) - cut_s < 0.15
    await scene.say(0.5)
    after = await scene.report()
    assert not after.interrupted and after.playback_position == pytest.approx(0.5, abs=0.15)
    methods = [method for method, _ in scene.avatar.local_participant.calls]
    assert methods.count("lk.playback_finished") == 2


async def test_an_utterance_cleared_before_it_is_heard_is_reported_too(scene: Scene) -> None:
    await scene.say(2.0)
    await asyncio.sleep(0.05)
    scene.output.clear_buffer()
    report = await scene.report(1.5)
    assert report.interrupted and report.playback_position < 0.2
    await scene.say(0.5)
    assert not (await scene.report()).interrupted


def test_the_token_names_the_agent_that_the_avatar_speaks_for() -> None:
    config = RoomConfig(url="wss://rooms.example.org", room="lobby", agent="my-agent")
    secret = "s" * 32
    token = room_token(config, {"LIVEKIT_API_KEY": "key", "LIVEKIT_API_SECRET": secret})
    claims = api.TokenVerifier("key", secret).verify(token)
    assert (claims.identity, claims.kind, claims.video.room) == ("avatarcast", "agent", "lobby")
    assert claims.attributes == {"lk.publish_on_behalf": "my-agent"}
    assert room_token(config, {"LIVEKIT_TOKEN": "ready"}) == "ready"
    with pytest.raises(InputError, match="LIVEKIT_API_KEY"):
        room_token(config, {})
    with pytest.raises(InputError, match="--url"):
        RoomConfig(url="rooms.example.org")

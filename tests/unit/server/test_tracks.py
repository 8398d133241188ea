"""Pictures and sound leave on one clock, to any number of viewers, and nobody pulls when nobody watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction

import numpy as np
import pytest
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamError
from av import Packet

from server.config import EncodeConfig
from server.encoder import SessionEncoder
from server.tracks import MAX_WAITING_SOUNDS, AudioTrack, Broadcast, VideoTrack
from streaming.clock import RealClock, VirtualClock
from streaming.playout import Playout

FPS, SIZE, DELAY_S = 25, 64, 0.02


def portrait() -> np.ndarray:
    return np.full((SIZE, SIZE, 3), 90, np.uint8)


class Scene:
    """A playout, its encoder and its broadcast, on one clock."""

    def __init__(self, clock: RealClock | VirtualClock) -> None:
        self.clock = clock
        self.left: list[tuple[int, float]] = []
        self.playout = Playout(fps=FPS, start_s=clock.now(), portrait=portrait())
        self.encoder = SessionEncoder(width=SIZE, height=SIZE, fps=FPS, config=EncodeConfig())
        self.broadcast = Broadcast(
            self.playout,
            self.encoder,
            clock,
            send_delay_s=DELAY_S,
            on_picture=lambda index, now: self.left.append((index, now)),
        )

    async def close(self) -> None:
        await self.broadcast.close()
        await self.encoder.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene(RealClock())
    yield made
    await made.close()


async def test_pictures_and_sound_leave_at_their_time_on_one_clock(scene: Scene) -> None:
    video, audio = VideoTrack(scene.broadcast), AudioTrack(scene.broadcast)
    departures: dict[str, list[tuple[float, float]]] = {"video": [], "audio": []}

    async def drain(track: VideoTrack | AudioTrack, count: int) -> None:
        for _ in range(count):
            item = await track.recv()
            media_s = float(item.pts * item.time_base)
            departures[track.kind].append((media_s, scene.clock.now() - scene.playout.start_s))

    await asyncio.gather(drain(video, 30), drain(audio, 60))
    lags = {kind: [left - media for media, left in times] for kind, times in departures.items()}
    assert all(lag > DELAY_S - 0.002 for kind in lags for lag in lags[kind]), "nothing leaves early"
    offset = abs(np.median(lags["video"]) - np.median(lags["audio"]))
    assert offset < 0.02, f"picture and sound leave {1000 * offset:.0f} ms apart"
    steps = np.diff([media for media, _ in departures["video"]])
    assert np.median(steps) == pytest.approx(1 / FPS)
    assert np.allclose(np.diff([media for media, _ in departures["audio"]]), 0.02)
    assert scene.broadcast.av_drift_s == pytest.approx(np.mean(lags["video"]) - np.mean(lags["audio"]), abs=0.02)
    assert scene.left[0][0] == 0 or scene.left[0][0] == 1
    video.stop()
    audio.stop()


async def test_two_viewers_get_the_same_packets_from_one_encode(scene: Scene) -> None:
    one, two = VideoTrack(scene.broadcast), VideoTrack(scene.broadcast)

    async def drain(track: VideoTrack) -> list[tuple[int, int]]:
        packets = [await track.recv() for _ in range(10)]
        return [(packet.pts, id(packet)) for packet in packets]

    first, second = await asyncio.gather(drain(one), drain(two))
    assert first == second
    assert scene.encoder.encoded <= 12
    assert len(scene.left) == len({index for index, _ in scene.left}), "a picture counts once, however many watch"
    one.stop()
    two.stop()


async def test_an_unwatched_session_pulls_and_encodes_nothing(scene: Scene) -> None:
    await asyncio.sleep(0.1)
    assert scene.encoder.encoded == 0
    video = VideoTrack(scene.broadcast)
    await video.recv()
    video.stop()
    await asyncio.sleep(0.1)
    encoded = scene.encoder.encoded
    await asyncio.sleep(0.15)
    assert scene.encoder.encoded == encoded
    again = VideoTrack(scene.broadcast)
    packet = await asyncio.wait_for(again.recv(), 1)
    assert packet.is_keyframe
    again.stop()


async def test_a_listener_that_does_not_read_loses_the_oldest_sound(scene: Scene) -> None:
    slow = scene.broadcast.listen()
    for _ in range(5 * MAX_WAITING_SOUNDS):
        if len(slow._waiting) == MAX_WAITING_SOUNDS and slow._waiting[0].sound.index > 0:
            break
        await asyncio.sleep(0.01)
    assert len(slow._waiting) == MAX_WAITING_SOUNDS
    first = await slow.next()
    assert first is not None
    assert first.sound.index > 0
    slow.close()
    assert await slow.next() is None


async def test_tracks_end_with_the_session(scene: Scene) -> None:
    video, audio = VideoTrack(scene.broadcast), AudioTrack(scene.broadcast)
    await asyncio.gather(video.recv(), audio.recv())
    pending = [asyncio.create_task(video.recv()), asyncio.create_task(audio.recv())]
    await scene.close()
    for result in await asyncio.gather(*pending, return_exceptions=True):
        assert not isinstance(result, Exception) or isinstance(result, MediaStreamError)
    for track in (video, audio, VideoTrack(scene.broadcast), AudioTrack(scene.broadcast)):
        with pytest.raises(MediaStreamError):
            while True:
                await asyncio.wait_for(track.recv(), 1)


async def test_two_listeners_get_the_same_packets_from_one_encode(scene: Scene) -> None:
    one, two = AudioTrack(scene.broadcast), AudioTrack(scene.broadcast)

    async def drain(track: AudioTrack) -> dict[int, Packet]:
        return {packet.pts: packet for packet in [await track.recv() for _ in range(10)]}

    first, second = await asyncio.gather(drain(one), drain(two))
    both = set(first) & set(second)
    assert len(both) >= 9
    assert all(first[pts] is second[pts] for pts in both)
    one.stop()
    two.stop()


async def test_sound_carries_its_samples_and_time() -> None:
    scene = Scene(RealClock())
    tone = (0.3 * np.sin(np.arange(320_000) * 2 * np.pi * 440 / 16_000)).astype(np.float32)
    scene.playout.begin(
        first_picture=0, frames_per_block=12, read=lambda lo, hi: np.pad(tone, 100)[lo + 100 : hi + 100]
    )
    audio = AudioTrack(scene.broadcast)
    packets = [await audio.recv() for _ in range(8)]
    assert [packet.pts - packets[0].pts for packet in packets] == [960 * n for n in range(8)]
    assert {packet.time_base for packet in packets} == {Fraction(1, 48_000)}
    decoder = OpusDecoder()
    heard = [decoder.decode(JitterFrame(data=bytes(p), timestamp=p.pts))[0].to_ndarray() for p in packets][-1]
    heard = heard[0].astype(float) / 32768
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    audio.stop()
    await scene.close()


async def test_a_stall_of_the_loop_moves_nothing_for_good() -> None:
    """After a stop of half a second, media time and clock agree again: late pictures are skipped, not queued."""
    clock = VirtualClock(turns=60)
    scene = Scene(clock)
    video = VideoTrack(scene.broadcast)
    got: list[tuple[float, float]] = []

    async def drain() -> None:
        while True:
            packet = await video.recv()
            got.append((float(packet.pts * packet.time_base), clock.now() - scene.playout.start_s))

    task = asyncio.create_task(drain())
    for step in (0.04,) * 10 + (0.5,) + (0.04,) * 10:
        clock._now_s += step  # jump, as a stalled process does: timers in between run late
        for _ in range(20):
            await clock.settle()
            await asyncio.sleep(0.001)
        await clock.advance(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    media = [m for m, _ in got]
    assert media == sorted(media)
    assert got[-1][1] - got[-1][0] < 0.15
    await scene.close()

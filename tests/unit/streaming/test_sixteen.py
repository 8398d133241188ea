"""16 pictures a second, live and as a film: times, lips and sound, and what the tracks stamp."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import av
import numpy as np

from model.fake import FakeConfig, FakeModel
from server.config import EncodeConfig
from server.encoder import SessionEncoder
from server.tracks import AudioTrack, Broadcast, VideoTrack
from streaming.clock import RealClock
from streaming.offline import generate
from streaming.playout import Playout
from tests.fakes import PORTRAIT, Room, babble, mouth_opening
from tests.unit.streaming.test_offline import mouth_open, phrase, read_film, write_wav

SMALL = FakeConfig(width=64, height=64, fps=16)
SILENCE = np.zeros(16_000, np.float32)


def test_a_film_is_as_long_as_its_sound_and_in_step(tmp_path) -> None:
    sound = phrase()
    report = generate(
        FakeModel(SMALL), image=PORTRAIT, audio=write_wav(tmp_path / "a.wav", sound), out=tmp_path / "a.mp4"
    )
    frames = -(-len(sound) // 1000)
    assert report.frames == frames and report.seconds == frames / 16
    images, played, video_s, audio_s = read_film(report.path)
    assert len(images) == frames and video_s == 0 and abs(audio_s) < 0.001
    assert abs(len(played) / 16_000 - frames / 16) < 0.07
    with av.open(str(report.path)) as film:
        assert film.streams.video[0].average_rate == 16
        assert abs(film.duration / 1e6 - frames / 16) < 0.07
    level = np.array([np.abs(played[i * 1000 : (i + 1) * 1000]).max() > 0.05 for i in range(frames)])
    lips = mouth_open(images)
    assert abs(int(np.flatnonzero(level)[0]) - int(np.flatnonzero(lips)[0])) <= 1
    assert (level == lips).mean() > 0.9


async def test_a_live_session_keeps_lips_and_sound_together() -> None:
    async with Room(model=FakeModel(SMALL), block_s=0.2) as room:
        assert room.session.latency_s == 1.3125  # 750 + 80 + 60 + 300 + 80, up to whole pictures
        await room.until(0)
        await room.speak(np.concatenate([SILENCE[:9600], babble(2.0), SILENCE, SILENCE, SILENCE]))
        assert [picture.pts_s for picture in room.pictures] == [Fraction(p.index, 16) for p in room.pictures]
        steps = np.diff([picture.index for picture in room.pictures])
        assert (steps == 1).all(), "16 a second, none left out"
        sound = room.heard()
        level = [np.abs(sound[i * 3000 : (i + 1) * 3000]).max() > 1500 for i in range(len(sound) // 3000)]
        shown = {picture.index: mouth_opening(picture) > 0.05 for picture in room.pictures}
        pairs = [(shown[index], level[index]) for index in range(len(level)) if index in shown]
        assert np.mean([lips == audible for lips, audible in pairs]) > 0.95
        assert 30 <= sum(audible for _, audible in pairs) <= 34
        first = min(index for index, is_open in shown.items() if is_open)
        assert abs(first - level.index(True)) <= 1
        assert abs(first / 16 - room.media_s(0.6)) < 0.1
        counters = room.session.playout.counters
        assert counters.underruns == 0 and counters.fresh_frames > 60
        blocks = [request.block for request in room.engine.requests]
        assert blocks == list(range(len(blocks)))
        assert {request.window.shape for request in room.engine.requests} == {(29_440 + 12_000 + 1_280,)}


async def test_tracks_stamp_sixteenths_of_a_second() -> None:
    clock = RealClock()
    playout = Playout(fps=16, start_s=clock.now(), portrait=PORTRAIT)
    encoder = SessionEncoder(width=64, height=64, fps=16, config=EncodeConfig())
    broadcast = Broadcast(playout, encoder, clock, send_delay_s=0.02, on_picture=lambda index, now: None)
    video, audio = VideoTrack(broadcast), AudioTrack(broadcast)
    try:
        packets = await asyncio.gather(*(_take(track, count) for track, count in ((video, 10), (audio, 30))))
    finally:
        video.stop()
        audio.stop()
        await broadcast.close()
        await encoder.close()
    pictures, sounds = packets
    assert set(np.diff(pictures)) == {Fraction(1, 16)}, "90 kHz ticks, 5625 a picture"
    assert set(np.diff(sounds)) == {Fraction(1, 50)}
    assert abs(pictures[-1] - sounds[-1]) < 0.1, "one clock for both"


async def _take(track: VideoTrack | AudioTrack, count: int) -> list[Fraction]:
    items = [await track.recv() for _ in range(count)]
    return [item.pts * Fraction(item.time_base) for item in items]

"""A session on a virtual clock: first pictures, lips and sound, figures, two sessions."""

import numpy as np
import pytest

from streaming.config import LatencyConfig, StreamingConfig
from streaming.stream import latency_target_s
from tests.fakes import InProcessEngine, Room, babble, microphone_frame, mouth_opening

SILENCE = np.zeros(16_000, np.float32)


async def test_the_portrait_shows_at_once_and_the_model_takes_over():
    engine = InProcessEngine(block_s=0.1)
    engine.load()
    room = Room(engine=engine)
    await room.session.start()
    await room.run(2.0)
    assert room.session.state == "idle" and room.session.latency_s is None
    assert len(room.pictures) == 51 and all((picture.image == 128).all() for picture in room.pictures)
    room.session.push_audio(microphone_frame(babble(0.02), pts=0))
    await engine.start()
    await room.run(2.0)
    fresh = [picture.is_fresh for picture in room.pictures]
    first = fresh.index(True)
    assert room.pictures[first].frame == 0 and all(fresh[first:]) and not any(fresh[:first])
    assert room.session.info.portrait.shape == (64, 64, 3)
    indices = [picture.index for picture in room.pictures]
    assert indices == list(range(len(indices)))
    await room.session.close()
    await engine.stop()


async def test_latency_is_block_lookahead_jitter_compute_and_margin():
    async with Room(block_s=0.2) as room:
        assert room.session.latency_s == pytest.approx(1.0)  # 480 + 80 + 60 + 300 + 80, up to whole frames
        info = room.engine.info
        assert latency_target_s(info, StreamingConfig(latency=LatencyConfig(floor_ms=2000))) == 2.0
        assert latency_target_s(info, StreamingConfig(latency=LatencyConfig(ceiling_ms=500))) == pytest.approx(0.52)


async def test_lips_and_sound_leave_together():
    async with Room(block_s=0.2) as room:
        await room.until(0)
        speech = babble(1.0)
        gaps = np.concatenate([SILENCE[:9600], speech, SILENCE, SILENCE, speech, SILENCE, SILENCE])
        await room.speak(gaps)
        shown = {picture.index: mouth_opening(picture) > 0.05 for picture in room.pictures}
        sound = room.heard()
        level = [np.abs(sound[i * 1920 : (i + 1) * 1920]).max() > 1500 for i in range(len(sound) // 1920)]
        pairs = [(shown[index], level[index]) for index in range(len(level)) if index in shown]
        agree = np.mean([lips == audible for lips, audible in pairs])
        assert agree > 0.95 and sum(audible for _, audible in pairs) > 30
        first_open = min(index for index, is_open in shown.items() if is_open)
        first_loud = level.index(True)
        assert abs(first_open - first_loud) <= 1
        assert first_open / 25 == pytest.approx(room.media_s(0.6), abs=0.1)
        types = [event.type for event in room.events if event.type.startswith(("speech", "playback"))]
        assert types == ["speech_started", "playback_started", "speech_stopped", "playback_finished"] * 2
        states = [event.data["state"] for event in room.told("state")]
        assert states == ["listening", "speaking", "idle"] * 2
        report = room.told("playback_finished")[0].data
        assert report["segment"] == "speech-1" and 1000 <= report["position_ms"] <= 1500 and not report["interrupted"]


async def test_noise_is_heard_but_not_spoken():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        noise = np.random.default_rng(0).normal(0, 0.02, 16_000 * 4).astype(np.float32)
        await room.speak(np.concatenate([SILENCE, noise]))
        assert room.loud(room.media_s(1.1), room.media_s(3)) == 1.0
        assert max(mouth_opening(picture) for picture in room.pictures) == 0
        assert {request.posture for request in room.engine.requests} == {"idle"}


async def test_stats_are_told_once_a_second():
    async with Room(block_s=0.12) as room:
        await room.until(0)
        await room.speak(babble(6.0))
        stats = room.told("stats")
        assert [b.pts_ms - a.pts_ms for a, b in zip(stats, stats[1:], strict=False)] == [1000] * (len(stats) - 1)
        last = stats[-1].data
        assert last["fps"] == 25 and last["block_ms_p50"] == 120 and last["block_ms_p95"] == 120
        assert last["rtf"] == 0.25 and last["latency_ms"] == round(1000 * room.session.latency_s)
        assert last["av_drift_ms"] == 0 and last["queue_ms"] == 0 and last["underruns"] == 0
        block = room.told("block")[3].data
        assert set(block) == {
            *("index", "window_closed_ms", "queued_ms", "audio_ms", "dit_ms", "vae_ms", "arrived_ms", "due_ms")
        }
        assert block["index"] == 3 and block["arrived_ms"] - block["window_closed_ms"] == 120
        assert block["due_ms"] > block["arrived_ms"]


async def test_two_sessions_take_turns_without_a_stutter():
    engine = InProcessEngine(block_s=0.2)
    a, b = Room(engine=engine, name="a"), Room(engine=engine, name="b")
    await engine.start()
    await a.session.start()
    await a.run(3.1)
    await b.session.start()
    for _ in range(40):
        await a.run(0.1)
        b.pull()
    for room in (a, b):
        counters = room.session.playout.counters
        assert counters.underruns == 0 and room.session.blocks.counters.deadline_misses == 0
        assert room.session.stats().block_ms_p50 == 200
    apart = (a.start_s - b.start_s) % 0.48
    assert 0.18 < apart < 0.3, "their blocks fall due at different times"
    assert max(a.session.blocks.log.waited_s) < 0.1
    await a.session.close()
    await b.session.close()
    await engine.stop()

"""A session on a virtual clock: speaking, holding, dying models, interrupts, pushed speech, changes, endings."""

import asyncio

import numpy as np
import pytest

from model.errors import PortraitError
from model.fake import FakeConfig, FakeModel
from model.interface import SessionSpec
from streaming.config import LatencyConfig, StreamingConfig
from streaming.errors import AudioFormatError, BufferFullError, SessionClosedError, StreamingError
from streaming.session import Session
from streaming.stream import latency_target_s
from tests.fakes import PORTRAIT, InProcessEngine, Room, babble, microphone_frame

SILENCE = np.zeros(16_000, np.float32)


def opening(picture) -> float:
    """How dark the mouth is: 0 closed."""
    image = picture.image.astype(int)
    region = image[36:54, 22:42].mean(-1)
    return float((region < 70).mean())


def heard(room: Room) -> np.ndarray:
    """All sound that left, 48 kHz."""
    return np.concatenate([sound.pcm for sound in room.sounds])


def loud(room: Room, begin_s: float, end_s: float) -> float:
    """Share of 20 ms pieces with sound between two session media times."""
    pieces = [sound.pcm for sound in room.sounds if begin_s <= sound.index * 0.02 < end_s]
    return float(np.mean([np.abs(pcm).max() > 600 for pcm in pieces]))


def media(room: Room, stream_s: float) -> float:
    """Session media time at which a moment of the stream is presented."""
    return room.session.playout.sample_s(round(stream_s * 16_000)) - room.session.playout.start_s


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
        assert room.session.latency_s == pytest.approx(0.96)  # 480 + 80 + 60 + 250 + 80, up to whole frames
        info = room.engine.info
        assert latency_target_s(info, StreamingConfig(latency=LatencyConfig(floor_ms=2000))) == 2.0
        assert latency_target_s(info, StreamingConfig(latency=LatencyConfig(ceiling_ms=500))) == pytest.approx(0.52)


async def test_lips_and_sound_leave_together():
    async with Room(block_s=0.2) as room:
        await room.until(0)
        speech = babble(1.0)
        gaps = np.concatenate([SILENCE[:9600], speech, SILENCE, SILENCE, speech, SILENCE, SILENCE])
        await room.speak(gaps)
        shown = {picture.index: opening(picture) > 0.05 for picture in room.pictures}
        sound = heard(room)
        level = [np.abs(sound[i * 1920 : (i + 1) * 1920]).max() > 1500 for i in range(len(sound) // 1920)]
        pairs = [(shown[index], level[index]) for index in range(len(level)) if index in shown]
        agree = np.mean([lips == audible for lips, audible in pairs])
        assert agree > 0.95 and sum(audible for _, audible in pairs) > 30
        first_open = min(index for index, is_open in shown.items() if is_open)
        first_loud = level.index(True)
        assert abs(first_open - first_loud) <= 1
        assert first_open / 25 == pytest.approx(media(room, 0.6), abs=0.1)
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
        assert loud(room, media(room, 1.1), media(room, 3)) == 1.0
        assert max(opening(picture) for picture in room.pictures) == 0
        assert {request.posture for request in room.engine.requests} == {"idle"}


async def test_a_slow_model_holds_the_picture_and_never_the_sound():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(3.0))
        before = room.session.playout.counters.underruns
        assert before == 0
        room.engine.block_s = 0.7  # slower than real time
        await room.speak(babble(6.0, seed=1))
        counters = room.session.playout.counters
        assert counters.underruns > 40 and counters.late_frames > 10
        assert room.session.blocks.counters.deadline_misses >= 2
        room.engine.block_s = 0.1
        await room.speak(babble(3.0, seed=2))
        underruns = counters.underruns
        await room.speak(babble(2.0, seed=3))
        assert counters.underruns == underruns, "it recovers"
        assert [sound.index for sound in room.sounds] == list(range(len(room.sounds)))
        indices = [picture.index for picture in room.pictures]
        assert indices == list(range(len(indices))), "no track ever stalls"
        fresh = [picture for picture in room.pictures if picture.is_fresh]
        offsets = {picture.index - picture.frame for picture in fresh}
        assert len(offsets) == 1, "latency does not creep"
        assert loud(room, media(room, 0.2), media(room, 12)) > 0.9


async def test_a_dying_model_degrades_and_the_stream_resumes():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(2.0))
        first_life = len(room.engine.requests)
        await room.engine.kill()
        await room.clock.settle()
        assert room.session.state == "degraded" and room.told("state")[-1].data == {"state": "degraded"}
        at_death = len(room.pictures)
        await room.speak(babble(3.0, seed=1))
        held = room.pictures[at_death + 25 :]
        assert not any(picture.is_fresh for picture in held) and len({id(picture.image) for picture in held}) == 1
        assert not (held[0].image == 128).all(), "the last picture stays, not the portrait"
        underruns = room.session.playout.counters.underruns
        assert room.session.blocks.counters.skipped_blocks >= 5
        room.engine.revive()
        await room.clock.settle()
        assert room.session.state != "degraded"
        resumed = len(room.engine.requests)
        assert resumed == first_life
        await room.speak(babble(3.0, seed=2))
        assert room.engine._tenants["s"].spec.first_block == room.engine.requests[resumed].block
        assert room.pictures[-1].is_fresh
        offsets = {picture.index - picture.frame for picture in room.pictures if picture.is_fresh}
        assert len(offsets) == 1 and room.session.playout.counters.underruns == underruns
        blocks = [request.block for request in room.engine.requests]
        assert blocks == sorted(set(blocks))


async def test_an_interrupt_silences_at_once_and_rests_the_mouth_soon():
    async with Room(block_s=0.2, mode="push") as room:
        await room.until(0)
        name = room.session.begin_segment("answer")
        room.session.push_pcm(babble(8.0), 16_000, name)
        room.session.end_segment(name)
        await room.run(4.0)
        assert room.session.state == "speaking"
        at = room.session._media_ms() / 1000
        report = room.session.interrupt()
        started = room.told("playback_started")[0].pts_ms / 1000
        assert report.segment == "answer" and report.interrupted
        assert report.position_ms == pytest.approx(1000 * (at - started), abs=25)
        assert room.session.state == "idle"
        await room.run(3.0)
        assert loud(room, at - 1, at - 0.1) > 0.9 and loud(room, at + 0.04, at + 4) == 0
        late = [picture for picture in room.pictures if picture.index / 25 > at + 0.48 + 0.15]
        assert max(opening(picture) for picture in late) == 0
        assert any(opening(picture) > 0.05 for picture in room.pictures if at - 0.5 < picture.index / 25 < at)
        assert [event.data["segment"] for event in room.told("playback_finished")] == ["answer"]
        assert room.session.playout.counters.underruns == 0
        assert not room.session.push_pcm(babble(0.1), 16_000, name), "the rest of the segment is dropped"
        blocks = [request.block for request in room.engine.requests]
        assert blocks == list(range(len(blocks))), "the model only ever goes forward"
        epochs = [request.epoch for request in room.engine.requests]
        assert epochs == sorted(epochs) and set(epochs) == {0, 1}
        name = room.session.begin_segment()
        room.session.push_pcm(babble(1.0), 16_000, name)
        room.session.end_segment(name)
        await room.run(3.0)
        finished = room.told("playback_finished")[-1].data
        assert finished == {"segment": name, "position_ms": 1000, "interrupted": False}
        spoken = [picture.index for picture in room.pictures[-75:] if opening(picture) > 0.05]
        sound = [sound.index for sound in room.sounds[-150:] if np.abs(sound.pcm).max() > 1500]
        assert abs(spoken[0] / 25 - sound[0] / 50) <= 0.06, "still in step"


async def test_an_interrupt_of_nothing_is_answered_and_changes_nothing():
    async with Room(block_s=0.1) as room:
        early = room.session.interrupt()
        assert early.as_json() == {"segment": None, "position_ms": 0, "interrupted": False}
        await room.until(0)
        await room.speak(np.concatenate([SILENCE, SILENCE]))
        assert room.session.interrupt().segment is None
        await room.run(2.0)
        assert room.session.stream.epoch == 0 and room.session.playout.counters.held_frames == 0
        assert not room.told("playback_finished")


async def test_interrupting_an_echo_goes_on_with_what_is_said_next():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(3.0))
        report = room.session.interrupt()
        assert report.segment == "speech-1" and report.interrupted and report.position_ms > 1000
        at = room.session._media_ms() / 1000
        await room.speak(babble(2.0, seed=4))
        await room.run(2.0)
        assert loud(room, at + 0.04, at + 0.6) == 0, "what was said before the interrupt is gone"
        assert loud(room, at + 1.1, at + 2.0) > 0.9, "what is said after it is spoken"
        finished = [(e.data["segment"], e.data["interrupted"]) for e in room.told("playback_finished")]
        assert finished == [("speech-1", True), ("speech-2", False)]


async def test_pushed_segments_begin_and_end_once_each():
    async with Room(block_s=0.1, mode="push") as room:
        names = [room.session.begin_segment(), room.session.begin_segment("x")]
        assert names == ["segment-1", "x"]
        room.session.push_pcm((babble(1.5) * 32767).astype(np.int16), 16_000, "x")
        room.session.end_segment("x")
        again = room.session.begin_segment("x")
        assert again != "x"
        room.session.push_pcm(babble(0.5), 16_000, again)
        room.session.end_segment(again)
        await room.run(6.0)
        told = [(e.type, e.data["segment"]) for e in room.events if e.type.startswith("playback")]
        assert told == [
            ("playback_finished", "segment-1"),
            ("playback_started", "x"),
            ("playback_finished", "x"),
            ("playback_started", again),
            ("playback_finished", again),
        ]
        positions = [event.data["position_ms"] for event in room.told("playback_finished")]
        assert positions == [0, 1500, 500]
        assert not room.told("speech_started"), "its own speech is not the user's"


async def test_in_push_mode_the_microphone_is_only_overheard():
    async with Room(block_s=0.1, mode="push") as room:
        tapped = []
        room.session.tap_microphone(tapped.append)
        await room.until(0)
        await room.speak(np.concatenate([SILENCE[:8000], babble(1.0), SILENCE]))
        assert [e.type for e in room.events if e.type.startswith("speech")] == ["speech_started", "speech_stopped"]
        assert "listening" in [event.data["state"] for event in room.told("state")]
        await room.run(2.0)
        assert not heard(room).any() and not room.told("playback_started")
        assert sum(map(len, tapped)) == 16_000 * 2.5


async def test_pushed_speech_takes_the_word_from_the_microphone():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(1.0))
        name = room.session.begin_segment()
        room.session.push_pcm(np.full(16_000, 0.25, np.float32), 16_000, name)
        room.session.end_segment(name)
        await room.speak(babble(1.5, seed=1))
        await room.speak(np.concatenate([SILENCE, SILENCE]))
        await room.speak(babble(1.0, seed=2))
        await room.speak(np.concatenate([SILENCE, SILENCE]))
        pushed = [s for s in room.sounds if np.abs(s.pcm[100:-100].astype(int) - 8192).max() < 50]
        assert 48 <= len(pushed) <= 51
        told = [(e.type.split("_")[1], e.data["segment"]) for e in room.events if e.type.startswith("playback")]
        assert told[:4] == [("started", "speech-1"), ("finished", "speech-1"), ("started", name), ("finished", name)]
        assert told[-2:] == [("started", told[-1][1]), ("finished", told[-1][1])]
        assert {name for _, name in told} == {name for kind, name in told if kind == "finished"}
        assert room.told("playback_finished")[0].data["position_ms"] == pytest.approx(1000, abs=150)
        heard_types = [e.type for e in room.events if e.type.startswith("speech")]
        assert heard_types == ["speech_started", "speech_stopped"] * (len(heard_types) // 2)
        assert room.session.state == "idle"


async def test_too_much_pushed_speech_presses_back():
    async with Room(block_s=0.1, mode="push", push_buffer_s=2.0) as room:
        await room.until(0)
        name = room.session.begin_segment()
        room.session.push_pcm(babble(1.9), 16_000, name)
        assert len(room.told("pause")) == 1
        with pytest.raises(BufferFullError):
            room.session.push_pcm(babble(0.5), 16_000, name)
        await room.run(1.5)
        assert len(room.told("resume")) == 1


async def test_prompts_and_avatars_take_effect_at_the_planned_block():
    async with Room(block_s=0.1, image=PORTRAIT) as room:
        await room.until(1.0)
        planned = room.session.set_prompt("a happy woman")
        assert planned.block == room.session.stream.next_slot and planned.frame == 12 * planned.block
        avatar = room.session.set_avatar(np.full((80, 80, 3), 200, np.uint8), "nora")
        await room.run(2.0)
        (prompt,), (image,) = room.told("prompt_applied"), room.told("avatar_applied")
        assert prompt.data == {"block": planned.block, "frame": planned.frame}
        assert image.data == {"avatar": "nora", "block": avatar.block, "frame": avatar.frame}
        corner = {picture.frame: int(picture.image[2, 2, 0]) for picture in room.pictures if picture.is_fresh}
        assert corner[planned.frame - 1] == 128 and corner[planned.frame] == 200


async def test_changes_before_the_model_is_ready_are_not_lost():
    engine = InProcessEngine(block_s=0.1)
    engine.load()
    room = Room(engine=engine)
    await room.session.start()
    room.session.set_prompt("happy")
    room.session.set_avatar(np.full((64, 64, 3), 50, np.uint8), "max")
    await room.run(0.2)
    assert (room.pictures[-1].image == 50).all()
    await engine.start()
    await room.run(2.0)
    assert engine._tenants["s"].spec.prompt == "happy"
    assert room.told("avatar_applied")[0].data == {"avatar": "max", "block": 0, "frame": 0}
    assert room.told("prompt_applied")[0].data == {"block": 0, "frame": 0}
    assert room.pictures[-1].image[2, 2, 0] == 50
    await room.session.close()
    await engine.stop()


async def test_a_muted_microphone_is_silent_and_comes_back_in_step():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        room.session.mute(True)
        await room.speak(babble(3.0))
        room.session.mute(False)
        await room.speak(babble(1.0))
        await room.run(2.0)
        first = next(sound.index for sound in room.sounds if np.abs(sound.pcm).max() > 1500)
        assert first * 0.02 == pytest.approx(media(room, 3.0), abs=0.06)


async def test_muting_in_the_middle_of_speech_ends_it():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(0)
        await room.speak(babble(1.0))
        room.session.mute(True)
        await room.speak(babble(1.0))
        assert [e.type for e in room.events if e.type.startswith("speech")] == ["speech_started", "speech_stopped"]
        assert room.session.state == "idle"


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


async def test_closing_finishes_segments_and_leaves_nothing():
    room = Room(block_s=0.3, mode="push")
    async with room:
        await room.until(0)
        name = room.session.begin_segment()
        room.session.push_pcm(babble(5.0), 16_000, name)
        await room.run(3.0)
        room.session.announce_closing(2.0)
        await room.session.close()
        assert room.told("closing")[0].data == {"deadline_s": 2.0}
        assert room.session.state == "closing"
        assert [e.data["interrupted"] for e in room.told("playback_finished")] == [True]
        num = len(room.events)
        await room.clock.advance(5)
        assert len(room.events) == num and room.engine.held_blocks == 0
        with pytest.raises(SessionClosedError):
            room.session.push_audio(microphone_frame(SILENCE[:320]))
        await room.session.close()
    assert [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
    assert room.engine.held_blocks == 0


async def test_without_viewers_nothing_piles_up():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(0)
        name = room.session.begin_segment()
        room.session.push_pcm(babble(4.0), 16_000, name)
        room.session.end_segment(name)
        most = 0
        for _ in range(300):
            await room.clock.advance(0.1)
            most = max(most, room.engine.held_blocks)
        assert most <= 5
        assert len(room.told("playback_finished")) == 1, "speech goes by without viewers too"
        await room.run(0.1)
        assert room.pictures[-1].is_fresh and room.pictures[-1].index >= 30 * 25


async def test_a_long_stall_of_the_loop_is_passed_over():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(2.0))
        room.clock._now_s += 3600.0
        await room.clock.settle()
        await room.run(0.0)
        room._fed += 3600 * 16_000
        await room.speak(babble(3.0, seed=1))
        assert room.pictures[-1].is_fresh and room.session.stream.next_slot > 7000
        assert len(room.engine.requests) < 20
        offsets = {picture.index - picture.frame for picture in room.pictures if picture.is_fresh}
        assert len(offsets) == 1
        assert loud(room, media(room, 3603.0), media(room, 3604.0)) > 0.9


@pytest.mark.parametrize("rate_hz", [0, 192_000])
async def test_a_strange_microphone_is_refused_by_name_and_the_session_lives(rate_hz):
    async with Room(block_s=0.1) as room:
        await room.until(0)
        frame = microphone_frame(babble(0.02))
        frame.sample_rate = rate_hz
        with pytest.raises(AudioFormatError) as caught:
            room.session.push_audio(frame)
        assert caught.value.code == "unsupported_rate"
        await room.speak(babble(2.0))
        await room.run(1.0)
        assert room.told("playback_started")


async def test_a_refused_portrait_and_a_failed_engine_are_told():
    class Picky(FakeModel):
        def open(self, spec: SessionSpec):
            raise PortraitError("the portrait has no face; send one with a face")

    async with Room(model=Picky(FakeConfig(width=64, height=64))) as room:
        await room.run(1.0)
        (error,) = room.told("error")
        assert error.data == {"code": "bad_request", "message": "the portrait has no face; send one with a face"}
        assert room.session.state == "degraded" and len(room.pictures) == 26
    engine = InProcessEngine()
    room = Room(engine=engine)
    engine.failure = "tiny.safetensors is missing"
    engine._set_state("failed")
    await room.session.start()
    await room.run(0.5)
    assert room.told("error")[0].data == {"code": "engine_down", "message": "tiny.safetensors is missing"}
    await room.session.close()


async def test_an_engine_that_fails_for_good_is_told_with_its_reason_and_the_picture_stays():
    async with Room(block_s=0.1) as room:
        await room.until(2.0)
        await room.engine.kill()
        room.engine.failure = "the checkpoint is gone"
        room.engine._set_state("failed")
        await room.run(2.0)
        (error,) = room.told("error")
        assert error.data == {"code": "engine_down", "message": "the checkpoint is gone"}
        assert room.session.state == "degraded" and not room.pictures[-1].is_fresh
        assert not (room.pictures[-1].image == 128).all()


async def test_a_portrait_outside_the_domain_is_warned_of():
    grain = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    async with Room(image=grain) as room:
        await room.run(0.1)
        assert room.told("warning")[0].data["code"] == "out_of_domain"


async def test_another_frame_rate_than_the_models_is_told():
    engine = InProcessEngine()
    await engine.start()
    session = Session(
        SessionSpec(session="s", image=PORTRAIT), engine=engine, config=StreamingConfig(), clock=engine.clock, fps=30
    )
    events = []
    session.subscribe(events.append)
    await session.start()
    await engine.clock.settle()
    assert "25 pictures a second, the session expects 30" in events[0].data["message"]
    await session.close()
    await engine.stop()


async def test_postures_are_states_and_reach_the_model():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(1.0)
        room.session.set_posture("thinking")
        assert room.session.state == "thinking"
        await room.run(1.0)
        assert room.engine.requests[-1].posture == "thinking"
        name = room.session.begin_segment()
        room.session.push_pcm(babble(1.0), 16_000, name)
        room.session.end_segment(name)
        await room.run(4.0)
        assert [event.data["state"] for event in room.told("state")] == ["thinking", "speaking", "idle"]
        assert "speaking" in [request.posture for request in room.engine.requests]
        with pytest.raises(StreamingError, match="'dancing'"):
            room.session.set_posture("dancing")


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


async def test_failing_blocks_warn_and_the_stream_goes_on():
    async with Room(model=FakeModel(FakeConfig(width=64, height=64, fail_block=3)), block_s=0.1) as room:
        await room.until(6.0)
        (warning,) = room.told("warning")
        assert warning.data["code"] == "internal" and "asked to fail" in warning.data["message"]
        assert room.session.blocks.counters.failed_blocks == 1
        assert room.session.playout.counters.underruns == 12 and room.pictures[-1].is_fresh


@pytest.mark.parametrize("block_s", [0.1, 0.2, 0.3])
async def test_after_an_interrupt_the_mouth_rests_within_a_block_and_150_ms(block_s):
    rests, silences = [], []
    for phase in range(8):
        async with Room(block_s=block_s, mode="push") as room:
            await room.until(0)
            name = room.session.begin_segment()
            room.session.push_pcm(babble(9.0), 16_000, name)
            await room.run(4.0 + phase * 0.06)
            at = room.session._media_ms() / 1000
            room.session.interrupt()
            await room.run(2.0)
            open_ = [p.index / 25 for p in room.pictures if opening(p) > 0.02]
            loud_ = [s.index * 0.02 for s in room.sounds if np.abs(s.pcm).max() > 300]
            rests.append(max(open_) + 0.04 - at)
            silences.append(max(loud_) + 0.02 - at)
    print(f"mouth {1000 * max(rests):.0f} ms, sound {1000 * max(silences):.0f} ms")
    assert max(silences) <= 0.06
    assert max(rests) <= 0.48 + 0.15

"""What can go wrong in a session: slow and dying models, stalls, strange input, no viewers, endings."""

import numpy as np
import pytest

from model.errors import PortraitError
from model.fake import FakeConfig, FakeModel
from model.interface import SessionSpec
from streaming.config import StreamingConfig
from streaming.errors import AudioFormatError
from streaming.session import Session
from tests.fakes import PORTRAIT, InProcessEngine, Room, babble, microphone_frame

SILENCE = np.zeros(16_000, np.float32)


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
        assert room.loud(room.media_s(0.2), room.media_s(12)) > 0.9


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
        assert room.loud(room.media_s(3603.0), room.media_s(3604.0)) > 0.9


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


async def test_failing_blocks_warn_and_the_stream_goes_on():
    async with Room(model=FakeModel(FakeConfig(width=64, height=64, fail_block=3)), block_s=0.1) as room:
        await room.until(6.0)
        (warning,) = room.told("warning")
        assert warning.data["code"] == "internal" and "asked to fail" in warning.data["message"]
        assert room.session.blocks.counters.failed_blocks == 1
        assert room.session.playout.counters.underruns == 12 and room.pictures[-1].is_fresh

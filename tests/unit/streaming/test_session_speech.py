"""What a session is told to do: pushed speech, interrupts, prompts, portraits, muting, postures."""

import asyncio

import numpy as np
import pytest

from streaming.errors import BufferFullError, SessionClosedError, StreamingError
from tests.fakes import PORTRAIT, InProcessEngine, Room, babble, microphone_frame, mouth_opening

SILENCE = np.zeros(16_000, np.float32)


async def test_an_interrupt_silences_at_once_and_rests_the_mouth_soon():
    async with Room(block_s=0.2, mode="push") as room:
        await room.until(0)
        name = room.session.begin_segment("answer")
        room.session.push_pcm(babble(8.0), 16_000, name)
        room.session.end_segment(name)
        await room.run(4.0)
        assert room.session.state == "speaking"
        at = room.now_s()
        report = room.session.interrupt()
        started = room.told("playback_started")[0].pts_ms / 1000
        assert report.segment == "answer" and report.interrupted
        assert report.position_ms == pytest.approx(1000 * (at - started), abs=25)
        assert room.session.state == "idle"
        await room.run(3.0)
        assert room.loud(at - 1, at - 0.1) > 0.9 and room.loud(at + 0.04, at + 4) == 0
        late = [picture for picture in room.pictures if picture.index / 25 > at + 0.48 + 0.15]
        assert max(mouth_opening(picture) for picture in late) == 0
        assert any(mouth_opening(picture) > 0.05 for picture in room.pictures if at - 0.5 < picture.index / 25 < at)
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
        spoken = [picture.index for picture in room.pictures[-75:] if mouth_opening(picture) > 0.05]
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
        assert [report.data["segment"] for report in room.told("playback_finished")] == [None, None]


async def test_interrupting_an_echo_goes_on_with_what_is_said_next():
    async with Room(block_s=0.1) as room:
        await room.until(0)
        await room.speak(babble(3.0))
        report = room.session.interrupt()
        assert report.segment == "speech-1" and report.interrupted and report.position_ms > 1000
        at = room.now_s()
        await room.speak(babble(2.0, seed=4))
        await room.run(2.0)
        assert room.loud(at + 0.04, at + 0.6) == 0, "what was said before the interrupt is gone"
        assert room.loud(at + 1.1, at + 2.0) > 0.9, "what is said after it is spoken"
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
        assert not room.heard().any() and not room.told("playback_started")
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
        assert first * 0.02 == pytest.approx(room.media_s(3.0), abs=0.06)


async def test_muting_in_the_middle_of_speech_ends_it():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(0)
        await room.speak(babble(1.0))
        room.session.mute(True)
        await room.speak(babble(1.0))
        assert [e.type for e in room.events if e.type.startswith("speech")] == ["speech_started", "speech_stopped"]
        assert room.session.state == "idle"


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


async def test_the_users_voice_makes_a_pushed_session_listen():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(1.0)
        await room.speak(babble(2.0))
        listening = [request.posture for request in room.engine.requests if request.posture != "idle"]
        assert len(listening) >= 3 and set(listening) == {"listening"}
        await room.speak(np.zeros(32_000, np.float32))
        assert room.engine.requests[-1].posture == "idle"
        assert [event.data["state"] for event in room.told("state")] == ["listening", "idle"]


async def test_every_posture_looks_different():
    seen = {}
    for posture in ("idle", "listening", "thinking"):
        async with Room(block_s=0.1, mode="push") as room:
            room.session.set_posture(posture)
            await room.until(3.0)
            seen[posture] = next(picture.image for picture in room.pictures if picture.frame == 40)
    assert all((seen[a] != seen[b]).any() for a, b in (("idle", "listening"), ("idle", "thinking")))
    assert (seen["listening"] != seen["thinking"]).any()


async def test_an_idle_prompt_holds_where_nobody_speaks():
    async with Room(block_s=0.1, mode="push") as room:
        await room.until(1.0)
        room.session.set_prompt("happy")
        planned = room.session.set_idle_prompt("sad")
        await room.run(1.0)
        changes = room.told("prompt_applied")
        assert [change.data["block"] for change in changes] == [planned.block]
        assert room.engine._tenants["s"].spec.prompt == "sad"
        room.session.set_prompt("joy")
        await room.run(1.0)
        assert len(room.told("prompt_applied")) == 1, "the prompt waits for speech"
        name = room.session.begin_segment()
        room.session.push_pcm(babble(1.0), 16_000, name)
        room.session.end_segment(name)
        await room.run(0.6)
        assert room.engine._tenants["s"].spec.prompt == "joy"
        await room.run(3.0)
        assert room.engine._tenants["s"].spec.prompt == "sad"
        assert len(room.told("prompt_applied")) == 3
        room.session.set_idle_prompt(None)
        await room.run(1.0)
        assert room.engine._tenants["s"].spec.prompt == "joy"


async def test_a_change_shows_neither_a_held_nor_a_black_picture():
    async with Room(block_s=0.1, image=PORTRAIT) as room:
        await room.until(1.0)
        since = len(room.pictures)
        for shade, prompt in ((200, "happy"), (90, "sad"), (128, "joy")):
            room.session.set_prompt(prompt)
            room.session.set_avatar(np.full((80, 80, 3), shade, np.uint8), f"shade {shade}")
            await room.run(1.5)
        shown = room.pictures[since:]
        assert [picture.frame for picture in shown] == list(range(shown[0].frame, shown[0].frame + len(shown)))
        assert all(picture.is_fresh and picture.image[2, 2, 0] >= 90 for picture in shown)
        for applied in room.told("avatar_applied"):
            corner = {picture.frame: int(picture.image[2, 2, 0]) for picture in shown}
            assert f"shade {corner[applied.data['frame']]}" == applied.data["avatar"]
            assert corner[applied.data["frame"] - 1] != corner[applied.data["frame"]]
        assert len(room.told("avatar_applied")) == len(room.told("prompt_applied")) == 3


@pytest.mark.parametrize("block_s", [0.1, 0.2, 0.3])
async def test_after_an_interrupt_the_mouth_rests_within_a_block_and_150_ms(block_s):
    rests, silences = [], []
    for phase in range(8):
        async with Room(block_s=block_s, mode="push") as room:
            await room.until(0)
            name = room.session.begin_segment()
            room.session.push_pcm(babble(9.0), 16_000, name)
            await room.run(4.0 + phase * 0.06)
            at = room.now_s()
            room.session.interrupt()
            await room.run(2.0)
            open_ = [p.index / 25 for p in room.pictures if mouth_opening(p) > 0.02]
            loud_ = [s.index * 0.02 for s in room.sounds if np.abs(s.pcm).max() > 300]
            rests.append(max(open_) + 0.04 - at)
            silences.append(max(loud_) + 0.02 - at)
    print(f"mouth {1000 * max(rests):.0f} ms, sound {1000 * max(silences):.0f} ms")
    assert max(silences) <= 0.06
    assert max(rests) <= 0.48 + 0.15

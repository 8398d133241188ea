"""How far windows reach into the future: as far as it is known, and no further; microphones wait for nothing more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.fake import FakeConfig, FakeModel
from model.interface import BlockRequest, SessionSpec
from streaming.offline import speech_frames
from tests.fakes import Room, babble

QUEUED = 20_480
BLOCK = 7680
SILENCE = np.zeros(16_000, np.float32)


def far_sighted() -> FakeModel:
    """The stand-in, as if its speech encoder made use of 1.28 s of future where that is known."""
    model = FakeModel(FakeConfig(width=64, height=64))
    model.info = replace(model.info, window=replace(model.info.window, queued_samples=QUEUED))
    return model


def offline_requests(sound: np.ndarray) -> list[BlockRequest]:
    model, requests = far_sighted(), []
    step = model.step
    model.step = lambda request: requests.append(request) or step(request)
    model.open(SessionSpec(session="offline", image=np.full((64, 64, 3), 128, np.uint8)))
    list(speech_frames(model, [sound]))
    return requests


def ahead(request: BlockRequest) -> int:
    return len(request.window) - FakeConfig().left_samples - BLOCK


async def pushed_room(room: Room, sound: np.ndarray, name: str = "a") -> None:
    room.session.begin_segment(name)
    room.session.push_pcm(sound, 16_000, name)
    room.session.end_segment(name)


def test_a_file_is_heard_far_ahead() -> None:
    sound = babble(3.0)
    requests = offline_requests(sound)
    spec = far_sighted().info.window
    padded = np.pad(sound, (spec.left_samples, spec.most_samples))
    for request in requests[1:-3]:
        start = request.block * BLOCK
        assert ahead(request) == QUEUED
        assert np.array_equal(request.window[-QUEUED:], padded[start:][spec.most_samples - QUEUED : spec.most_samples])
    assert len(requests) == 7 and ahead(requests[-1]) == QUEUED, "beyond the end of a file is silence, and known"
    assert not requests[-1].window[-QUEUED:].any()


async def test_queued_speech_is_heard_as_a_file_is() -> None:
    sound = np.concatenate([babble(2.0), SILENCE, babble(2.5, seed=2)])
    async with Room(model=far_sighted(), mode="push") as room:
        await pushed_room(room, sound)
        await room.run(8.0)
        live = {request.block: request for request in room.engine.requests}
    for request in offline_requests(sound):
        assert np.array_equal(live[request.block].window, request.window), request.block
        assert live[request.block].posture == request.posture
    after = live[len(offline_requests(sound)) + 1]
    assert ahead(after) == 1280, "idle, nothing is known of what comes"


async def test_a_real_speech_encoder_hears_queued_speech_as_a_file_at_sixteen_pictures_a_second() -> None:
    """The published model's parts at laptop size: film and live session show the same pictures."""
    from model.config import RunConfig
    from model.forge import random_modules
    from model.generator import Generator
    from model.profile import Profile
    from model.solvers import with_choices

    config, modules = random_modules("mini")
    config = with_choices(config, modules, RunConfig(checkpoint="random:mini", size="64x64", fps=16))
    model = Generator(config, modules, Profile.untimed(config))
    assert model.info.geometry.samples_per_block == 12_000 and model.info.window.queued_samples == QUEUED
    sound, image = babble(2.1), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    portrait = model._portrait(image)
    model._portrait = lambda image: portrait
    model.open(SessionSpec(session="offline", image=image, seed=3))
    offline = np.concatenate(list(speech_frames(model, [sound], session="offline")))
    model.close("offline")
    async with Room(model=model, block_s=0.1, mode="push", image=image) as room:
        await pushed_room(room, sound)
        await room.run(4.5)
        live = {picture.frame: picture.image for picture in room.pictures if picture.is_fresh}
        assert room.session.playout.counters.underruns == 0
        (started,), (finished,) = room.told("playback_started"), room.told("playback_finished")
        assert finished.pts_ms - started.pts_ms == pytest.approx(2100, abs=25)
    assert len(offline) == 34 == -(-len(sound) // 1000)
    assert max(np.abs(live[k].astype(int) - offline[k]).max() for k in range(len(offline))) <= 1
    assert len({picture.tobytes() for picture in offline}) > 20, "and they move"


async def test_a_microphone_waits_for_no_more_than_before() -> None:
    async with Room(model=far_sighted()) as room, Room() as plain:
        for each in (room, plain):
            await each.until(0)
            await each.speak(np.concatenate([babble(1.5), SILENCE]))
            await each.run(1.0)
        assert room.session.latency_s == plain.session.latency_s
        assert {ahead(request) for request in room.engine.requests} == {1280}
        for far, near in zip(room.engine.requests, plain.engine.requests, strict=True):
            assert np.array_equal(far.window, near.window)


@pytest.mark.parametrize("make", [far_sighted, lambda: None], ids=["far", "near"])
async def test_a_source_that_just_keeps_up_begins_as_early_and_leaves_no_hole(make) -> None:
    sound = babble(4.0)
    async with Room(model=make(), mode="push") as room:
        await room.until(1.0)
        room.session.begin_segment("a")
        for at in range(0, len(sound), 640):
            room.session.push_pcm(sound[at : at + 640], 16_000, "a")
            await room.run(0.04)
        room.session.end_segment("a")
        await room.run(3.0)
        (started,), (finished,) = room.told("playback_started"), room.told("playback_finished")
        print(f"begins {started.pts_ms} ms, ends {finished.pts_ms} ms")
        assert finished.data["position_ms"] == 4000
        assert finished.pts_ms - started.pts_ms == pytest.approx(4000, abs=25), "no hole"
        assert started.pts_ms - 1000 * room.media_s(1.0) < 500 + 160


async def test_an_interrupt_takes_back_what_was_laid_ahead() -> None:
    began = {}
    for name, model in (("far", far_sighted()), ("near", None)):
        async with Room(model=model, mode="push") as room:
            await room.until(0)
            await pushed_room(room, babble(6.0))
            await room.run(3.0)
            at = room.now_s()
            assert room.session.interrupt().interrupted
            await pushed_room(room, babble(1.0, seed=3), "b")
            await room.run(4.0)
            starts = [e.pts_ms for e in room.told("playback_started") if e.data["segment"] == "b"]
            began[name] = starts[0] - 1000 * at
            last = room.told("playback_finished")[-1].data
            assert last == {"segment": "b", "position_ms": 1000, "interrupted": False}
            assert room.loud(at + 0.04, at + began[name] / 1000 - 0.04) == 0
            assert room.session.state == "idle" and room.session.playout.counters.underruns == 0
    assert began["far"] == began["near"], "the answer to a barge-in is not later for what had been queued"


async def test_after_an_interrupt_the_windows_forget_the_future_too() -> None:
    async with Room(model=far_sighted(), mode="push") as room:
        await room.until(0)
        await pushed_room(room, babble(6.0))
        await room.run(2.0)
        room.session.interrupt()
        first = len(room.engine.requests)
        await room.run(3.0)
        later = [request for request in room.engine.requests[first:] if request.epoch == 1]
        assert later and all(ahead(request) == 1280 for request in later)
        assert not later[-1].window[-BLOCK - 1280 :].any()


async def test_the_microphone_has_the_word_again_when_pushed_speech_has_passed() -> None:
    """Speech that lies ahead is not overwritten, nothing of either is dropped, and both are told."""
    async with Room(model=far_sighted()) as room:
        await room.until(0)
        await pushed_room(room, np.full(24_000, 0.25, np.float32))
        await room.speak(SILENCE[:800])
        await room.speak(babble(1.0))
        assert not room.session.stream.windows.repeated_samples
        await room.speak(np.concatenate([SILENCE, SILENCE]))
        await room.speak(babble(1.0, seed=4))
        await room.speak(np.concatenate([SILENCE, SILENCE]))
        segments = [(e.type.split("_")[1], e.data["segment"]) for e in room.events if e.type.startswith("playback")]
        assert segments[:2] == [("started", "a"), ("finished", "a")]
        assert [kind for kind, _ in segments[2:]] == ["started", "finished"]
        assert room.told("playback_finished")[0].data["position_ms"] == 1500
        assert room.session.stream.windows.repeated_samples == room.session.stream.windows.late_samples == 0

"""Whatever the network, the model and the sender do: time only rises, nothing stalls, nothing slips out of step."""

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.control import Interrupt, Open, Skipped, Step
from model.desk import Desk
from model.interface import BlockRequest, SessionSpec
from streaming.config import WindowConfig
from streaming.playout import Playout
from streaming.segments import SegmentBook
from streaming.timeline import Timeline
from tests.fakes import PORTRAIT, Room, babble, microphone_frame

START = 500.0


@settings(max_examples=60, deadline=None)
@given(
    pulls=st.lists(st.floats(0.0, 0.3), min_size=20, max_size=120),
    delays=st.lists(st.floats(-1.0, 1.5), min_size=1, max_size=12),
)
def test_presentation_follows_the_clock_and_nothing_else(pulls, delays):
    """Random pulls and arrivals: indices only rise, a fresh picture is the one that is due, no pull waits."""
    playout = Playout(fps=25, start_s=START, portrait=PORTRAIT[:4, :4])
    playout.begin(first_picture=20, frames_per_block=12, read=lambda lo, hi: np.zeros(hi - lo, np.float32))
    arrivals = {block: playout.frame_s(12 * block) + delays[block % len(delays)] for block in range(60)}
    held, now = set(), START
    last_picture = last_sound = -1
    for step in pulls:
        now += step
        for block, at in list(arrivals.items()):
            if at <= now:
                frames = np.broadcast_to(
                    np.arange(12 * block, 12 * block + 12)[:, None, None, None] % 251, (12, 4, 4, 3)
                )
                held.add(block)
                playout.add(12 * block, frames.astype(np.uint8), lambda block=block: held.discard(block))
                del arrivals[block]
        picture = playout.frame_due(now)
        if picture is not None:
            assert picture.index > last_picture
            assert abs(START + picture.index / 25 - now) <= 0.0401, "always the newest that is due"
            assert picture.frame == picture.index - 20
            if picture.is_fresh:
                assert (picture.image == picture.frame % 251).all()
            last_picture = picture.index
        else:
            assert playout.next_picture_s > now
        while (sound := playout.next_audio(now)) is not None:
            assert sound.index > last_sound and len(sound.pcm) == 960
            last_sound = sound.index
        assert playout.next_sound_s > now - 0.001
        assert all(12 * block + 12 > picture_frame(playout) for block in held), "what has been shown is released"
    playout.drop()
    assert not held


def picture_frame(playout: Playout) -> int:
    """First frame that can still be shown."""
    return round((playout.next_picture_s - playout.start_s) * 25) - 20


class Network:
    """Frames of 20 ms from a source, with what a network does to them."""

    def __init__(self, seed: int, loss: float, jitter_ms: float, first_tick: int) -> None:
        rng = np.random.default_rng(seed)
        self.frames = []  # arrival in samples, index
        for index in range(400):
            if rng.random() >= loss:
                late = rng.exponential(jitter_ms / 3) if jitter_ms else 0.0
                self.frames.append((index * 320 + min(late, jitter_ms) * 16, index))
                if rng.random() < 0.02:
                    self.frames.append((index * 320 + min(late, jitter_ms) * 16 + 100, index))
        self.frames.sort()
        self.first_tick = first_tick


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    loss=st.floats(0, 0.3),
    jitter_ms=st.floats(0, 35),
    first_tick=st.integers(0, 2**32 - 1),
    rate=st.sampled_from([8_000, 16_000, 48_000]),
)
def test_loss_jitter_repeats_and_wrapping_never_misplace_a_sample(seed, loss, jitter_ms, first_tick, rate):
    network = Network(seed, loss, jitter_ms, first_tick)
    timeline = Timeline(WindowConfig())
    ticks_per_frame = rate // 50
    anchors = []
    for arrival, index in network.frames:
        ticks = (first_tick + index * ticks_per_frame) % 2**32
        start = timeline.place(
            320, now=round(arrival), ticks=ticks, duration_ticks=ticks_per_frame, ticks_hz=rate, is_quiet=False
        )
        anchors.append(start - index * 320)
    assert len(set(anchors)) == 1, "every frame lies where its timestamp says"


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["talk", "gap", "late", "jump", "rate", "slow", "kill", "interrupt", "mute", "stall"]),
            st.floats(0.05, 1.2),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_nothing_stalls_a_session_or_puts_it_out_of_step(events):
    asyncio.run(_live_through(events))


async def _live_through(events: list[tuple[str, float]]) -> None:
    async with Room(block_s=0.1) as room:
        await room.until(0)
        for number, (kind, amount) in enumerate(events):
            await _happen(room, kind, amount, number)
        room.engine.block_s = 0.1
        room.session.mute(False)
        if room.engine.state != "ready":
            room.engine.revive()
        await room.speak(np.zeros(16_000 * 2, np.float32))
        await room.speak(babble(2.0, seed=99))
        await room.run(1.0)
        _check_time(room)
        recent = room.pictures[-20:]
        assert all(picture.is_fresh for picture in recent), "it always comes back"
        assert not room.told("error")


async def _happen(room: Room, kind: str, amount: float, seed: int) -> None:
    sound = babble(amount, seed=seed)
    if kind == "talk":
        await room.speak(sound)
    elif kind == "gap":
        await room.run(amount)
        room._fed += round(amount * 16_000)
    elif kind == "late":  # the network stalls, then everything comes at once
        await room.run(amount)
        for at in range(0, len(sound) - 320, 320):
            room.session.push_audio(microphone_frame(sound[at : at + 320], pts=room._fed))
            room._fed += 320
    elif kind == "jump":
        room._fed += round(amount * 1e7)
        await room.speak(sound[:3200])
    elif kind == "rate":
        for at in range(0, len(sound) - 960, 960):
            room.session.push_audio(microphone_frame(sound[at : at + 960], rate_hz=48_000))
            await room.run(0.02)
    elif kind == "slow":
        room.engine.block_s = amount
        await room.speak(sound)
    elif kind == "kill" and room.engine.state == "ready":
        await room.engine.kill()
        await room.run(amount)
        room.engine.revive()
        room._fed += round(amount * 16_000)
    elif kind == "interrupt":
        room.session.interrupt()
        await room.run(amount)
    elif kind == "mute":
        room.session.mute(seed % 2 == 0)
        await room.speak(sound)
    elif kind == "stall":
        room.clock._now_s += amount * 5
        await room.clock.settle()
        room._fed += round(amount * 5 * 16_000)


def _check_time(room: Room) -> None:
    for sent in (room.pictures, room.sounds):
        indices = [item.index for item in sent]
        assert indices == sorted(set(indices))
    fresh = [picture for picture in room.pictures if picture.is_fresh]
    assert len({picture.index - picture.frame for picture in fresh}) == 1, "latency never changes"
    blocks = [request.block for request in room.engine.requests]
    assert blocks == sorted(set(blocks)), "the model only goes forward"
    finished = [event.data["segment"] for event in room.told("playback_finished")]
    finished = [name for name in finished if name is not None]  # None: an interrupt that had nothing to stop
    started = [event.data["segment"] for event in room.told("playback_started")]
    assert len(finished) == len(set(finished)) and len(started) == len(set(started))
    stamps = [event.pts_ms for event in room.events]
    assert stamps == sorted(stamps)


@settings(max_examples=80, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.floats(0.1, 10), st.booleans()), min_size=1, max_size=30
    )
)
def test_the_desk_is_deadline_first_and_answers_everything(asked):
    dropped: list[Skipped] = []
    desk = Desk(dropped.append)
    for name in "ab":
        desk.put(Open(SessionSpec(session=name, image=PORTRAIT)), 0.0)
        desk.take(0.0)
    done, now = [], 0.0
    window = np.zeros(1, np.float32)
    for block, (session, epoch, deadline_s, interrupts) in enumerate(asked):
        if interrupts:
            desk.put(Interrupt(session, epoch), now)
        desk.put(
            Step(BlockRequest(session=session, block=block, epoch=epoch, window=window, deadline_s=deadline_s)), now
        )
    while (job := desk.take(now)) is not None:
        assert job.request.deadline_s >= now, "nothing late is begun"
        done.append(job.request)
        now += 0.7
    deadlines = [request.deadline_s for request in done]
    assert deadlines == sorted(deadlines)
    answered = sorted([request.block for request in done] + [skipped.block for skipped in dropped])
    assert answered == list(range(len(asked)))


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    holes=st.lists(st.integers(0, 2000), min_size=8, max_size=8),
    steps=st.lists(st.integers(1, 4000), min_size=1, max_size=40),
    cut_at=st.integers(0, 60),
)
def test_every_segment_ends_exactly_once(lengths, holes, steps, cut_at):
    book, at = SegmentBook(), 0
    for index, length in enumerate(lengths):
        name = str(index)
        book.begin(name)
        for part in (length // 2, length - length // 2):
            at += holes[index]
            book.extend(name, at, at + part)
            at += part
        book.complete(name)
    turns, sample = [], 0
    for index, step in enumerate(steps):
        sample += step
        turns += list(book.advance(sample))
        if index == cut_at:
            turns += book.interrupt(sample)[1]
    turns += book.interrupt(sample)[1]
    finished = [turn.report for turn in turns if turn.kind == "playback_finished"]
    assert [report.segment for report in finished] == [str(index) for index in range(len(lengths))]
    for report in finished:
        whole_ms = lengths[int(report.segment)] * 1000 // 16_000
        assert 0 <= report.position_ms <= whole_ms and (report.interrupted or report.position_ms == whole_ms)

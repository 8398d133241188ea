"""Playout: strictly by the clock, holding and dropping, sound in step."""

from fractions import Fraction

import numpy as np
import pytest

from streaming.playout import Playout

START = 1000.0
PORTRAIT = np.full((4, 6, 3), 7, np.uint8)


def block(first: int, num: int = 12) -> np.ndarray:
    """Frames whose every pixel is their index."""
    return np.broadcast_to((np.arange(first, first + num) % 251)[:, None, None, None], (num, 4, 6, 3)).astype(np.uint8)


class Stage:
    """A playout whose stream begins at picture 30, and what it releases."""

    def __init__(self, sound: np.ndarray | None = None) -> None:
        self.playout = Playout(fps=25, start_s=START, portrait=PORTRAIT)
        self.released: list[int] = []
        self.sound = np.zeros(100_000, np.float32) if sound is None else sound

    def begin(self) -> Playout:
        self.playout.begin(first_picture=30, frames_per_block=12, read=self.read)
        return self.playout

    def read(self, lo: int, hi: int) -> np.ndarray:
        padded = np.concatenate([np.zeros(4000, np.float32), self.sound])
        return padded[4000 + lo : 4000 + hi]

    def add(self, first: int) -> None:
        self.playout.add(first, block(first), lambda: self.released.append(first))

    def pull(self, index: int):
        return self.playout.frame_due(START + index / 25)


def test_the_portrait_shows_until_the_first_frame():
    stage = Stage()
    pictures = [stage.pull(index) for index in range(10)]
    assert [p.index for p in pictures] == list(range(10))
    assert all((p.image == 7).all() and not p.is_fresh and p.frame is None for p in pictures)
    assert pictures[3].pts_s == Fraction(3, 25)
    stage.playout.show(PORTRAIT + 1)
    assert (stage.pull(10).image == 8).all()
    assert stage.playout.counters.underruns == stage.playout.counters.held_frames == 0


def test_nothing_is_due_before_its_time():
    stage = Stage()
    assert stage.playout.next_picture_s == START and stage.playout.frame_due(START - 0.002) is None
    assert stage.pull(0).index == 0 and stage.pull(0) is None
    assert stage.playout.next_picture_s == START + 0.04
    assert stage.playout.frame_due(START + 0.0385) is None
    assert stage.playout.frame_due(START + 0.0395).index == 1, "timers wake a little early"


def test_frames_are_shown_at_their_time():
    stage = Stage()
    stage.begin()
    stage.add(0)
    stage.add(12)
    for index in range(54):
        picture = stage.pull(index)
        if index < 30:
            assert picture.frame == index - 30 and not picture.is_fresh
        else:
            assert picture.is_fresh and (picture.image == index - 30).all()
    assert stage.released == [0, 12] and stage.playout.counters.fresh_frames == 24


def test_a_late_block_holds_the_picture_and_loses_its_past():
    stage = Stage()
    stage.begin()
    stage.add(0)
    for index in range(47):
        stage.pull(index)
    held = [stage.pull(index) for index in range(47, 50)]
    assert all((p.image == 11).all() and not p.is_fresh for p in held)
    assert held[0].image is held[2].image
    stage.add(12)
    fresh = stage.pull(50)
    assert fresh.is_fresh and (fresh.image == 20).all(), "it takes up where the clock stands"
    counters = stage.playout.counters
    assert (counters.held_frames, counters.underruns, counters.late_frames) == (8, 8, 8)
    stage.add(0)
    assert counters.late_frames == 20 and stage.released == [0, 0]


def test_late_pulls_skip_pictures_and_never_wait():
    stage = Stage()
    stage.begin()
    stage.add(0)
    stage.add(12)
    stage.pull(35)
    jumped = stage.pull(50)
    assert jumped.index == 50 and (jumped.image == 20).all() and jumped.is_fresh
    assert stage.playout.counters.skipped_frames == 14 and stage.released == [0]


def test_what_nobody_pulls_expires():
    stage = Stage()
    stage.begin()
    for first in (0, 12, 24, 36):
        stage.add(first)
    stage.playout.expire(START + (30 + 30) / 25)
    assert stage.released == [0], "frame 18 and later may still be pulled"
    stage.playout.expire(START + (30 + 47) / 25)
    assert stage.released == [0, 12]
    assert (stage.pull(30 + 40).image == 40).all()


def test_dropping_holds_without_an_underrun():
    stage = Stage()
    playout = stage.begin()
    stage.add(0)
    stage.add(12)
    for index in range(36):
        stage.pull(index)
    playout.drop()
    playout.expect_from(24)
    assert stage.released == [0, 12]
    for index in range(36, 54):
        assert (stage.pull(index).image == 5).all()
    assert playout.counters.underruns == 0 and playout.counters.held_frames == 18
    stage.pull(54)
    assert playout.counters.underruns == 1
    playout.expect_from(None)
    stage.pull(55)
    assert playout.counters.underruns == 1


def test_images_outlive_their_block():
    stage = Stage()
    stage.begin()
    frames = block(0)
    stage.playout.add(0, frames, lambda: None)
    picture = stage.pull(30)
    frames[:] = 99
    assert (picture.image == 0).all() and not picture.image.flags.writeable


def test_sound_leaves_with_its_frame():
    sound = np.zeros(100_000, np.float32)
    sound[6400] = 1.0  # the first sample of frame 10
    stage = Stage(sound)
    playout = stage.begin()
    pieces = []
    now = START
    while len(pieces) < 120:
        piece = playout.next_audio(now)
        if piece is None:
            now = playout.next_sound_s
        else:
            assert piece.pts == len(pieces) * 960 and piece.index == len(pieces)
            pieces.append(piece.pcm)
    heard = np.concatenate(pieces)
    assert int(np.abs(heard).argmax()) == 48_000 * (30 + 10) // 25
    assert playout.frame_s(10) == pytest.approx(playout.sample_s(6400)) == START + 40 / 25
    assert playout.heard_sample(START + 40 / 25) == 6400


def test_before_the_stream_sound_is_silence():
    playout = Stage(np.ones(1000, np.float32)).playout
    assert not playout.next_audio(START).pcm.any()
    assert playout.heard_sample(START + 5) < 0


def test_late_sound_is_caught_up_or_skipped():
    stage = Stage()
    playout = stage.begin()
    drain = lambda now: [piece.index for piece in iter(lambda: playout.next_audio(now), None)]  # noqa: E731
    assert drain(START) == [0]
    assert drain(START + 0.2) == list(range(1, 11))
    assert playout.counters.skipped_sounds == 0
    assert drain(START + 1.0) == [50] and playout.counters.skipped_sounds == 39
    assert playout.next_sound_s == pytest.approx(START + 1.02)


def test_drift_is_the_difference_of_lags():
    stage = Stage()
    playout = stage.begin()
    for index in range(50):
        playout.next_audio(START + index * 0.02 + 0.003)
        playout.frame_due(START + index * 0.04 + 0.013)
    assert playout.av_drift_ms == pytest.approx(10, abs=0.1)
    assert playout.picture_lag_s == pytest.approx(0.013)


def test_queued_counts_what_waits():
    stage = Stage()
    playout = stage.begin()
    stage.add(0)
    stage.add(12)
    assert playout.queued_s == pytest.approx(24 / 25)
    stage.pull(30 + 5)
    assert playout.queued_s == pytest.approx(18 / 25)


@pytest.mark.parametrize("fps", [16, 25, 50])
def test_other_rates_keep_sound_and_picture_together(fps):
    playout = Playout(fps=fps, start_s=START, portrait=PORTRAIT)
    playout.begin(first_picture=17, frames_per_block=12, read=lambda lo, hi: np.zeros(hi - lo, np.float32))
    for frame in (0, 5, 100_000):
        assert playout.frame_s(frame) == pytest.approx(playout.sample_s(frame * 16_000 // fps), abs=1e-9)

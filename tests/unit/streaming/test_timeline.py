"""Placing a live source on the sample clock: loss, repeats, wrap-around, stalls, bursts, drifting clocks."""

import pytest

from streaming.config import WindowConfig
from streaming.timeline import Timeline

FRAME = 320
TICKS = 960


class Source:
    """Frames of 20 ms with timestamps at 48 kHz."""

    def __init__(self, first_tick: int = 0) -> None:
        self.timeline = Timeline(WindowConfig())
        self.ticks = first_tick

    def frame(self, now: int, *, skip: int = 0, quiet: bool = True) -> int:
        self.ticks += skip * TICKS
        start = self.timeline.place(
            FRAME, now=now, ticks=self.ticks % 2**32, duration_ticks=TICKS, ticks_hz=48_000, is_quiet=quiet
        )
        self.ticks += TICKS
        return start


def test_the_first_frame_is_laid_at_its_arrival_and_the_rest_follow():
    source = Source(first_tick=777)
    jitter = [0, 300, -200, 500, 900, 0]
    assert [source.frame(5000 + FRAME * i + late) for i, late in enumerate(jitter)] == [
        5000 + FRAME * i for i in range(6)
    ]


def test_lost_frames_leave_a_hole():
    source = Source()
    assert source.frame(0) == 0
    assert source.frame(1280, skip=3) == 1280
    assert source.timeline.counters.lost_samples == 960
    assert source.frame(1600) == 1600


def test_repeated_frames_are_placed_where_they_were():
    source = Source()
    for index in range(5):
        source.frame(FRAME * index)
    source.ticks -= 2 * TICKS
    assert source.frame(1600) == 960
    assert source.frame(1620) == 1280
    assert source.frame(1640) == 1600, "and then it goes on"


def test_timestamps_wrap():
    source = Source(first_tick=2**32 - 3 * TICKS)
    assert [source.frame(FRAME * i) for i in range(8)] == [FRAME * i for i in range(8)]
    assert source.timeline.counters.restarts == 0


@pytest.mark.parametrize("jump", [10_000, -10_000])
def test_a_jump_is_a_new_start(jump):
    source = Source(first_tick=20_000 * TICKS)
    source.frame(0)
    assert source.frame(500, skip=jump) == 500
    assert source.frame(820) == 820
    assert source.timeline.counters.restarts == 1


def test_rounded_timestamps_are_no_gaps():
    timeline = Timeline(WindowConfig())
    places = [
        timeline.place(FRAME, now=FRAME * i, ticks=20 * i + i % 3, duration_ticks=20, ticks_hz=1000) for i in range(9)
    ]
    assert places == [FRAME * i for i in range(9)]


def steady(source: Source, begin: int, num: int, *, offset: int, quiet: bool = True, pace: float = FRAME) -> list[int]:
    """Leads of `num` frames that arrive evenly."""
    leads = []
    for index in range(num):
        now = begin + offset + round(index * pace)
        leads.append(source.frame(now, quiet=quiet) - now)
    return leads


def test_a_stall_and_its_burst_move_nothing():
    source = Source()
    steady(source, 0, 100, offset=0)
    burst = [source.frame(100 * FRAME + 8000) for _ in range(25)]
    assert burst == [(100 + i) * FRAME for i in range(25)], "the backlog keeps its place, most of it too late"
    leads = steady(source, 125 * FRAME, 100, offset=0)
    assert set(leads) == {0} and source.timeline.counters.moves == 0


def test_a_burst_at_the_start_does_not_stay_as_latency():
    source = Source()
    for _ in range(50):
        source.frame(0)
    leads = steady(source, 0, 100, offset=0, quiet=False)
    assert leads[0] == 50 * FRAME
    assert leads[-1] == 0 and source.timeline.counters.moves == 1


@pytest.mark.parametrize("delay", [1500, 4000, 30_000])
def test_a_lasting_delay_is_followed(delay):
    source = Source()
    steady(source, 0, 100, offset=0, quiet=False)
    leads = steady(source, 100 * FRAME, 100, offset=delay, quiet=False)
    assert leads[0] == -delay and leads[-1] == 0


def test_a_small_delay_waits_for_a_pause():
    source = Source()
    steady(source, 0, 100, offset=0)
    assert set(steady(source, 100 * FRAME, 100, offset=800, quiet=False)) == {-800}
    assert steady(source, 200 * FRAME, 2, offset=800, quiet=True) == [0, 0]


@pytest.mark.parametrize("ppm", [300, -300])
def test_drifting_clocks_never_add_up(ppm):
    source = Source()
    leads = steady(source, 0, 50 * 600, offset=0, pace=FRAME * (1 + ppm * 1e-6))
    assert min(leads) > -960 and max(leads) < 640
    assert source.timeline.counters.moves >= 3


def test_a_source_without_timestamps_is_counted_and_its_pauses_seen():
    timeline = Timeline(WindowConfig())
    assert [timeline.place(FRAME, now=FRAME * i + 100 * (i % 2)) for i in range(6)] == [FRAME * i for i in range(6)]
    assert timeline.place(FRAME, now=90_000) == 90_000
    assert timeline.place(FRAME, now=90_320) == 90_320


def test_reset_forgets():
    source = Source()
    source.frame(0)
    source.timeline.reset()
    assert source.frame(9999) == 9999

"""The choice of the next item: what it may not overtake, who is first, how full the pipeline stays."""

from __future__ import annotations

import pytest

from model.scheduler import Item, Scheduler


def run(scheduler: Scheduler, ticks: int) -> list[Item | None]:
    taken = []
    for _ in range(ticks):
        taken.append(scheduler.take())
        if taken[-1] is None:
            scheduler.idle()
    return taken


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("steps", [3, 4])
def test_a_full_pipeline_reaches_its_ideal_within_eight_percent(stages: int, steps: int) -> None:
    """Blocks come as fast as they are finished, one more than there are stages under way."""
    scheduler, blocks, ends = Scheduler(stages, steps), 200, {}
    added = 0
    while len(ends) < blocks:
        done = sum(end <= scheduler.tick for end in ends.values())
        while added < blocks and added - done <= stages:
            scheduler.add(1, added, float(added + 1))
            added += 1
        item = scheduler.take()
        if item is None:
            scheduler.idle()
        elif item.step + 1 == steps:
            ends[item.block] = scheduler.tick - 1 + stages
    order = [ends[block] for block in range(blocks)]
    assert order == sorted(order)
    middle = order[150] - order[50]
    assert 0.96 * 100 * steps <= middle <= 1.08 * 100 * steps


@pytest.mark.parametrize("stages", [2, 4])
def test_a_block_alone_is_never_held_up(stages: int) -> None:
    scheduler = Scheduler(stages, 4)
    scheduler.add(1, 0)
    taken = run(scheduler, 4 * stages)
    assert [i for i, item in enumerate(taken) if item] == [stages * step for step in range(4)]


def test_a_step_waits_for_the_same_step_of_the_block_before() -> None:
    scheduler = Scheduler(4, 2)
    scheduler.add(1, 0, 9.0)
    scheduler.add(1, 1, 1.0)  # more urgent, but it sees the keys of block 0
    assert run(scheduler, 6) == [Item(1, 0, 0), Item(1, 1, 0), None, None, Item(1, 0, 1), Item(1, 1, 1)]


def test_the_earliest_deadline_goes_first_among_sessions() -> None:
    scheduler = Scheduler(1, 2)
    scheduler.add(1, 0, 5.0)
    scheduler.add(2, 7, 3.0)
    scheduler.add(3, 1)  # without a deadline
    order = [(item.stream, item.step) for item in run(scheduler, 6) if item]
    assert order == [(2, 0), (2, 1), (1, 0), (1, 1), (3, 0), (3, 1)]


def test_sessions_share_a_pipeline_without_waiting_for_each_other() -> None:
    scheduler = Scheduler(4, 4)
    for stream in range(4):
        scheduler.add(stream, 0, 1.0 + stream)
    assert None not in run(scheduler, 16)


def test_latents_that_are_back_early_need_not_wait_for_the_tick() -> None:
    scheduler = Scheduler(4, 2)
    scheduler.add(1, 0)
    item = scheduler.take()
    assert scheduler.take() is None
    scheduler.returned(item)
    assert scheduler.take() == Item(1, 0, 1)


def test_one_ring_for_all_steps_keeps_a_streams_blocks_apart() -> None:
    scheduler = Scheduler(2, 2, is_serial=True)
    scheduler.add(1, 0)
    scheduler.add(1, 1)
    assert run(scheduler, 5) == [Item(1, 0, 0), None, Item(1, 0, 1), Item(1, 1, 0), None]


def test_a_stream_that_starts_anew_waits_for_nothing() -> None:
    scheduler = Scheduler(4, 2)
    scheduler.add(1, 5)
    scheduler.forget(1)
    scheduler.add(2, 6)
    assert [item.stream for item in run(scheduler, 2) if item] == [1, 2]

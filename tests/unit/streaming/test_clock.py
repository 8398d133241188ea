"""The clocks: order, cancelling, and time that never goes back."""

import asyncio
import time

import pytest

from streaming.clock import RealClock, VirtualClock


async def test_the_virtual_clock_stops_at_every_timer_on_its_way():
    clock, seen = VirtualClock(10.0), []
    for due in (12.0, 11.0, 11.0, 15.0):
        clock.call_at(due, lambda due=due: seen.append((due, clock.now())))
    await clock.advance(3.0)
    assert seen == [(11.0, 11.0), (11.0, 11.0), (12.0, 12.0)] and clock.now() == 13.0
    clock.call_at(5.0, lambda: seen.append("late"))
    await clock.advance(0.0)
    assert seen[-1] == "late" and clock.now() == 13.0


async def test_sleepers_wake_in_order_and_may_sleep_again():
    clock, seen = VirtualClock(0.0), []

    async def tick(period: float) -> None:
        while True:
            await clock.sleep_until(clock.now() + period)
            seen.append((period, clock.now()))

    tasks = [asyncio.create_task(tick(period)) for period in (0.5, 0.75)]
    await clock.advance(1.6)
    assert seen == [(0.5, 0.5), (0.75, 0.75), (0.5, 1.0), (0.75, 1.5), (0.5, 1.5)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await clock.advance(5.0)
    assert len(seen) == 5


async def test_cancelled_timers_stay_silent():
    clock, seen = VirtualClock(0.0), []
    timer = clock.call_at(1.0, lambda: seen.append("no"))
    timer.cancel()
    await clock.advance(2.0)
    timer.cancel()
    assert seen == []


async def test_the_real_clock_is_the_machines():
    clock, seen = RealClock(), []
    assert abs(clock.now() - time.monotonic()) < 0.01
    begun = clock.now()
    clock.call_at(begun + 0.03, lambda: seen.append(clock.now()))
    clock.call_at(begun - 5.0, lambda: seen.append(clock.now()))
    clock.call_at(begun + 0.02, lambda: seen.append("cancelled")).cancel()
    await clock.sleep_until(begun + 0.05)
    assert clock.now() >= begun + 0.049
    assert len(seen) == 2 and seen[0] < begun + 0.03 <= seen[1] + 1e-3
    await clock.sleep_until(begun - 1)
    assert clock.now() < begun + 5


@pytest.mark.parametrize("make", [RealClock, VirtualClock])
async def test_sleeping_until_the_past_still_gives_way(make):
    clock, seen = make(), []
    asyncio.get_running_loop().call_soon(seen.append, "other work")
    await clock.sleep_until(clock.now() - 1)
    assert seen == ["other work"]

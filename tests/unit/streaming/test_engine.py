"""The engine with a real process behind it: results, death, restart, hanging, failing for good."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from model.control import Done
from model.interface import MOST_PAST_LATENTS, BlockRequest, SessionSpec, SessionUpdate
from streaming.config import EngineConfig
from streaming.engine import Engine, _Tenant, spread
from streaming.errors import EngineError, RefusedError

SPEC = {"kind": "fake", "width": 64, "height": 64, "threads": 1}
QUICK = EngineConfig(restart_delays_s=(0.05, 0.1), stop_timeout_s=1.0)
PORTRAIT = np.full((64, 64, 3), 128, np.uint8)
WINDOW = np.zeros(38_400, np.float32)


class Client:
    """A session that notes what the engine tells it."""

    def __init__(self) -> None:
        self.block = 0
        self.answers: asyncio.Queue = asyncio.Queue()
        self.lost: list[str] = []
        self.changes: list = []

    def next_block(self) -> int:
        return self.block

    def block_done(self, done) -> None:
        self.answers.put_nowait(done)

    def block_skipped(self, skipped) -> None:
        self.answers.put_nowait(skipped)

    def updated(self, info) -> None:
        self.changes.append(info)

    def update_refused(self, block: int, parts: tuple[str, ...], reason: str) -> None:
        self.changes.append((block, parts, reason))

    def session_lost(self, reason: str) -> None:
        self.lost.append(reason)

    async def answer(self, timeout_s: float = 10.0):
        return await asyncio.wait_for(self.answers.get(), timeout_s)


def request(block: int, *, epoch: int = 0, session: str = "a", in_s: float = 30.0) -> BlockRequest:
    deadline_s = time.monotonic() + in_s
    return BlockRequest(session=session, block=block, epoch=epoch, window=WINDOW, deadline_s=deadline_s)


def shared_memory() -> list[Path]:
    return list(Path("/dev/shm").glob("avatarcast_*"))


@pytest.fixture
async def engine():
    """A factory of engines that are stopped, and leave nothing behind, at the end."""
    engines: list[Engine] = []
    threads = set(threading.enumerate())

    async def make(config: EngineConfig = QUICK, **spec: object) -> Engine:
        made = Engine({**SPEC, **spec}, config)
        engines.append(made)
        await made.start()
        return made

    yield make
    for made in engines:
        await made.stop()
        assert made.pid is None
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "engine"]
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("model-")]
    assert not shared_memory()


def states(engine: Engine) -> list[str]:
    seen = [engine.state]
    engine.listen(seen.append)
    return seen


async def until(condition, timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


async def test_blocks_come_back_in_order_with_their_times(engine):
    one, client = await engine(), Client()
    info = await one.ready()
    assert info.geometry.width == 64 and one.state == "ready" and one.info is info
    opened = await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    assert opened.portrait.shape == (64, 64, 3)
    one.update(SessionUpdate(session="a", block=1, prompt="happy"))
    for block in range(6):
        asked = time.monotonic()
        assert one.submit(request(block))
        done = await client.answer()
        assert (done.block, done.epoch, done.frames.shape) == (block, 0, (12, 64, 64, 3))
        assert asked <= done.started_s <= done.finished_s <= time.monotonic()
        done.release()
    assert [(change.block, change.in_domain) for change in client.changes] == [(1, True)]


async def test_work_is_bounded_per_session(engine):
    one, client = await engine(EngineConfig(max_pending_blocks=2), block_s=0.2), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    assert [one.submit(request(block)) for block in range(3)] == [True, True, False]
    assert not one.submit(request(0, session="unknown"))
    (await client.answer()).release()
    assert one.submit(request(3))


async def test_interrupted_blocks_are_forgotten_and_late_ones_answered(engine):
    one, client = await engine(block_s=0.15), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    one.submit(request(0))
    one.submit(request(1, in_s=0.05))
    one.submit(request(2))
    await asyncio.sleep(0.05)
    one.interrupt("a", 1)
    assert not one._tenants["a"].pending
    one.submit(request(3, epoch=1))
    await asyncio.sleep(0.05)
    one.submit(request(4, epoch=1, in_s=0.02))
    late, done = await client.answer(), await client.answer()
    assert (done.block, done.epoch) == (3, 1) and (late.block, late.reason) == (4, "deadline")


async def test_a_killed_process_degrades_at_once_and_sessions_go_on(engine):
    one, a, b = await engine(), Client(), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), a)
    await one.open_session(SessionSpec(session="b", image=PORTRAIT), b)
    seen = states(one)
    one.submit(request(0))
    held = await a.answer()
    one.update(SessionUpdate(session="a", block=0, prompt="sad"))
    a.block, b.block = 17, 23
    killed = time.monotonic()
    os.kill(one.pid, signal.SIGKILL)
    await until(lambda: one.state == "degraded")
    assert time.monotonic() - killed < 1.0
    assert "SIGKILL" in one.failure
    assert not one.submit(request(1)), "nothing is taken while it is away"
    assert held.frames[0, 0, 0].tolist() == [128] * 3, "pictures at hand stay"
    await one.ready()
    assert seen == ["ready", "degraded", "ready"] and one.restarts == 1
    assert [one._tenants[name].spec.first_block for name in "ab"] == [17, 23]
    assert one._tenants["a"].spec.prompt == "sad"
    held.release()
    for client, name, block in ((a, "a", 17), (b, "b", 23)):
        assert one.submit(request(block, session=name))
        done = await client.answer()
        assert done.block == block
        done.release()


async def test_dying_again_and_again_fails_with_the_reason(engine):
    one, client = await engine(), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    seen = states(one)
    for _ in range(3):
        await one.ready()
        os.kill(one.pid, signal.SIGTERM)
        await until(lambda: one.state != "ready")
    await until(lambda: one.state == "failed")
    assert seen == ["ready", "degraded", "ready", "degraded", "ready", "failed"]
    with pytest.raises(EngineError, match="SIGTERM"):
        await one.ready()
    with pytest.raises(EngineError, match="SIGTERM"):
        await one.open_session(SessionSpec(session="b", image=PORTRAIT), client)


async def test_a_reason_that_cannot_mend_fails_at_once_and_word_for_word(engine):
    one = await engine(load_error="tiny.safetensors is missing; run make weights")
    with pytest.raises(EngineError) as caught:
        await one.open_session(SessionSpec(session="a", image=PORTRAIT), Client())
    assert str(caught.value) == "tiny.safetensors is missing; run make weights"
    assert one.state == "failed" and one.restarts == 0


async def test_a_hung_block_is_noticed(engine):
    one = await engine(EngineConfig(step_timeout_s=0.3, restart_delays_s=(0.05, 0.05)), hang_block=5)
    client = Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    one.submit(request(5))
    client.block = 6
    await until(lambda: one.state == "degraded")
    assert "hung in one block" in one.failure
    await one.ready()
    one.submit(request(6))
    (await client.answer()).release()


async def test_a_silent_process_is_noticed(engine):
    one = await engine(EngineConfig(heartbeat_timeout_s=1.5, restart_delays_s=(0.05,)))
    await one.ready()
    os.kill(one.pid, signal.SIGSTOP)
    await until(lambda: one.state == "degraded")
    assert "no sign of life" in one.failure
    await one.ready()


async def test_a_start_that_takes_too_long_is_given_up(engine):
    one = await engine(EngineConfig(start_timeout_s=1.0, restart_delays_s=()), load_s=60.0)
    with pytest.raises(EngineError, match=r"start within 1 s; raise engine\.start_timeout_s"):
        await one.ready()


@pytest.mark.parametrize("error", [RuntimeError("bootstrapping"), OSError("no memory")])
async def test_a_process_that_cannot_be_spawned_fails_instead_of_hanging(engine, monkeypatch, error):
    def refuse(self) -> None:
        raise error

    monkeypatch.setattr("model.launch.WorkerProcess.start", refuse)
    one = await engine(EngineConfig(restart_delays_s=(0.01,)))
    with pytest.raises(EngineError, match=f"could not be started: .*{error}"):
        await asyncio.wait_for(one.ready(), 5)
    assert one.state == "failed"


async def test_failing_blocks_are_told_with_the_models_words(engine):
    one, client = await engine(fail_block=1), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    one.submit(request(1))
    skipped = await client.answer()
    assert skipped.reason == "failed" and "asked to fail" in skipped.message
    one.submit(request(2))
    (await client.answer()).release()
    assert one.state == "ready"


async def test_a_refused_portrait_is_a_typed_error(engine):
    one, client = await engine(), Client()
    with pytest.raises(RefusedError, match="RGB"):
        await one.open_session(SessionSpec(session="a", image=np.zeros((64, 64), np.uint8)), client)
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)


async def test_the_loop_never_waits_for_the_process(engine):
    one, client = await engine(block_s=0.3), Client()
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), client)
    big = np.zeros((2000, 2000, 3), np.uint8)
    lags = []

    async def watch() -> None:
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.005)
            lags.append(time.monotonic() - asked - 0.005)

    watcher = asyncio.create_task(watch())
    for block in range(3):
        one.submit(request(block))
        one.update(SessionUpdate(session="a", block=block, image=big))
    for _ in range(3):
        (await client.answer()).release()
    watcher.cancel()
    print(f"loop lag p99 {1000 * np.percentile(lags, 99):.1f} ms, max {1000 * max(lags):.1f} ms")
    assert np.percentile(lags, 90) < 0.05, "several megabytes in the pipe of a busy process must not stall the loop"


async def test_stopping_in_the_middle_of_everything(engine):
    one = await engine(load_s=30.0)
    opening = asyncio.create_task(one.open_session(SessionSpec(session="a", image=PORTRAIT), Client()))
    await asyncio.sleep(0.5)
    started = time.monotonic()
    await one.stop()
    assert time.monotonic() - started < 5
    with pytest.raises(EngineError, match="stopped"):
        await opening
    await one.stop()


async def test_cancelled_openings_leave_no_session(engine):
    one = await engine(load_s=0.3)
    opening = asyncio.create_task(one.open_session(SessionSpec(session="a", image=PORTRAIT), Client()))
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await one.open_session(SessionSpec(session="a", image=PORTRAIT), Client())
    await one.close_session("a")
    await one.close_session("a")


def test_phases_are_spread():
    assert spread(100.0, [], 0.48) == 100.0
    second = spread(100.0, [100.0], 0.48)
    assert second == pytest.approx(100.24)
    third = spread(200.0, [100.0, second], 0.48)
    assert 200 <= third < 200.48
    distances = [abs((third - other + 0.24) % 0.48 - 0.24) for other in (100.0, second)]
    assert min(distances) == pytest.approx(0.12)


def test_a_session_goes_on_from_what_it_showed_last() -> None:
    tenant = _Tenant(SessionSpec(session="a", image=PORTRAIT), Client(), None)

    def done(block: int, applied: tuple[str, ...] = ()) -> None:
        latents = np.full((2, 3, 1, 1), block, np.float16)
        tenant.remember(
            Done(session="a", block=block, epoch=0, slot=0, started_s=0, finished_s=0, applied=applied, latents=latents)
        )

    for block in range(10):
        done(block)
    kept = np.concatenate(tenant.past, 1)[0, :, 0, 0]
    assert kept[-1] == 9 and MOST_PAST_LATENTS <= len(kept) < MOST_PAST_LATENTS + 3
    tenant.past.clear()
    tenant.awaits_image = True
    done(10), done(11, ("image",)), done(12)
    assert [block[0, 0, 0, 0] for block in tenant.past] == [11, 12], "an older portrait is not gone on from"

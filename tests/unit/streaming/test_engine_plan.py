"""The engine over a plan of two real processes: blocks, an interrupt, a killed rank, sessions that go on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest

from model.interface import BlockRequest, SessionSpec
from model.rank import HURRY_S
from streaming.config import EngineConfig
from streaming.engine import BlockDone, Engine
from tests.unit.streaming.test_engine import Client, states, until

SPEC = {
    "kind": "checkpoint",
    "checkpoint": "tiny",
    "size": "64x64",
    "device": "cpu",
    "threads": 1,
    "plan": {"kind": "layers", "pipeline": 2},
}
CONFIG = EngineConfig(restart_delays_s=(0.05, 0.1), stop_timeout_s=3.0)


async def test_a_plan_serves_and_survives_the_death_of_any_rank() -> None:
    engine = Engine(SPEC, CONFIG)
    await engine.start()
    try:
        info = await asyncio.wait_for(engine.ready(), 90)
        assert len(set(engine.pids)) == 2
        assert info.depth > 1 and 0 < info.interval_s
        assert info.profile["plan"] == "layers 2"
        client, window = Client(), np.zeros(info.window.samples, np.float32)

        def ask(block: int, epoch: int = 0) -> bool:
            deadline_s = time.monotonic() + 30
            return engine.submit(
                BlockRequest(session="a", block=block, epoch=epoch, window=window, deadline_s=deadline_s)
            )

        await engine.open_session(SessionSpec(session="a", image=np.full((64, 64, 3), 128, np.uint8)), client)
        for block in range(3):  # several at once
            assert ask(block)
        for block in range(3):
            done = await client.answer(30)
            assert isinstance(done, BlockDone) and done.block == block
            assert done.frames.shape == (12, 64, 64, 3) and done.frames.std() > 0
            assert set(done.stage_s) == {"audio", "dit", "vae"} and done.finished_s > done.started_s
            done.release()

        assert ask(3) and ask(4)
        engine.interrupt("a", 1)  # no rank waits for what an interrupt took away
        assert ask(5, epoch=1)
        done = await client.answer(30)
        assert (done.block, done.epoch) == (5, 1)
        done.release()

        seen, before = states(engine), engine.pids
        client.block = 6
        assert ask(6, epoch=1)
        killed_s = time.monotonic()
        os.kill(before[1], signal.SIGKILL)
        await until(lambda: "degraded" in seen, 2.0)
        assert time.monotonic() - killed_s < 2.0
        assert "rank 1" in engine.failure and "SIGKILL" in engine.failure
        await until(lambda: engine.state == "ready", 90)
        spec = engine._tenants["a"].spec
        assert spec.first_block == 6 and spec.past.shape[1] == 4 * 3  # of the four blocks that were answered
        assert engine.restarts == 1 and not set(before) & set(engine.pids)
        assert ask(6, epoch=1)
        done = await client.answer(30)
        assert isinstance(done, BlockDone) and done.block == 6
        done.release()
    finally:
        await engine.stop()


@pytest.mark.soak
async def test_a_rank_that_hangs_ends_in_a_restart() -> None:
    engine = Engine(SPEC, CONFIG)
    await engine.start()
    try:
        info = await asyncio.wait_for(engine.ready(), 90)
        client, seen = Client(), states(engine)
        window = np.zeros(info.window.samples, np.float32)
        await engine.open_session(SessionSpec(session="a", image=np.full((64, 64, 3), 128, np.uint8)), client)
        os.kill(engine.pids[1], signal.SIGSTOP)
        request = BlockRequest(session="a", block=0, epoch=0, window=window, deadline_s=time.monotonic() + 30)
        assert engine.submit(request)
        await until(lambda: "degraded" in seen, HURRY_S + 10)
        await until(lambda: engine.state == "ready", 90)
        assert engine.submit(replace(request, deadline_s=time.monotonic() + 30))
        done = await client.answer(30)
        assert isinstance(done, BlockDone) and done.block == 0
        done.release()
    finally:
        await engine.stop()

"""Malformed offers by the ten thousand, connections made and closed by the hundred: nothing grows, nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import psutil
import pytest

from server.errors import ApiError
from server.signaling import inspect_offer
from tests.unit.server.caller import calling
from tests.unit.server.running import fake_config, running
from tests.unit.server.sdp import make_offer, mutations

GROWTH_BYTES = 10e6


@pytest.mark.soak
async def test_a_hundred_thousand_offers_are_read_or_refused_quickly() -> None:
    offer, process, slowest = await make_offer(), psutil.Process(), 0.0
    baseline = None
    for round_ in range(50):
        for text in mutations(offer, 2000, seed=round_):
            began = time.perf_counter()
            try:
                inspect_offer(text)
            except ApiError as error:
                assert 400 <= error.status < 500
            slowest = max(slowest, time.perf_counter() - began)
        gc.collect()
        if round_ == 5:
            baseline = process.memory_info().rss
    assert slowest < 0.25
    assert baseline is not None
    assert process.memory_info().rss - baseline < GROWTH_BYTES


@pytest.mark.soak
async def test_answering_malformed_offers_leaves_nothing_behind() -> None:
    async with running(fake_config()) as server:
        session = await server.open()
        offer, process, baseline = await make_offer(), psutil.Process(), 0
        for count, text in enumerate(mutations(offer, 3000, seed=99)):
            answer = await server.http.post("/" + session["urls"]["offer"], json={"type": "offer", "sdp": text})
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
            if count == 500:
                gc.collect()
                baseline = process.memory_info().rss
        gc.collect()
        assert process.memory_info().rss - baseline < GROWTH_BYTES
        live = server.hub.find(session["id"])
        assert live is not None
        assert len(live._peers()) <= 1


@pytest.mark.soak
async def test_three_hundred_reconnections_cost_nothing() -> None:
    async with running(fake_config()) as server:
        session, process = await server.open(), psutil.Process()
        baseline: tuple[int, int, int, int] | None = None

        def census() -> tuple[int, int, int, int]:
            gc.collect()
            return process.memory_info().rss, process.num_fds(), threading.active_count(), len(asyncio.all_tasks())

        for count in range(300):
            async with calling(server, session) as caller:
                await caller.pictures(2)
            if count == 50:
                await asyncio.sleep(1)
                baseline = census()
        await asyncio.sleep(1)
        assert baseline is not None
        rss, fds, threads, tasks = census()
        assert rss - baseline[0] < GROWTH_BYTES
        assert fds <= baseline[1] + 2
        assert threads <= baseline[2] + 2
        assert tasks <= baseline[3] + 2

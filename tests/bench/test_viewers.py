"""What one more WHEP viewer costs the server: one encode whatever their number, and packets for each.

Not part of the default suite: times mean something only on a machine that does nothing else. `make soak` runs it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.serving import FAKE, Server
from tests.unit.server.whip_client import Watcher

SECONDS = 8.0
VIEWERS = 10


class Figures:
    """The server's processor time and encodes over a while."""

    def __init__(self, server: Server, http: httpx.AsyncClient) -> None:
        self._process, self._http = psutil.Process(server.process.pid), http

    async def _now(self) -> tuple[float, float, float]:
        text = (await self._http.get("/metrics")).text
        encodes = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("avatarcast_frames_enc"))
        times = self._process.cpu_times()
        return time.monotonic(), times.user + times.system, encodes

    async def measure(self) -> tuple[float, float]:
        """Share of a core in percent, and encodes a second."""
        began = await self._now()
        await asyncio.sleep(SECONDS)
        ended = await self._now()
        seconds = ended[0] - began[0]
        return 100 * (ended[1] - began[1]) / seconds, (ended[2] - began[2]) / seconds


@pytest.mark.soak
async def test_ten_viewers(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(FAKE)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as http, AsyncExitStack() as stack:
            session: dict[str, Any] = (await http.post("/v1/sessions", json={})).json()
            await asyncio.sleep(1)  # the model takes the session
            figures, found, first_ms = Figures(server, http), {}, []
            running: Any = type("Http", (), {"http": http})
            watchers: list[Watcher] = []
            for count in (1, VIEWERS):
                while len(watchers) < count:
                    watcher = Watcher()
                    stack.push_async_callback(watcher.connection.close)
                    asked_s = asyncio.get_running_loop().time()
                    answer = await watcher.watch(running, session)
                    assert answer.status_code == 201, answer.text
                    await watcher.until(1)
                    assert watcher.first_s is not None
                    first_ms.append(1000 * (watcher.first_s - asked_s))
                    watchers.append(watcher)
                before = [watcher.pictures for watcher in watchers]
                found[count] = await figures.measure()
                seen = [w.pictures - had for w, had in zip(watchers, before, strict=True)]
                assert min(seen) > 0.95 * 25 * SECONDS, seen
    finally:
        server.stop()
    marginal = (found[VIEWERS][0] - found[1][0]) / (VIEWERS - 1)
    with capsys.disabled():
        for count, (core, encodes) in found.items():
            print(f"\n{count} viewers: {core:.1f} % of a core, {encodes:.1f} encodes a second", end="")
        print(f"\n{marginal:.2f} % of a core for one more; first packet after {sorted(first_ms)[5]:.0f} ms (median)")
    assert abs(found[VIEWERS][1] - 25) < 1.5
    assert marginal <= 3.0

"""A whole server inside a test: real sockets on loopback, the fake model in its own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from server.app import create_app
from server.config import Config, Secrets
from server.hub import Hub
from server.loader import build
from server.serve import WS_MESSAGE_LIMIT, _Server, bind

FAKE: dict[str, Any] = {
    "server": {"port": 0, "log_level": "warning"},
    "model": {"kind": "fake", "fake": {"width": 64, "height": 64, "block_s": 0.01}},
    "limits": {"max_sessions": 4, "sessions_per_minute": 1000, "requests_per_minute": 100_000},
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def fake_config(**over: Any) -> Config:
    """The fake model at 64x64 on any free port, with changes by section."""
    return build(Config, merged(FAKE, over))


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers."""

    hub: Hub
    port: int
    http: httpx.AsyncClient

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def open(self, **wanted: Any) -> dict[str, Any]:
        """A new session's description."""
        answer = await self.http.post("/v1/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        return answer.json()


@contextlib.asynccontextmanager
async def running(
    config: Config | None = None, secrets: Secrets | None = None, *, wait: bool = True, patience_s: float = 20
) -> AsyncIterator[Running]:
    """Run a server for the length of a `with`.

    Args:
        wait: until the engine is ready.
        patience_s: for that.
    """
    config = config or fake_config()
    listening = bind(config.server)
    port = listening.getsockname()[1]
    hub = Hub(config, secrets)
    server = _Server(
        uvicorn.Config(
            create_app(hub),
            log_config=None,
            access_log=False,
            ws_max_size=WS_MESSAGE_LIMIT,
            timeout_graceful_shutdown=1,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            while not server.started:
                await asyncio.sleep(0.01)
                assert not task.done(), "the server did not start"
            if wait:
                await asyncio.wait_for(hub.wait_started(), patience_s)
                assert hub.start_error is None
            yield Running(hub=hub, port=port, http=http)
    finally:
        server.should_exit = True
        await task
        listening.close()

"""The events WebSocket: greeting, messages, credentials, caps, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from server.config import Secrets
from tests.unit.server.running import Running, fake_config, running

KEY = "an admin key of enough length"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


async def take(socket: ClientConnection, kind: str, **fields: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            message = json.loads(await socket.recv())
            if message["type"] == kind and fields.items() <= message.items():
                return message


async def refused(url: str, status: int, code: str, **options: Any) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(url, **options):
            pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["code"] == code


async def test_a_client_is_greeted_answered_and_told_the_end(server: Running) -> None:
    session = await server.open()
    async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
        hello = json.loads(await socket.recv())
        assert hello["type"] == "hello"
        assert hello["session"] == session["id"]
        assert json.loads(await socket.recv())["type"] == "state"
        await socket.send('{"type":"ping","t":3}')
        assert (await take(socket, "pong"))["t"] == 3
        await socket.send(b'{"type":"state","state":"thinking"}')
        assert await take(socket, "state", state="thinking")
        await socket.send('{"type":"mute","on":1}')
        assert "true or false" in (await take(socket, "error", code="bad_request"))["message"]
        assert (await take(socket, "stats"))["pts_ms"] > 0
        await server.http.delete(f"/v1/sessions/{session['id']}")
        assert await take(socket, "state", state="closing")
        with pytest.raises(websockets.ConnectionClosedOK):
            await take(socket, "never")


async def test_what_does_not_exist_is_a_problem_document(server: Running) -> None:
    await refused(f"{server.ws}/v1/sessions/none/events", 404, "not_found")
    await refused(f"{server.ws}/v1/realtime", 404, "not_found")  # it names no session
    await refused(f"{server.ws}/nothing/here", 404, "not_found")


async def test_a_foreign_page_cannot_connect(server: Running) -> None:
    session = await server.open()
    url = f"{server.ws}/{session['urls']['events']}"
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(url, origin="https://evil.example"):  # type: ignore[arg-type]
            pass
    assert caught.value.response.status_code == 403


async def test_messages_over_the_cap_end_the_connection_and_nothing_else(server: Running) -> None:
    session = await server.open()
    url = f"{server.ws}/{session['urls']['events']}"
    async with connect(url) as socket:
        await socket.send("x" * 70_000)
        await take(socket, "error", code="too_large")
        await socket.send("x" * (1024 * 1024 + 1))
        with pytest.raises(websockets.ConnectionClosed) as caught:
            await take(socket, "never")
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    async with connect(url) as again:
        await take(again, "hello")


async def test_a_flood_is_refused_and_the_session_lives(server: Running) -> None:
    session = await server.open()
    async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
        for _ in range(400):
            await socket.send('{"type":"ping"}')
        await take(socket, "error", code="rate_limited")
    assert (await server.http.get(f"/v1/sessions/{session['id']}")).status_code == 200


async def test_a_client_that_reads_nothing_is_cut_off(server: Running) -> None:
    session = await server.open()
    live = server.hub.find(session["id"])
    assert live is not None
    async with connect(f"{server.ws}/{session['urls']['events']}", max_queue=1, compression=None) as socket:
        await asyncio.sleep(0.2)
        assert len(live._mailboxes) == 1
        filler = "x" * 60_000
        for _ in range(2000):
            live._tell("warning", code="test", message=filler)
            if not live._mailboxes:
                break
            await asyncio.sleep(0)
        assert not live._mailboxes, "memory would grow with a client that does not read"
        assert socket is not None
    assert (await server.http.get("/healthz")).status_code == 200


async def test_credentials_decide_at_the_door() -> None:
    config = fake_config(auth={"required": "always"})
    async with running(config, Secrets(api_key=KEY)) as server:
        http, admin = server.http, {"Authorization": f"Bearer {KEY}"}
        assert (await http.post("/v1/sessions", json={})).status_code == 401
        assert (await http.post("/v1/sessions", json={})).headers["www-authenticate"] == "Bearer"
        answer = await http.post("/v1/sessions", json={}, headers=admin)
        assert answer.status_code == 201
        session = answer.json()
        path = f"/v1/sessions/{session['id']}"
        control = {"Authorization": f"Bearer {session['token']}"}
        view = {"Authorization": f"Bearer {session['view_token']}"}

        statuses = {
            name: [(await http.request(method, where, headers=headers)).status_code for method, where in (
                ("GET", path), ("POST", f"{path}/interrupt"), ("GET", "/v1/sessions"), ("GET", "/metrics"),
                ("GET", "/v1/ice"), ("GET", "/healthz"), ("GET", "/v1/avatars"))]
            for name, headers in {"none": {}, "view": view, "control": control, "admin": admin}.items()
        }  # fmt: skip
        assert statuses == {
            "none": [401, 401, 401, 401, 401, 200, 200],
            "view": [200, 403, 401, 401, 200, 200, 200],
            "control": [200, 200, 401, 401, 200, 200, 200],
            "admin": [200, 200, 200, 200, 200, 200, 200],
        }
        assert (await http.get("/v1/sessions/unknown", headers=view)).status_code == 401, "no telling what exists"
        assert (await http.get("/v1/sessions/unknown", headers=admin)).status_code == 404

        events = f"{server.ws}/{session['urls']['events']}"
        await refused(events, 401, "unauthorized")
        await refused(f"{events}?token=wrong", 401, "unauthorized")
        async with connect(f"{events}?token={session['token']}") as socket:
            await take(socket, "hello")
            await socket.send('{"type":"interrupt"}')
            await socket.send('{"type":"ping"}')
            await take(socket, "pong")
        protocols: Any = ["avatarcast", f"bearer.{session['view_token']}"]
        async with connect(events, subprotocols=protocols) as socket:
            assert socket.subprotocol == "avatarcast"
            await take(socket, "hello")
            await socket.send('{"type":"interrupt"}')
            await take(socket, "error", code="forbidden")
        assert (await http.delete(path, headers=view)).status_code == 403
        assert (await http.delete(path, headers=control)).status_code == 204

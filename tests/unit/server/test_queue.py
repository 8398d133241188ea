"""The waiting room: first come, first served; bounded; forgotten when nobody asks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import websockets

from server.admission import Admission, Slot
from server.config import LimitsConfig
from server.errors import ApiError
from server.schemas import Media, NewSession, QueueTicket, SessionCreated, Urls
from server.waiting import WaitingRoom, Wish
from tests.unit.server.running import fake_config, running


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Room:
    """A waiting room on a clock of its own, whose sessions are only names."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.limits = LimitsConfig(**{"max_sessions": 1, "max_waiting": 3, **limits})
        self.admission = Admission(self.limits, now=self.clock)
        self.opened: list[str] = []
        self.failing: ApiError | None = None
        self.room = WaitingRoom(
            self.limits, self.admission, open=self.open, ended=lambda id: id not in self.opened, now=self.clock
        )

    async def open(self, wish: Wish, slot: Slot) -> SessionCreated:
        if self.failing is not None:
            slot.release()
            raise self.failing
        await asyncio.sleep(0)
        self.opened.append(wish.wanted.prompt)
        urls = Urls(**dict.fromkeys(Urls.model_fields, ""))
        media = Media(width=64, height=64, fps=25, block_ms=480, latency_ms=700)
        return SessionCreated(
            id=wish.wanted.prompt, token="t", view_token="v", mode="echo", urls=urls, media=media
        )  # fmt: skip

    def join(self, name: str) -> str:
        return self.room.join(
            Wish(wanted=NewSession(prompt=name), avatar=None, portrait=np.zeros((8, 8, 3), np.uint8))
        ).ticket

    async def position(self, ticket: str) -> int:
        found = await self.room.poll(ticket)
        assert isinstance(found, QueueTicket)
        return found.position


async def test_a_free_place_goes_to_the_first() -> None:
    room = Room()
    slot = room.admission.take()
    assert slot is not None
    tickets = [room.join(name) for name in "abc"]
    assert [await room.position(t) for t in tickets] == [1, 2, 3]
    with pytest.raises(ApiError, match="3 wait already") as caught:
        room.join("d")
    assert (caught.value.code, caught.value.status) == ("capacity", 503)
    assert caught.value.retry_after_s
    slot.release()
    assert room.admission.taken == 1, "the place is taken for the first before anybody else can ask"
    assert [await room.position(t) for t in tickets[1:]] == [1, 2]
    answers = await asyncio.gather(*(room.room.poll(tickets[0]) for _ in range(3)))
    assert room.opened == ["a"], "opened once, however often it is asked for"
    assert {answer.id for answer in answers} == {"a"}  # type: ignore[union-attr]


async def test_a_ticket_nobody_polls_is_forgotten_and_its_place_goes_on() -> None:
    room = Room(ticket_s=10.0)
    slot = room.admission.take()
    first, second = room.join("a"), room.join("b")
    slot.release()  # type: ignore[union-attr]
    room.clock.now_s = 8.0
    await room.position(second)
    room.clock.now_s = 10.5
    room.room.tick()
    with pytest.raises(ApiError, match="expired"):
        await room.room.poll(first)
    assert (await room.room.poll(second)).id == "b"  # type: ignore[union-attr]
    room.opened.clear()  # the session ends
    room.room.tick()
    with pytest.raises(ApiError, match="expired"):
        await room.room.poll(second)
    assert room.admission.taken == 1, "the place belongs to the session, not to the ticket"


async def test_who_gives_up_lets_the_others_move() -> None:
    room = Room()
    slot = room.admission.take()
    first, second = room.join("a"), room.join("b")
    room.room.give_up(first)
    assert await room.position(second) == 1
    slot.release()  # type: ignore[union-attr]
    room.room.give_up(second)
    assert room.admission.taken == 0


async def test_a_session_that_cannot_be_opened_ends_the_ticket_only() -> None:
    room = Room()
    slot = room.admission.take()
    first, second = room.join("a"), room.join("b")
    slot.release()  # type: ignore[union-attr]
    room.failing = ApiError("engine_down", "The engine has failed.")
    with pytest.raises(ApiError, match="engine has failed"):
        await room.room.poll(first)
    room.failing = None
    assert (await room.room.poll(second)).id == "b"  # type: ignore[union-attr]


def test_the_expected_time_follows_what_sessions_lasted() -> None:
    clock = Clock()
    admission = Admission(LimitsConfig(max_sessions=2), now=clock)
    slots = [admission.take(), admission.take()]
    assert [admission.eta_s(p) for p in (1, 2, 3)] == [60.0, 60.0, 120.0], "a minute while nothing is known"
    clock.now_s = 20.0
    slots[0].release()  # type: ignore[union-attr]
    admission.take()
    assert admission.eta_s(1) == 5.0, "the older one has had its 20 s: a quarter of them remains"
    assert admission.eta_s(2) == 20.0
    assert admission.eta_s(3) == 25.0


async def test_the_queue_over_http_and_websocket() -> None:
    config = fake_config(limits={"max_sessions": 1, "max_waiting": 2})
    async with running(config) as server:
        direct = await server.http.post("/v1/sessions?queue=1", json={})
        assert direct.status_code == 201
        polled = await server.http.post("/v1/sessions?queue=1", json={"avatar": "mei"})
        assert polled.status_code == 202
        ticket = polled.json()
        assert (ticket["position"], polled.headers["location"]) == (1, "/" + ticket["url"])
        assert int(polled.headers["retry-after"]) > 0
        assert ticket["eta_s"] > 0
        bad = await server.http.post("/v1/sessions?queue=1", json={"avatar": "nobody"})
        assert bad.status_code == 404, "a wish that cannot be fulfilled is refused before it waits"
        heard = (await server.http.post("/v1/sessions?queue=1", json={})).json()
        full = await server.http.post("/v1/sessions?queue=1", json={})
        assert (full.status_code, full.json()["code"]) == (503, "capacity")
        assert "limits.max_waiting" in full.json()["detail"]
        assert (await server.http.get("/v1/capacity")).json()["queue"] == 2
        async with websockets.connect(f"{server.ws}/{heard['url']}") as socket:
            first = json.loads(await socket.recv())
            assert (first["type"], first["position"]) == ("queue", 2)
            await socket.send("ping")
            assert json.loads(await socket.recv())["type"] == "pong"
            await socket.send('{"type":"interrupt"}')
            assert json.loads(await socket.recv())["code"] == "not_live"
            await server.http.delete(f"/v1/sessions/{direct.json()['id']}")
            await _until_taken(server, 1)
            overtaking = await server.http.post("/v1/sessions", json={})
            assert overtaking.status_code == 503, "the free place belongs to the first ticket"
            made = await server.http.get("/" + ticket["url"])
            assert (made.status_code, made.json()["mode"]) == (201, "echo")
            again = await server.http.get("/" + ticket["url"])
            assert again.json() == made.json(), "an answer that was lost can be had again"
            moved = json.loads(await socket.recv())
            assert (moved["type"], moved["position"]) == ("queue", 1)
            await server.http.delete(f"/v1/sessions/{made.json()['id']}")
            opened = json.loads(await asyncio.wait_for(socket.recv(), 5))
            assert (opened["type"], opened["urls"]["whip"]) == ("opened", f"whip/{opened['id']}")
            with pytest.raises(websockets.ConnectionClosedOK):
                await socket.recv()
        assert (await server.http.get(f"/v1/sessions/{opened['id']}")).status_code == 200
        last = (await server.http.post("/v1/sessions?queue=1", json={})).json()
        assert (await server.http.delete("/" + last["url"])).status_code == 204
        gone = await server.http.get("/" + last["url"])
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"{server.ws}/{last['url']}").__aenter__()
        assert refused.value.response.status_code == 404


async def _until_taken(server: Any, waiting: int) -> None:
    for _ in range(100):
        if server.hub.waiting.length == waiting:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the place was not given on")

"""The audio socket over real sockets: segments, reports, back-pressure, interrupts, HeyGen's names, refusals."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from server.config import Secrets
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.test_events_socket import KEY, refused, take


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


def voice(seconds: float, rate_hz: int = 16_000) -> bytes:
    """A tone, loud enough for speech."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (9000 * np.sin(2 * np.pi * 220 * t)).astype("<i2").tobytes()


def spoken(seconds: float) -> str:
    return base64.b64encode(voice(seconds, 24_000)).decode()


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def finished(socket: ClientConnection, segment: str | None) -> dict[str, Any]:
    return await take(socket, "playback_finished", segment=segment)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
async def test_a_segment_of_any_rate_is_spoken_and_reported_once(server: Running, rate_hz: int) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        await take(socket, "hello")
        await send(socket, "start", sample_rate=rate_hz, segment="greeting")
        assert (await take(socket, "segment"))["segment"] == "greeting"
        await socket.send(voice(0.3, rate_hz))
        await socket.send(voice(0.3, rate_hz))
        await send(socket, "end")
        await take(socket, "playback_started", segment="greeting")
        report = await finished(socket, "greeting")
        assert not report["interrupted"]
        assert abs(report["position_ms"] - 600) <= 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await finished(socket, "greeting")


async def test_a_segment_without_sound_is_reported_too(server: Running) -> None:
    session = await server.open()
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        await send(socket, "start", sample_rate=16_000)
        name = (await take(socket, "segment"))["segment"]
        await send(socket, "end")
        report = await finished(socket, name)
        assert (report["position_ms"], report["interrupted"]) == (0, False)


async def test_an_interrupt_is_always_answered(server: Running) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        await send(socket, "interrupt")
        assert (await finished(socket, None))["interrupted"] is False
        await send(socket, "start", sample_rate=16_000, segment="waiting")
        await socket.send(voice(3))
        await send(socket, "interrupt")
        assert await finished(socket, "waiting") == pytest.approx(
            {"type": "playback_finished", "session": session["id"], "pts_ms": pytest.approx(0, abs=1e9)}
            | {"segment": "waiting", "position_ms": 0, "interrupted": True}
        )
        await socket.send(voice(0.2))  # on the way when it was cut off: dropped without an error
        await send(socket, "end")
        await send(socket, "start", sample_rate=16_000, segment="next")
        await socket.send(voice(3))
        await take(socket, "playback_started", segment="next")
        answer = await server.http.post(f"/v1/sessions/{session['id']}/interrupt")
        assert answer.json()["segment"] == "next"
        report = await finished(socket, "next")
        assert report["interrupted"]
        assert report["position_ms"] == answer.json()["position_ms"] < 1000


async def test_back_pressure_is_an_event_and_the_buffer_is_bounded() -> None:
    async with running(fake_config(limits={"push_buffer_s": 3})) as server:
        session = await server.open(mode="push")
        async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
            await send(socket, "start", sample_rate=16_000, segment="long")
            await socket.send(voice(2.8))
            await take(socket, "pause")
            await socket.send(voice(2))
            assert "3 s of speech" in (await take(socket, "error", code="rate_limited"))["message"]
            await take(socket, "resume")
            await socket.send(voice(0.5))
            await send(socket, "end")
            assert abs((await finished(socket, "long"))["position_ms"] - 3300) <= 5, "the refused sound is not in it"


@pytest.mark.parametrize(
    ("before", "message", "code", "says"),
    [
        ([], b"\0\0", "bad_request", "start"),
        ([], '{"type":"end"}', "bad_request", "without a segment"),
        ([], '{"type":"start"}', "unsupported_rate", "8000 to 48000"),
        ([], '{"type":"start","sample_rate":7999}', "unsupported_rate", "7999"),
        ([], '{"type":"start","sample_rate":96000}', "unsupported_rate", "96000"),
        ([], '{"type":"start","sample_rate":"16000"}', "unsupported_rate", "16000"),
        ([], '{"type":"start","sample_rate":16000,"segment":7}', "bad_request", "segment is 7"),
        ([], '{"type":"sing"}', "bad_request", "type is 'sing'"),
        ([], "nonsense", "bad_request", "not JSON"),
        (['{"type":"start","sample_rate":16000}'], b"\0\0\0", "bad_request", "3 bytes"),
        (['{"type":"start","sample_rate":16000}', '{"type":"end"}'], b"\0\0", "bad_request", "outside a segment"),
        ([], '{"type":"agent.speak","event_id":"a"}', "bad_request", "audio is missing"),
        ([], '{"type":"agent.speak","event_id":"a","audio":"%"}', "bad_request", "not base64"),
        ([], '{"type":"agent.speak","event_id":"a","audio":"AAAA"}', "bad_request", "3 bytes"),
        ([], '{"type":"agent.speak_end","event_id":"a"}', "bad_request", "without a segment"),
    ],
)
async def test_what_cannot_be_is_a_typed_error_and_the_socket_lives(
    server: Running, before: list[str], message: str | bytes, code: str, says: str
) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        for text in before:
            await socket.send(text)
        await socket.send(message)
        assert says in (await take(socket, "error", code=code))["message"]
        await send(socket, "ping")
        await take(socket, "pong")


async def test_a_message_over_the_cap_ends_the_connection_alone(server: Running) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        await send(socket, "start", sample_rate=48_000)
        await socket.send(b"\0" * (1024 * 1024))
        await send(socket, "ping")
        await take(socket, "pong")
        await socket.send(b"\0" * (1024 * 1024 + 2))
        with pytest.raises(websockets.ConnectionClosed) as caught:
            await take(socket, "never")
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
    assert (await server.http.get(f"/v1/sessions/{session['id']}")).status_code == 200


async def test_a_client_that_leaves_is_heard_to_the_end(server: Running) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['events']}") as events:
        async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
            await send(socket, "start", sample_rate=16_000, segment="last words")
            await socket.send(voice(0.4))
        report = await finished(events, "last words")
        assert (report["position_ms"], report["interrupted"]) == (400, False)


async def test_heygens_names(server: Running) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['audio']}") as socket:
        await take(socket, "session.state_updated", state="connected")
        await send(socket, "session.keep_alive", event_id="k")
        for _ in range(2):
            await send(socket, "agent.speak", event_id="one", audio=spoken(0.3))
        await send(socket, "agent.speak_end", event_id="one")
        await take(socket, "agent.speak_started", event_id="one")
        assert (await take(socket, "agent.speak_ended", event_id="one"))["interrupted"] is False
        await send(socket, "agent.start_listening")
        await take(socket, "state", state="listening")
        await send(socket, "agent.stop_listening")
        await send(socket, "agent.speak", event_id="two", audio=spoken(5))
        await take(socket, "agent.speak_started", event_id="two")
        await send(socket, "agent.interrupt")
        assert (await take(socket, "agent.speak_ended", event_id="two"))["interrupted"] is True
        await send(socket, "agent.speak", event_id="two", audio=spoken(1))  # late: dropped
        await send(socket, "agent.speak_end", event_id="two")
        await send(socket, "agent.speak", event_id="three", audio=spoken(0.2))
        await send(socket, "agent.speak_end", event_id="three")
        assert (await take(socket, "agent.speak_started"))["event_id"] == "three"
        await server.http.delete(f"/v1/sessions/{session['id']}")
        await take(socket, "session.state_updated", state="closing")


async def test_only_control_may_push_and_a_pusher_keeps_the_session() -> None:
    config = fake_config(auth={"required": "always"}, limits={"idle_s": 1})
    async with running(config, Secrets(api_key=KEY)) as server:
        made = await server.http.post("/v1/sessions", json={}, headers={"Authorization": f"Bearer {KEY}"})
        session = made.json()
        url = f"{server.ws}/{session['urls']['audio']}"
        await refused(url, 401, "unauthorized")
        await refused(f"{url}?token={session['view_token']}", 403, "forbidden")
        admin = {"Authorization": f"Bearer {KEY}"}
        await refused(f"{server.ws}/v1/sessions/none/audio", 404, "not_found", additional_headers=admin)
        async with connect(f"{url}?token={session['token']}") as socket:
            await asyncio.sleep(2.2)
            await send(socket, "ping")
            await take(socket, "pong")
        await asyncio.sleep(2.2)
        assert server.hub.find(session["id"]) is None

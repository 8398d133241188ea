"""OpenAI's Realtime protocol, server side, driven by the `openai` package's own client; raw sockets for the rest."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect

from server.bench import synthetic_voice
from server.config import Secrets
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.test_events_socket import KEY, refused, take

RATE_HZ = 24_000
SPEECH = (synthetic_voice(2.0)[::2] * 32767).astype("<i2")


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


def base64_of(pcm: np.ndarray) -> str:
    return base64.b64encode(pcm.astype("<i2").tobytes()).decode()


@contextlib.asynccontextmanager
async def openai_client(server: Running, session: str) -> AsyncIterator[Any]:
    """An unmodified client; only its address and query are ours."""
    client = AsyncOpenAI(api_key="unused", websocket_base_url=f"{server.ws}/v1")
    try:
        async with client.realtime.connect(model="avatarcast", extra_query={"session": session}) as connection:
            yield connection
    finally:
        await client.close()


async def until(connection: Any, kind: str) -> tuple[Any, list[Any]]:
    """The next event of a type, and all before it."""
    seen = []
    async with asyncio.timeout(10):
        while True:
            event = await connection.recv()
            seen.append(event)
            if event.type == kind:
                return event, seen


async def test_openais_client_has_its_microphone_spoken(server: Running) -> None:
    session = await server.open(mode="push")
    async with openai_client(server, session["id"]) as connection:
        created, _ = await until(connection, "session.created")
        assert created.session.audio.input.turn_detection.type == "server_vad"
        assert created.session.audio.input.format.rate == RATE_HZ
        quiet = np.zeros(RATE_HZ, "<i2")
        stream = np.concatenate([quiet[: RATE_HZ // 2], SPEECH, quiet])
        asked_s = time.monotonic()
        for start in range(0, len(stream), 2400):
            await connection.input_audio_buffer.append(audio=base64_of(stream[start : start + 2400]))
        _, before = await until(connection, "output_audio_buffer.started")
        print(f"OpenAI's client: heard {1000 * (time.monotonic() - asked_s) - 500:.0f} ms after its speech began")
        done, after = await until(connection, "response.done")
        seen = before + after
        told = {event.type: event for event in seen}
        assert abs(told["input_audio_buffer.speech_started"].audio_start_ms - 500) <= 120
        assert 2300 <= told["input_audio_buffer.speech_stopped"].audio_end_ms <= 3300
        order = [event.type for event in seen if not event.type.startswith("avatar.")]
        wanted = [
            "response.created", "response.output_item.added", "response.content_part.added",
            "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
            "conversation.item.added", "conversation.item.done", "output_audio_buffer.started",
            "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
            "response.output_item.done", "conversation.item.added", "conversation.item.done", "response.done",
        ]  # fmt: skip
        assert order == wanted
        assert done.response.status == "completed"
        committed, output = told["input_audio_buffer.committed"], done.response.output[0]
        assert committed.item_id == told["input_audio_buffer.speech_started"].item_id != output.id
        assert told["response.output_audio.done"].item_id == output.id


async def test_openais_client_commits_creates_cancels_and_truncates(server: Running) -> None:
    session = await server.open(mode="push")
    async with openai_client(server, session["id"]) as connection:
        await connection.session.update(
            session={"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}}
        )
        updated, _ = await until(connection, "session.updated")
        assert updated.session.audio.input.turn_detection is None

        await connection.input_audio_buffer.append(audio=base64_of(SPEECH[:12_000]))
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        done, seen = await until(connection, "response.done")
        assert done.response.status == "completed"
        assert not [event for event in seen if event.type == "error"]

        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Good morning."}]}
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        done, _ = await until(connection, "response.done")
        assert done.response.output[0].content[0].transcript == "Good morning."

        sound = {"type": "input_audio", "audio": base64_of(np.tile(SPEECH, 3))}
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [sound]})
        await connection.response.create()
        await until(connection, "output_audio_buffer.started")
        await asyncio.sleep(0.3)
        await connection.response.cancel()
        done, _ = await until(connection, "response.done")
        assert (done.response.status, done.response.status_details.reason) == ("cancelled", "client_cancelled")
        output = done.response.output[0]
        await connection.conversation.item.truncate(item_id=output.id, content_index=0, audio_end_ms=60_000)
        truncated, _ = await until(connection, "conversation.item.truncated")
        assert 150 <= truncated.audio_end_ms <= 1000, "no more than was really heard"


async def test_truncating_what_plays_stops_it(server: Running) -> None:
    session = await server.open(mode="push")
    async with openai_client(server, session["id"]) as connection:
        await connection.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
        await connection.input_audio_buffer.append(audio=base64_of(np.tile(SPEECH, 2)))
        item, _ = await until(connection, "response.output_item.added")
        await until(connection, "output_audio_buffer.started")
        await connection.conversation.item.truncate(item_id=item.item.id, content_index=0, audio_end_ms=60_000)
        truncated, seen = await until(connection, "conversation.item.truncated")
        assert truncated.audio_end_ms < 1500
        assert "output_audio_buffer.cleared" in [event.type for event in seen]
        await connection.input_audio_buffer.append(audio=base64_of(SPEECH[:4800]))
        await connection.input_audio_buffer.clear()
        await until(connection, "input_audio_buffer.cleared")


async def ask(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, "event_id": "mine", **fields}))


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        ("nonsense", "bad_request", "not JSON"),
        (b"\0\0", "bad_request", "binary"),
        ("[]", "bad_request", "not a JSON object"),
        ('{"type":"dance"}', "bad_request", "'dance'"),
        ('{"type":["x"]}', "bad_request", "known are"),
        ('{"type":"session.update"}', "bad_request", "session is missing"),
        ('{"type":"session.update","session":{"input_audio_format":"g711_ulaw"}}', "unsupported_media", "g711_ulaw"),
        ('{"type":"session.update","session":{"audio":{"input":{"format":{"type":"audio/pcm","rate":4000}}}}}',
         "unsupported_rate", "4000"),
        ('{"type":"session.update","session":{"turn_detection":{"type":"magic"}}}', "bad_request", "magic"),
        ('{"type":"session.update","session":{"turn_detection":{"type":"server_vad","silence_duration_ms":9}}}',
         "bad_request", "20 to 3000"),
        ('{"type":"input_audio_buffer.append"}', "bad_request", "audio is missing"),
        ('{"type":"input_audio_buffer.append","audio":"%%"}', "bad_request", "not base64"),
        ('{"type":"input_audio_buffer.append","audio":"AAAA"}', "bad_request", "3 bytes"),
        ('{"type":"input_audio_buffer.commit"}', "bad_request", "buffer is empty"),
        ('{"type":"conversation.item.create","item":{"type":"function_call"}}', "bad_request", "no message"),
        ('{"type":"conversation.item.create","item":{"type":"message","content":[]}}',
         "bad_request", "content is empty"),
        ('{"type":"conversation.item.create","item":{"type":"message","content":[{"type":"video"}]}}',
         "bad_request", "video"),
        ('{"type":"response.create"}', "bad_request", "nothing to say"),
        ('{"type":"response.cancel"}', "conflict", "no response is active"),
        ('{"type":"conversation.item.truncate","item_id":"x","content_index":0,"audio_end_ms":1}', "not_found", "'x'"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_an_error_event(server: Running, message: str | bytes, code: str, says: str) -> None:
    session = await server.open(mode="push")
    async with connect(f"{server.ws}/{session['urls']['realtime']}") as socket:
        await take(socket, "session.created")
        await socket.send(message)
        error = (await take(socket, "error"))["error"]
        assert error["code"] == code
        assert says in error["message"]
        await ask(socket, "input_audio_buffer.clear")
        await take(socket, "input_audio_buffer.cleared")
        await ask(socket, "response.cancel")
        assert (await take(socket, "error"))["error"]["event_id"] == "mine"


async def test_the_betas_spelling_is_spoken_to_who_asks(server: Running) -> None:
    session = await server.open(mode="push")
    url = f"{server.ws}/{session['urls']['realtime']}"
    protocols: Any = ["realtime", f"openai-insecure-api-key.{session['token']}", "openai-beta.realtime-v1"]
    for options in ({"additional_headers": {"OpenAI-Beta": "realtime=v1"}}, {"subprotocols": protocols}):
        async with connect(url, **options) as socket:
            assert (await take(socket, "session.created"))["session"]["input_audio_format"] == "pcm16"
            await ask(socket, "session.update", session={"turn_detection": None, "input_audio_format": "pcm16"})
            assert (await take(socket, "session.updated"))["session"]["turn_detection"] is None
            await ask(socket, "input_audio_buffer.append", audio=base64_of(SPEECH[:7200]))
            await ask(socket, "input_audio_buffer.commit")
            await take(socket, "conversation.item.created")
            await take(socket, "response.audio.done")
            await take(socket, "response.done")


async def test_who_may_come_in_and_how_it_ends() -> None:
    async with running(fake_config(auth={"required": "always"}), Secrets(api_key=KEY)) as server:
        admin = {"Authorization": f"Bearer {KEY}"}
        session = (await server.http.post("/v1/sessions", json={"mode": "push"}, headers=admin)).json()
        url = f"{server.ws}/{session['urls']['realtime']}"
        await refused(url, 401, "unauthorized")
        await refused(url, 403, "forbidden", additional_headers={"Authorization": f"Bearer {session['view_token']}"})
        await refused(f"{server.ws}/v1/realtime?session=none", 404, "not_found", additional_headers=admin)
        protocols: Any = ["realtime", f"openai-insecure-api-key.{session['token']}"]
        async with connect(url, subprotocols=protocols) as socket:
            assert socket.subprotocol == "realtime"
            await ask(socket, "session.update", session={"turn_detection": None})
            await ask(socket, "input_audio_buffer.append", audio=base64_of(SPEECH))
            await take(socket, "response.created")
            await server.http.delete(f"/v1/sessions/{session['id']}", headers=admin)
            assert (await take(socket, "response.done"))["response"]["status"] == "cancelled"
            await socket.wait_closed()
            assert socket.close_code == 1000


async def test_speech_that_cannot_be_made_is_told() -> None:
    async with running(fake_config(speech={"kind": "http", "url": "http://127.0.0.1:9/x"})) as server:
        session = await server.open(mode="push")
        async with connect(f"{server.ws}/{session['urls']['realtime']}") as socket:
            item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}
            await ask(socket, "conversation.item.create", item=item)
            await ask(socket, "response.create")
            assert (await take(socket, "avatar.error"))["code"] == "engine_down"
            await take(socket, "response.done")

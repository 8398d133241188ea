"""Speech synthesis: espeak-ng, a service over HTTP, `say` by every door, and sound that cannot be made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect

from server.config import Secrets
from server.errors import ApiError, ConfigError
from server.say import run_say
from server.speech import EspeakSpeech, HttpSpeech, SpeechConfig
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.test_events_socket import KEY, take


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


async def all_of(pieces: AsyncIterator[tuple[np.ndarray, int]]) -> tuple[np.ndarray, int]:
    found = [piece async for piece in pieces]
    assert len({rate for _, rate in found}) == 1
    return np.concatenate([pcm for pcm, _ in found]), found[0][1]


async def test_espeak_speaks_longer_for_longer_texts() -> None:
    provider = EspeakSpeech(SpeechConfig())
    short, rate_hz = await all_of(provider.speak("Hello.", None))
    long, _ = await all_of(provider.speak("Hello, and welcome to our house; <b>& sit down.", "en-us"))
    assert rate_hz == 22_050
    assert 0.3 < len(short) / rate_hz < 2 < len(long) / rate_hz < 6
    assert np.abs(long).max() > 3000


async def test_espeak_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = EspeakSpeech(SpeechConfig())
    for voice in ("qqq", "--version", "../x"):
        with pytest.raises(ApiError) as caught:
            await all_of(provider.speak("Hello.", voice))
        assert caught.value.code == "bad_request"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ApiError, match="install the package espeak-ng") as caught:
        await all_of(provider.speak("Hello.", None))
    assert caught.value.code == "engine_down"


class Service:
    """A speech service in a few lines: answers `status`, then `body` in two pieces of odd length."""

    def __init__(self, body: bytes = b"", status: str = "200 OK") -> None:
        self.body, self.status, self.asked = body, status, ""

    async def __aenter__(self) -> Service:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.config = SpeechConfig(
            kind="http", url=f"http://127.0.0.1:{port}/v1/audio/speech", voice="alloy", timeout_s=1
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.asked = (head + await reader.readexactly(length)).decode()
        writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.body)}\r\n\r\n".encode())
        for part in (self.body[:3001], self.body[3001:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()


async def test_a_service_is_asked_in_openais_form() -> None:
    wanted = np.arange(-6000, 6000, dtype="<i2")
    async with Service(wanted.tobytes()) as service:
        pcm, rate_hz = await all_of(HttpSpeech(service.config, "secret key").speak("Good day", None))
    assert rate_hz == 24_000
    assert np.array_equal(pcm, wanted)
    head, _, body = service.asked.partition("\r\n\r\n")
    assert "Bearer secret key" in head
    assert json.loads(body) == {"model": "tts-1", "input": "Good day", "voice": "alloy", "response_format": "pcm"}


async def test_a_service_that_fails_is_named() -> None:
    async with Service(b"no", "401 Unauthorized") as service:
        with pytest.raises(ApiError, match="answered 401"):
            await all_of(HttpSpeech(service.config, None).speak("Good day", None))
    with pytest.raises(ApiError, match="does not answer"):
        await all_of(HttpSpeech(service.config, None).speak("Good day", None))


def test_a_wrong_section_is_refused() -> None:
    for wrong, says in (
        ({"kind": "http"}, "url is ''"),
        ({"voice": "-x"}, "voice is '-x'"),
        ({"timeout_s": 0}, "timeout_s is 0"),
    ):
        with pytest.raises(ValueError, match=says):
            SpeechConfig(**wrong)  # type: ignore[arg-type]


async def test_texts_are_spoken_in_order_by_both_doors(server: Running) -> None:
    session = await server.open(mode="push")
    path = f"/v1/sessions/{session['id']}/say"
    async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
        first = await server.http.post(path, json={"text": "Hello."})
        second = await server.http.post(path, json={"text": "Hi.", "voice": "en-us"})
        assert (first.status_code, second.status_code) == (202, 202)
        await socket.send('{"type":"say","text":"Bye."}')
        told = []
        async with asyncio.timeout(12):
            while len(told) < 6:
                message = json.loads(await socket.recv())
                if message["type"].startswith("playback_"):
                    told.append(message)
    names = [message["segment"] for message in told]
    assert names[:4] == [first.json()["segment"]] * 2 + [second.json()["segment"]] * 2
    assert names[4] == names[5]
    assert all(m["position_ms"] > 200 and not m["interrupted"] for m in told if m["type"] == "playback_finished")


async def test_an_interrupt_ends_texts_whose_sound_is_not_made(server: Running) -> None:
    session = await server.open(mode="push")
    path = f"/v1/sessions/{session['id']}"
    async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
        said = [(await server.http.post(f"{path}/say", json={"text": "Hello there. " * 120})).json() for _ in range(2)]
        assert (await server.http.post(f"{path}/interrupt")).status_code == 200
        for answer in said:
            assert (await take(socket, "playback_finished", segment=answer["segment"]))["interrupted"]
        live = server.hub.find(session["id"])
        await asyncio.sleep(0.3)
        assert live is not None and not live.speaker._tasks


async def test_a_text_longer_than_the_buffer_waits_its_turn() -> None:
    async with running(fake_config(limits={"push_buffer_s": 2})) as server:
        session = await server.open(mode="push")
        async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
            answer = await server.http.post(
                f"/v1/sessions/{session['id']}/say", json={"text": "One, two, three, four, five, six."}
            )
            await take(socket, "pause")
            await take(socket, "resume")
            report = await take(socket, "playback_finished", segment=answer.json()["segment"])
            assert not report["interrupted"]
            assert report["position_ms"] > 2200


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({}, "bad_request", "text"),
        ({"text": "  "}, "bad_request", "text is empty"),
        ({"text": "x" * 2001}, "bad_request", "at most 2000"),
        ({"text": "x", "voice": "--stdin"}, "bad_request", "voice is"),
        ({"text": "x", "speed": 2}, "bad_request", "speed"),
    ],
)
async def test_what_cannot_be_said(server: Running, body: dict[str, Any], code: str, says: str) -> None:
    session = await server.open()
    answer = await server.http.post(f"/v1/sessions/{session['id']}/say", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert says in answer.json()["detail"]
    assert (await server.http.post("/v1/sessions/none/say", json={"text": "x"})).status_code == 404


async def test_sound_that_cannot_be_made_ends_the_segment_with_an_error() -> None:
    config = fake_config(speech={"kind": "http", "url": "http://127.0.0.1:9/v1/audio/speech"})
    async with running(config) as server:
        session = await server.open(mode="push")
        async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
            answer = await server.http.post(f"/v1/sessions/{session['id']}/say", json={"text": "Hello."})
            await take(socket, "error", code="engine_down")
            report = await take(socket, "playback_finished", segment=answer.json()["segment"])
            assert (report["position_ms"], report["interrupted"]) == (0, False)


async def test_only_control_may_have_it_speak() -> None:
    async with running(fake_config(auth={"required": "always"}), Secrets(api_key=KEY)) as server:
        made = await server.http.post("/v1/sessions", json={}, headers={"Authorization": f"Bearer {KEY}"})
        path, session = f"/v1/sessions/{made.json()['id']}/say", made.json()
        for token, status in ((session["view_token"], 403), ("wrong", 401), (session["token"], 202)):
            answer = await server.http.post(path, json={"text": "x"}, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status


async def test_the_command_says_it(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    session = await server.open(mode="push")
    root = f"http://127.0.0.1:{server.port}"

    async def say(text: str, session_id: str, where: str = root) -> int:
        return await asyncio.to_thread(run_say, text, server=where, session=session_id, as_json=True, environment={})

    async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
        assert await say("Hello.", session["id"]) == 0
        segment = json.loads(capsys.readouterr().out)["segment"]
        await take(socket, "playback_started", segment=segment)
    assert await say("Hello.", "no/such") == 2
    assert await say("", session["id"]) == 2
    assert "text is empty" in capsys.readouterr().err
    assert await say("Hello.", session["id"], "http://127.0.0.1:9") == 1
    with pytest.raises(ConfigError, match="must begin with http"):
        run_say("x", server="127.0.0.1", session="x", environment={})

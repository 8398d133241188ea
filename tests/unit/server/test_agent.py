"""`mode: agent` against a small Realtime endpoint: microphone there, answers back, interruption, loss."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from server.agent import AgentConfig
from server.config import Secrets
from tests.fakes import babble, microphone_frame
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.test_events_socket import take
from tests.unit.server.test_realtime import SPEECH, base64_of


class Endpoint:
    """Answers with `answer` once it was sent half a second of loud sound; keeps what it is sent."""

    def __init__(self, answer: np.ndarray, port: int = 0) -> None:
        self.answer = answer
        self.port = port
        self._called = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.paths: list[str] = []

    async def __aenter__(self) -> Endpoint:
        self._server = await serve(self._talk, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def until_called(self) -> None:
        await asyncio.wait_for(self._called.wait(), 10)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.sent if message["type"] == kind]

    async def _talk(self, socket: ServerConnection) -> None:
        self.headers.append(socket.request.headers.get("Authorization", ""))
        self.paths.append(socket.request.path)
        self._called.set()
        loud = answers = 0
        async for text in socket:
            message = json.loads(text)
            self.sent.append(message)
            if message["type"] != "input_audio_buffer.append":
                continue
            pcm = np.frombuffer(base64.b64decode(message["audio"]), "<i2")
            loud += int((np.abs(pcm) > 1000).sum())
            if loud > 4000 and answers == 0:
                answers += 1
                item = f"item_{answers}"
                await self._tell(socket, "response.created", response={"id": "r"})
                for start in range(0, len(self.answer), 4800):
                    delta = base64_of(self.answer[start : start + 4800])
                    await self._tell(socket, "response.output_audio.delta", item_id=item, delta=delta)
                await self._tell(socket, "response.output_audio.done", item_id=item)
                await self._tell(socket, "response.done", response={"id": "r"})

    @staticmethod
    async def _tell(socket: ServerConnection, kind: str, **fields: Any) -> None:
        await socket.send(json.dumps({"type": kind, **fields}))


def config_for(port: int, **agent: Any) -> Any:
    return fake_config(agent={"url": f"ws://127.0.0.1:{port}/v1/realtime", "model": "m 1", **agent})


async def speak(server: Running, session: str, seconds: float) -> None:
    """The user speaks into the microphone, in real time."""
    live = server.hub.find(session)
    assert live is not None
    sound = np.concatenate([babble(seconds), np.zeros(8000, np.float32)])
    for start in range(0, len(sound), 320):
        live.session.push_audio(microphone_frame(sound[start : start + 320], pts=start))
        await asyncio.sleep(0.02)


async def test_what_the_endpoint_answers_is_spoken_and_can_be_interrupted() -> None:
    async with (
        Endpoint(np.tile(SPEECH, 3)) as endpoint,
        running(config_for(endpoint.port, instructions="Be kind."), Secrets(agent_key="the key")) as server,
    ):
        session = await server.open(mode="agent")
        async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
            await speak(server, session["id"], 1.0)
            started = await take(socket, "playback_started")
            user = asyncio.create_task(speak(server, session["id"], 1.0))
            report = await take(socket, "playback_finished", segment=started["segment"])
            assert report["interrupted"]
            assert report["position_ms"] < 3000
            await user
        assert endpoint.headers == ["Bearer the key"]
        assert endpoint.paths == ["/v1/realtime?model=m+1"]
        assert endpoint.sent[0]["session"]["instructions"] == "Be kind."
        heard = b"".join(base64.b64decode(m["audio"]) for m in endpoint.of("input_audio_buffer.append"))
        assert len(heard) / 2 / 24_000 == pytest.approx(3.0, abs=0.1), "the whole microphone, at 24 kHz"
        truncated = endpoint.of("conversation.item.truncate")
        assert [(m["item_id"], m["audio_end_ms"]) for m in truncated] == [("item_1", report["position_ms"])]


async def test_without_interruption_the_answer_is_heard_to_its_end() -> None:
    async with Endpoint(SPEECH) as endpoint, running(config_for(endpoint.port, interrupt=False)) as server:
        session = await server.open(mode="agent")
        async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
            await speak(server, session["id"], 1.0)
            report = await take(socket, "playback_finished")
            assert not report["interrupted"]
            assert abs(report["position_ms"] - 2000) <= 10
        assert not endpoint.of("conversation.item.truncate")


async def test_an_endpoint_that_goes_is_told_once_and_called_again() -> None:
    async with Endpoint(SPEECH) as endpoint, running(config_for(endpoint.port)) as server:
        session = await server.open(mode="agent")
        async with connect(f"{server.ws}/{session['urls']['events']}") as socket:
            await endpoint.until_called()
            await endpoint.__aexit__()
            assert "closed" in (await take(socket, "error", code="engine_down"))["message"]
            async with Endpoint(SPEECH, endpoint.port) as back:
                await back.until_called()
                await speak(server, session["id"], 1.0)
                await take(socket, "playback_started")
            live = server.hub.find(session["id"])
            assert live is not None and live._agent is not None
            assert (await server.http.delete(f"/v1/sessions/{session['id']}")).status_code == 204
            assert live._agent.done()


async def test_without_an_endpoint_the_mode_is_refused() -> None:
    async with running(wait=False) as server:
        answer = await server.http.post("/v1/sessions", json={"mode": "agent"})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert "agent.url" in answer.json()["detail"]
    with pytest.raises(ValueError, match="ws://"):
        AgentConfig(url="http://example.org")

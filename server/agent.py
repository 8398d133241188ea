"""`mode: agent`: the microphone goes to a Realtime endpoint, and the avatar speaks what comes back.

The endpoint decides when a turn has ended and what to answer. Interruption is ours: when voice activity hears the user
while an answer plays, the avatar falls silent at once and the endpoint is told how much was really heard.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
import websockets
from av import AudioFrame, AudioResampler
from websockets.asyncio.client import ClientConnection, connect

from server.errors import ApiError
from server.speaker import Speaker, read_base64, read_pcm
from streaming.events import Event
from streaming.session import Session

log = logging.getLogger(__name__)

RATE_HZ = 24_000
MAX_WAITING = 100
"""Pieces of the microphone that wait for a slow endpoint; the oldest is dropped."""
_RETRY_S = (0.5, 1.0, 2.0, 5.0)
_MESSAGE_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Who answers in sessions of `mode: agent`."""

    url: str = ""
    """WebSocket address of a Realtime endpoint; empty: the mode is refused. Its key is AVATARCAST_AGENT_KEY."""
    model: str = ""
    """Model that the endpoint is asked for; empty asks for none."""
    instructions: str = ""
    """How the endpoint is to answer; empty leaves it its own."""
    interrupt: bool = True
    """Whether the user's voice stops an answer that plays."""

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("ws://", "wss://")):
            raise ValueError(f"url is {self.url!r}; it must begin with ws:// or wss://")


@dataclass(slots=True)
class _Answer:
    """One item that the endpoint says."""

    item_id: str
    segment: str


class Agent:
    """Bridges one session to the endpoint. `run` until cancelled.

    Args:
        session: in `push` mode.
        speaker: of that session.
        config: the endpoint; `url` is set.
        key: its bearer, if it needs one.
    """

    def __init__(self, session: Session, speaker: Speaker, config: AgentConfig, key: str | None) -> None:
        self._session = session
        self._speaker = speaker
        self._config = config
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._out: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._arrived = asyncio.Event()
        self._answers: dict[str, _Answer] = {}  # by segment, until heard
        self._cut: deque[str] = deque(maxlen=16)  # items that were interrupted lately
        self._is_answering = False
        self._resampler = AudioResampler(format="s16", layout="mono", rate=RATE_HZ)

    async def run(self) -> None:
        """Keep the bridge up; a lost connection is told once and made again."""
        self._session.tap_microphone(self._hear)
        unsubscribe = self._session.subscribe(self._listen)
        failures = 0
        try:
            while True:
                try:
                    await self._converse()
                    reason = "the agent's endpoint has closed the connection"
                    failures = 0
                except (OSError, TimeoutError, websockets.WebSocketException) as error:
                    name = type(error).__name__
                    reason = f"the agent's endpoint cannot be reached ({name}); check agent.url and its key"
                self._end_answers()
                if failures == 0:
                    self._session.announce_error("engine_down", reason)
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1
        finally:
            unsubscribe()
            self._session.tap_microphone(None)
            self._end_answers()

    async def _converse(self) -> None:
        query = urlencode({"model": self._config.model}) if self._config.model else ""
        glue = "&" if "?" in self._config.url else "?"
        url = f"{self._config.url}{glue}{query}" if query else self._config.url
        async with connect(url, additional_headers=self._headers, max_size=_MESSAGE_LIMIT) as socket:
            self._out.clear()
            await socket.send(json.dumps({"type": "session.update", "session": self._settings()}))
            sending = asyncio.create_task(self._send(socket), name=f"agent {self._session.id}")
            try:
                async for text in socket:
                    await self._take(text)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    def _settings(self) -> dict[str, Any]:
        sound = {"type": "audio/pcm", "rate": RATE_HZ}
        told = {"instructions": self._config.instructions} if self._config.instructions else {}
        return {
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {
                "input": {"format": sound, "turn_detection": {"type": "server_vad", "interrupt_response": False}},
                "output": {"format": sound},
            },
        } | told

    # To the endpoint

    def _hear(self, samples: np.ndarray) -> None:
        """The microphone, [n] float32 at 16 kHz."""
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        for out in self._resampler.resample(frame):
            if out.samples:
                data = base64.b64encode(out.to_ndarray().astype("<i2").tobytes()).decode()
                self._tell({"type": "input_audio_buffer.append", "audio": data})

    def _tell(self, message: dict[str, Any]) -> None:
        self._out.append(message)
        self._arrived.set()

    async def _send(self, socket: ClientConnection) -> None:
        while True:
            self._arrived.clear()
            while self._out:
                await socket.send(json.dumps(self._out.popleft()))
            await self._arrived.wait()

    # From the endpoint

    async def _take(self, text: str | bytes) -> None:
        try:
            message = json.loads(text)
            kind = str(message["type"])
        except (ValueError, KeyError, TypeError):
            return  # not of the protocol; the next one may be
        if kind in ("response.output_audio.delta", "response.audio.delta"):
            await self._say(str(message.get("item_id", "")), message.get("delta"))
        elif kind in ("response.output_audio.done", "response.audio.done"):
            self._end_answers(str(message.get("item_id", "")))
        elif kind == "response.created":
            self._is_answering = True
        elif kind == "response.done":
            self._is_answering = False
            self._end_answers()
        elif kind == "error":
            error = message.get("error")
            said = str(error.get("message", ""))[:200] if isinstance(error, dict) else ""
            self._session.announce_error("engine_down", f"The agent's endpoint refused something: {said}")

    async def _say(self, item_id: str, delta: object) -> None:
        try:
            pcm = read_pcm(read_base64(delta))
        except ApiError as error:
            self._session.announce_error("engine_down", f"The agent's endpoint sent sound that is none: {error.detail}")
            return
        answer = next((a for a in self._answers.values() if a.item_id == item_id), None)
        if answer is None:
            if item_id in self._cut:
                return  # it was interrupted; what was on its way is not spoken
            answer = _Answer(item_id, self._session.begin_segment(is_held=True))
            self._answers[answer.segment] = answer
        await self._speaker.push(answer.segment, pcm, RATE_HZ)

    def _end_answers(self, item_id: str | None = None) -> None:
        for answer in list(self._answers.values()):
            if item_id in (None, answer.item_id):
                self._session.end_segment(answer.segment)

    # From the session

    def _listen(self, event: Event) -> None:
        if event.type == "speech_started" and self._config.interrupt and self._answers:
            self._session.interrupt()
            if self._is_answering:
                self._tell({"type": "response.cancel"})
        elif event.type == "speech_stopped":
            self._session.set_posture("thinking")
        elif event.type == "playback_finished":
            answer = self._answers.pop(str(event.data["segment"]), None)
            if answer is not None and event.data["interrupted"]:
                self._cut.append(answer.item_id)
                heard = {"item_id": answer.item_id, "content_index": 0, "audio_end_ms": event.data["position_ms"]}
                self._tell({"type": "conversation.item.truncate", **heard})

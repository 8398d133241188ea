"""OpenAI's Realtime protocol, server side: what an unmodified client appends, the avatar speaks.

The avatar stands where the model would: sound of the input buffer becomes a turn, and the turn's response is the avatar
speaking it. The response's events follow what is really heard; its sound leaves by the session's media doors, so there
are no audio deltas. What only an avatar has is told as `avatar.*`, which a plain client ignores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.requests import HTTPConnection

from server.auth import offered_protocols
from server.errors import ApiError
from server.live import LiveSession
from server.mailbox import Mailbox, RateLimit
from server.realtime_names import message, response_object, session_object, spelled
from server.speaker import check_rate, read_base64, read_pcm
from server.turns import Turns
from streaming.config import VadConfig
from streaming.errors import StreamingError
from streaming.events import Event

MAX_ITEMS = 256
"""Items that are remembered; older ones are forgotten."""
_FORWARDED = ("state", "speech_started", "speech_stopped", "playback_started", "playback_finished", "pause", "resume",
              "warning", "error")  # fmt: skip
_BASE64_TYPES = ("input_audio", "output_audio", "audio")
_TEXT_TYPES = ("input_text", "output_text", "text")
SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}

Fields = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class _Item:
    """A turn: what a client created or said."""

    id: str
    parts: list[np.ndarray | str]
    """Sound or texts that wait for `response.create`."""


@dataclass(slots=True, kw_only=True)
class _Response:
    """The avatar speaking one turn."""

    id: str
    item_id: str
    transcript: str
    heard_ms: int = 0
    is_over: bool = False


class RealtimeDoor:
    """One Realtime client, with control over the session.

    Args:
        live: the session.
        mailbox: the client's, empty.
        vad: what counts as speech.
        is_beta: whether the client asked for the beta's spelling.
        per_second: most messages a second, sound not counted.
    """

    def __init__(self, live: LiveSession, mailbox: Mailbox, vad: VadConfig, *, is_beta: bool, per_second: int) -> None:
        self._live = live
        self._mailbox = mailbox
        self._vad = vad
        self._is_beta = is_beta
        self._rate = RateLimit(per_second)
        self._numbers = itertools.count(1)
        self._rate_hz = 24_000
        self._turn_detection: Fields | None = dict(SERVER_VAD)
        self._turns = self._new_turns()
        self._segment: str | None = None  # of the turn that is growing
        self._turn_id = ""
        self._last_item: str | None = None
        self._waiting: list[_Item] = []
        self._responses: dict[str, _Response] = {}  # by segment
        self._unsubscribe = live.session.subscribe(self._listen)
        self._handlers: dict[str, Callable[[Fields], Awaitable[None] | None]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.truncate": self._truncate,
            "response.create": self._create_response,
            "response.cancel": self._cancel,
            "output_audio_buffer.clear": self._cancel,
        }
        self._send("session.created", session=self._session())

    async def receive(self, data: str | bytes) -> None:
        """Take one message; never raises for what the client did."""
        event_id = None
        try:
            fields = _parse(data)
            event_id = fields.get("event_id")
            kind = fields.get("type")
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise ApiError("bad_request", f"type is {kind!r:.60}; known are {', '.join(self._handlers)}.")
            if kind != "input_audio_buffer.append" and not self._rate.allows():
                raise ApiError("rate_limited", "Too many messages within a second; send fewer.")
            done = handler(fields)
            if done is not None:
                await done
        except ApiError as error:
            self._refuse(error.code, error.detail, event_id)
        except StreamingError as error:
            self._refuse(error.code, str(error), event_id)

    def close(self) -> None:
        """The client has left: what it said is spoken to its end."""
        self._unsubscribe()
        if self._segment is not None:
            self._live.session.end_segment(self._segment)

    # The session

    def _update(self, fields: Fields) -> None:
        wanted = fields.get("session")
        if not isinstance(wanted, dict):
            raise ApiError("bad_request", "session is missing; send the settings to change as an object.")
        audio = wanted.get("audio")
        heard = audio.get("input") if isinstance(audio, dict) else None
        heard = heard if isinstance(heard, dict) else {}
        rate_hz = _rate_of(heard.get("format", wanted.get("input_audio_format")), self._rate_hz)
        given = heard if "turn_detection" in heard else wanted
        detection = _detection(given["turn_detection"]) if "turn_detection" in given else self._turn_detection
        if self._segment is not None and (rate_hz, detection) != (self._rate_hz, self._turn_detection):
            raise ApiError("conflict", "A turn is open; commit it before the form of the input changes.")
        if (rate_hz, detection) != (self._rate_hz, self._turn_detection):
            self._rate_hz, self._turn_detection = rate_hz, detection
            self._turns = self._new_turns()
        self._send("session.updated", session=self._session())

    def _session(self) -> Fields:
        return session_object(
            self._live.id,
            rate_hz=self._rate_hz,
            turn_detection=self._turn_detection,
            voice=self._live.voice,
            is_beta=self._is_beta,
        )

    def _new_turns(self) -> Turns:
        silence_ms = (self._turn_detection or SERVER_VAD).get("silence_duration_ms", 500)
        return Turns(replace(self._vad, hangover_ms=silence_ms))

    # The input buffer

    def _append(self, fields: Fields) -> None:
        pcm = read_pcm(read_base64(fields.get("audio")))
        if self._turn_detection is None:
            segment = self._segment or self._begin_turn()
            self._live.session.push_pcm(pcm, self._rate_hz, segment)
            return
        for heard in self._turns.hear(pcm, self._rate_hz):
            if heard.kind == "started":
                self._begin_turn()
                self._send("input_audio_buffer.speech_started", audio_start_ms=heard.at_ms, item_id=self._turn_id)
            elif heard.kind == "sound" and self._segment is not None and heard.samples is not None:
                self._live.session.push_pcm(heard.samples, 16_000, self._segment)
            elif heard.kind == "stopped":
                self._send("input_audio_buffer.speech_stopped", audio_end_ms=heard.at_ms, item_id=self._turn_id)
                if self._segment is not None:
                    self._end_turn()

    def _begin_turn(self) -> str:
        """The avatar speaks a turn while it still grows."""
        self._segment = self._live.session.begin_segment()
        self._turn_id = self._id("item")
        self._respond(self._segment, "")
        return self._segment

    def _end_turn(self) -> None:
        assert self._segment is not None
        segment, self._segment = self._segment, None
        self._send("input_audio_buffer.committed", item_id=self._turn_id, previous_item_id=self._last_item)
        self._add_item(message(self._turn_id, "user", [{"type": "input_audio", "transcript": None}]))
        self._live.session.end_segment(segment)

    def _commit(self, fields: Fields) -> None:
        if self._segment is None:
            raise ApiError("bad_request", "The input buffer is empty; append sound before the commit.")
        self._end_turn()

    async def _clear(self, fields: Fields) -> None:
        """Forget the open turn; what was heard of it cannot be taken back."""
        if self._segment is not None:
            self._segment = None
            await self._live.interrupt()
        self._turns = self._new_turns()
        self._send("input_audio_buffer.cleared")

    # Items and responses

    def _create_item(self, fields: Fields) -> None:
        self._waiting.append(self._read_item(fields.get("item")))

    def _read_item(self, given: object) -> _Item:
        if not isinstance(given, dict) or given.get("type") != "message":
            raise ApiError("bad_request", "item is no message; send one with type message and its content.")
        content, parts, shown = given.get("content"), [], []
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in _BASE64_TYPES:
                parts.append(read_pcm(read_base64(part.get("audio"))))
                shown.append({"type": kind})
            elif kind in _TEXT_TYPES and isinstance(part.get("text"), str):
                parts.append(part["text"])
                shown.append({"type": kind, "text": part["text"]})
            else:
                raise ApiError("bad_request", f"A part of content is {kind!r:.40}; send text or audio.")
        if not parts:
            raise ApiError("bad_request", "content is empty; send text or audio.")
        if len(self._waiting) >= MAX_ITEMS:
            raise ApiError("rate_limited", "Too many items wait; have them spoken with response.create.")
        role = given.get("role") if given.get("role") in ("user", "assistant", "system") else "user"
        id = given.get("id")
        item = _Item(id=id if isinstance(id, str) and 0 < len(id) <= 64 else self._id("item"), parts=parts)
        self._add_item(message(item.id, str(role), shown))
        if role == "system":
            item.parts = []  # an instruction; it is not spoken
        return item

    def _add_item(self, item: Fields) -> None:
        self._send("conversation.item.added", previous_item_id=self._last_item, item=item)
        self._send("conversation.item.done", previous_item_id=self._last_item, item=item)
        self._last_item = item["id"]

    def _create_response(self, fields: Fields) -> None:
        """Speak what waits. A turn of the input buffer is being spoken already, so nothing is to be done for it."""
        wanted = fields.get("response")
        for given in (wanted.get("input") if isinstance(wanted, dict) else None) or []:
            self._waiting.append(self._read_item(given))
        waiting, self._waiting = self._waiting, []
        parts = [part for item in waiting for part in item.parts]
        if not parts and not any(not response.is_over for response in self._responses.values()):
            raise ApiError("bad_request", "There is nothing to say; append sound or create an item first.")
        for part in parts:
            if isinstance(part, str):
                self._respond(self._live.say(part), part)
                continue
            segment = self._live.session.begin_segment()
            self._respond(segment, "")
            try:
                self._live.session.push_pcm(part, self._rate_hz, segment)
            finally:
                self._live.session.end_segment(segment)

    def _respond(self, segment: str, transcript: str) -> None:
        response = _Response(id=self._id("resp"), item_id=self._id("item"), transcript=transcript)
        self._responses[segment] = response
        while len(self._responses) > MAX_ITEMS:
            self._responses.pop(next(iter(self._responses)))
        item = message(response.item_id, "assistant", [], status="in_progress")
        self._send("response.created", response=response_object(response.id, "in_progress", []))
        self._send("response.output_item.added", response_id=response.id, output_index=0, item=item)
        self._send("response.content_part.added", **self._place(response), part={"type": "audio", "transcript": ""})

    async def _cancel(self, fields: Fields) -> None:
        if all(response.is_over for response in self._responses.values()):
            raise ApiError("conflict", "Cancellation failed: no response is active.")
        self._segment = None
        await self._live.interrupt()

    async def _truncate(self, fields: Fields) -> None:
        """Stop an item; told back is how much of it was heard."""
        id, end_ms = fields.get("item_id"), fields.get("audio_end_ms")
        response = next((r for r in self._responses.values() if r.item_id == id), None)
        if response is None:
            raise ApiError("not_found", f"There is no item {id!r:.60} that the avatar spoke.")
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise ApiError("bad_request", f"audio_end_ms is {end_ms!r:.40}; it must be a whole number of at least 0.")
        if not response.is_over:
            await self._live.interrupt()
        heard_ms = min(end_ms, response.heard_ms)
        self._send("conversation.item.truncated", item_id=id, content_index=0, audio_end_ms=heard_ms)

    # What the session tells

    def _listen(self, event: Event) -> None:
        if event.type in _FORWARDED:
            self._send(f"avatar.{event.type}", pts_ms=event.pts_ms, **event.data)
        if event.type == "state" and event.data.get("state") == "closing":
            asyncio.get_running_loop().call_soon(self._mailbox.close)
        response = self._responses.get(str(event.data.get("segment")))
        if response is None or response.is_over:
            return
        if event.type == "playback_started":
            self._send("output_audio_buffer.started", response_id=response.id)
        elif event.type == "playback_finished":
            self._finish(response, event)

    def _finish(self, response: _Response, event: Event) -> None:
        was_cut = bool(event.data["interrupted"])
        response.heard_ms, response.is_over = int(str(event.data["position_ms"])), True
        if event.data["segment"] == self._segment:
            self._segment = None  # what still comes of this turn is not spoken
        place, transcript = self._place(response), response.transcript
        kind = "audio" if self._is_beta else "output_audio"
        item = message(
            response.item_id,
            "assistant",
            [{"type": kind, "transcript": transcript}],
            status="incomplete" if was_cut else "completed",
        )
        self._send("response.output_audio.done", **place)
        self._send("response.output_audio_transcript.done", **place, transcript=transcript)
        self._send("response.content_part.done", **place, part={"type": "audio", "transcript": transcript})
        self._send("response.output_item.done", response_id=response.id, output_index=0, item=item)
        self._add_item(item)
        status = "cancelled" if was_cut else "completed"
        self._send("response.done", response=response_object(response.id, status, [item]))
        self._send(f"output_audio_buffer.{'cleared' if was_cut else 'stopped'}", response_id=response.id)

    # Out

    def _place(self, response: _Response) -> Fields:
        return {"response_id": response.id, "item_id": response.item_id, "output_index": 0, "content_index": 0}

    def _refuse(self, code: str, text: str, event_id: object) -> None:
        kind = "server_error" if code in ("internal", "engine_down") else "invalid_request_error"
        answers = event_id if isinstance(event_id, str) else None
        self._send("error", error={"type": kind, "code": code, "message": text, "param": None, "event_id": answers})

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._live.id}_{next(self._numbers)}"

    def _send(self, kind: str, **fields: object) -> None:
        event = spelled({"type": kind, "event_id": self._id("event"), **fields}, is_beta=self._is_beta)
        if event is not None:
            self._mailbox.put(json.dumps(event, separators=(",", ":")))


def wants_beta(connection: HTTPConnection) -> bool:
    """Whether a client asks for the beta's spelling, by header or, as browsers must, by subprotocol."""
    protocols = offered_protocols(connection)
    return "realtime=v1" in connection.headers.get("openai-beta", "") or "openai-beta.realtime-v1" in protocols


def _parse(data: str | bytes) -> Fields:
    if isinstance(data, bytes):
        raise ApiError("bad_request", "The message is binary; send JSON with the sound in base64.")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError("bad_request", "The message is not JSON; send one JSON object with a field type.") from error
    if not isinstance(fields, dict):
        raise ApiError("bad_request", "The message is not a JSON object; send one with a field type.")
    return fields


def _rate_of(given: object, before_hz: int) -> int:
    """The sample rate of an input format, in either spelling."""
    if given is None:
        return before_hz
    if given == "pcm16":
        return 24_000
    if isinstance(given, dict) and given.get("type") == "audio/pcm":
        return check_rate(given.get("rate", 24_000))
    raise ApiError("unsupported_media", f"The input format is {given!r:.60}; send audio/pcm, 16 bits, little endian.")


def _detection(given: object) -> Fields | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("type") not in ("server_vad", "semantic_vad"):
        raise ApiError("bad_request", f"turn_detection is {given!r:.60}; send null, or type server_vad.")
    silence_ms = given.get("silence_duration_ms")
    if silence_ms is None:
        silence_ms = SERVER_VAD["silence_duration_ms"]
    if isinstance(silence_ms, bool) or not isinstance(silence_ms, int) or not 20 <= silence_ms <= 3000:
        raise ApiError("bad_request", f"silence_duration_ms is {silence_ms!r:.40}; it must be 20 to 3000.")
    return SERVER_VAD | {"silence_duration_ms": silence_ms}

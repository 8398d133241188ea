"""The audio socket: a client pushes speech as PCM and hears when each segment was played.

Whatever the events socket says and understands holds here too; in addition come `start`, binary sound, `end`, and the
names of HeyGen's LITE mode (`agent.speak` and its like, base64 PCM at 24 kHz) for programs written against that.
"""

from __future__ import annotations

import json
from typing import Any

from server import messages
from server.errors import ApiError
from server.live import LiveSession
from server.mailbox import Mailbox
from server.speaker import check_rate, read_base64, read_pcm
from streaming.errors import StreamingError
from streaming.events import Event

HEYGEN_RATE_HZ = 24_000
MAX_NAME_CHARACTERS = 100
TYPES = ("start", "end")
HEYGEN_TYPES = (
    "agent.speak",
    "agent.speak_end",
    "agent.interrupt",
    "agent.start_listening",
    "agent.stop_listening",
    "session.keep_alive",
)


class PushDoor:
    """One client of the audio socket, with control over the session.

    Args:
        live: the session.
        mailbox: the client's; opened by the session, so events come of themselves.
    """

    def __init__(self, live: LiveSession, mailbox: Mailbox) -> None:
        self._live = live
        self._mailbox = mailbox
        self._segment: str | None = None  # the one that this client is pushing
        self._is_cut = False  # it was interrupted; what still comes of it is dropped
        self._rate_hz = 0
        self._event_ids: dict[str, str] = {}  # of segments pushed under HeyGen's names
        self._unsubscribe = live.session.subscribe(self._listen)
        self._put("session.state_updated", state="connected")

    async def receive(self, data: str | bytes) -> None:
        """Take one message; never raises for what the client did."""
        try:
            if isinstance(data, bytes):
                self._sound(data)
            elif not await self._own(data):
                await self._mailbox.receive(data)
        except ApiError as error:
            self._put("error", code=error.code, message=error.detail)
        except StreamingError as error:
            self._put("error", code=error.code, message=str(error))

    def close(self) -> None:
        """The client has left: what it pushed is spoken to its end."""
        self._unsubscribe()
        if self._segment is not None:
            self._live.session.end_segment(self._segment)

    # Ours

    async def _own(self, text: str) -> bool:
        """Do what a message of this socket alone asks; False if it is one of the events socket."""
        message = _parse(text)
        kind = message.get("type") if message else None
        if kind == "start":
            self._start(_name(message, "segment"), check_rate(message.get("sample_rate")))
            self._put("segment", segment=self._segment)
        elif kind == "end":
            self._end()
        elif kind in HEYGEN_TYPES:
            await self._heygen(kind, message)
        else:
            return False
        return True

    def _start(self, name: str | None, rate_hz: int) -> str:
        self._let_go()
        self._segment = self._live.session.begin_segment(name)
        self._rate_hz = rate_hz
        return self._segment

    def _sound(self, data: bytes) -> None:
        if self._segment is None:
            raise ApiError("bad_request", "Sound came outside a segment; send start with a sample_rate first.")
        # False means that the segment was cut off; its sound on the way is dropped, as the interrupt's report said.
        self._live.session.push_pcm(read_pcm(data), self._rate_hz, self._segment)

    def _end(self) -> None:
        if self._segment is None:
            raise ApiError("bad_request", "end came without a segment; send start first.")
        self._live.session.end_segment(self._segment)
        self._let_go()

    def _let_go(self) -> None:
        if self._is_cut and self._segment is not None:
            self._event_ids.pop(self._segment, None)
        self._segment, self._is_cut = None, False

    # HeyGen's names

    async def _heygen(self, kind: str, message: dict[str, Any]) -> None:
        event_id = _name(message, "event_id")
        match kind:
            case "agent.speak":
                self._speak(event_id, message.get("audio"))
            case "agent.speak_end":
                self._end()
            case "agent.interrupt":
                await self._live.interrupt()
            case "agent.start_listening":
                self._live.session.set_posture("listening")
            case "agent.stop_listening":
                self._live.session.set_posture("idle")
            case "session.keep_alive":
                pass  # an open socket keeps the session alive

    def _speak(self, event_id: str | None, audio: object) -> None:
        pcm = read_base64(audio)
        is_same = self._segment is not None and self._event_ids.get(self._segment) == (event_id or "")
        if not is_same:
            self._event_ids[self._start(event_id, HEYGEN_RATE_HZ)] = event_id or ""
        self._sound(pcm)

    # Out

    def _listen(self, event: Event) -> None:
        if event.type == "state" and event.data.get("state") == "closing":
            self._put("session.state_updated", state="closing")
        segment = event.data.get("segment")
        if event.type == "playback_finished" and segment == self._segment and segment is not None:
            self._is_cut = True
        if event.type not in ("playback_started", "playback_finished") or segment not in self._event_ids:
            return
        if event.type == "playback_started":
            self._put("agent.speak_started", event_id=self._event_ids[segment])
            return
        event_id = self._event_ids[segment] if segment == self._segment else self._event_ids.pop(segment)
        self._put("agent.speak_ended", event_id=event_id, interrupted=event.data["interrupted"])

    def _put(self, kind: str, **fields: object) -> None:
        self._mailbox.answer(kind, **fields)


def _parse(text: str) -> dict[str, Any] | None:
    """The message if it can be one of ours; what is wrong with others is said where they are read."""
    if len(text) > messages.MAX_MESSAGE_BYTES and '"agent.speak"' not in text:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _name(message: dict[str, Any], field: str) -> str | None:
    value = message.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS:
        text = f"{field} is {value!r:.40}; it must be text of 1 to {MAX_NAME_CHARACTERS} characters, or left out."
        raise ApiError("bad_request", text)
    return value

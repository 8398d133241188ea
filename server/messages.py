"""What travels on the data channel `events` and on the events WebSocket: one JSON object a message.

Out: every message carries `type`, `session` and `pts_ms` (media time of the session). In: only `type` is needed.
`decode` turns text into one of the small classes below, or says in one sentence why it cannot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from server.errors import ApiError

MAX_PROMPT_CHARACTERS = 2000
MAX_MESSAGE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Stop the speech that plays."""


@dataclass(frozen=True, slots=True)
class Say:
    """Speak this text."""

    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Change the expression from the next block on."""

    text: str


@dataclass(frozen=True, slots=True)
class Avatar:
    """Change the portrait from the next block on."""

    id: str


@dataclass(frozen=True, slots=True)
class Mute:
    """Stop, or take up again, listening to the microphone."""

    on: bool


@dataclass(frozen=True, slots=True)
class Posture:
    """Look as if listening or thinking."""

    state: str


@dataclass(frozen=True, slots=True)
class Keyframe:
    """Send a key frame soon: a page that was hidden is shown again."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered with `pong`; keeps the session's viewer alive."""

    t: float | None


Inbound = Interrupt | Say | Prompt | Avatar | Mute | Posture | Keyframe | Ping
TYPES = ("interrupt", "say", "prompt", "avatar", "mute", "state", "keyframe", "ping")


def encode(kind: str, *, session: str, pts_ms: int, **fields: Any) -> str:
    """One outbound message as JSON text."""
    return json.dumps({"type": kind, "session": session, "pts_ms": pts_ms, **fields}, separators=(",", ":"))


def decode(text: str | bytes) -> Inbound:
    """One inbound message.

    Raises:
        ApiError: `too_large` or `bad_request`, with the field, its value and the remedy.
    """
    if len(text) > MAX_MESSAGE_BYTES:
        raise ApiError("too_large", f"The message has {len(text)} bytes; at most {MAX_MESSAGE_BYTES} are taken.")
    if text in ("ping", b"ping"):
        return Ping(None)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError("bad_request", "The message is not JSON; send one JSON object with a field type.") from error
    if not isinstance(data, dict):
        raise ApiError("bad_request", "The message is not a JSON object; send one with a field type.")
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        shown = repr(kind)[:40]
        raise ApiError("bad_request", f"type is {shown}; it must be one of {', '.join(TYPES)}.")
    return _PARSERS[kind](data)


def _text(data: dict[str, Any], name: str, limit: int) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ApiError("bad_request", f"{name} is {'missing' if value is None else 'not text'}; send it as a string.")
    if len(value) > limit:
        raise ApiError("bad_request", f"{name} has {len(value)} characters; at most {limit} are taken.")
    return value


def _mute(data: dict[str, Any]) -> Mute:
    on = data.get("on")
    if not isinstance(on, bool):
        raise ApiError("bad_request", f"on is {on!r:.40}; it must be true or false.")
    return Mute(on)


def _posture(data: dict[str, Any]) -> Posture:
    state = data.get("state")
    if state not in ("listening", "thinking", "idle"):
        raise ApiError("bad_request", f"state is {state!r:.40}; it must be listening, thinking or idle.")
    return Posture(state)


def _ping(data: dict[str, Any]) -> Ping:
    t = data.get("t")
    return Ping(float(t) if isinstance(t, int | float) and not isinstance(t, bool) and abs(t) < 1e18 else None)


_PARSERS = {
    "interrupt": lambda data: Interrupt(),
    "say": lambda data: Say(_text(data, "text", MAX_PROMPT_CHARACTERS)),
    "prompt": lambda data: Prompt(_text(data, "text", MAX_PROMPT_CHARACTERS)),
    "avatar": lambda data: Avatar(_text(data, "id", 100)),
    "mute": _mute,
    "state": _posture,
    "keyframe": lambda data: Keyframe(),
    "ping": _ping,
}

"""Words of OpenAI's Realtime protocol: the present (GA) spelling, the beta's, and the objects that both are told.

Inside, GA names are used; `spelled` turns an event into what a beta client expects.
"""

from __future__ import annotations

from typing import Any

_BETA = {
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "conversation.item.added": "conversation.item.created",
}
_BETA_LACKS = ("conversation.item.done",)


def spelled(event: dict[str, Any], *, is_beta: bool) -> dict[str, Any] | None:
    """The event as the client's generation spells it; None if that has no such event."""
    if not is_beta:
        return event
    if event["type"] in _BETA_LACKS:
        return None
    return event | {"type": _BETA.get(event["type"], event["type"])}


def session_object(
    id: str, *, rate_hz: int, turn_detection: dict[str, Any] | None, voice: str, is_beta: bool
) -> dict[str, Any]:
    """What `session.created` and `session.updated` carry."""
    common: dict[str, Any] = {
        "id": f"sess_{id}",
        "object": "realtime.session",
        "model": "avatarcast",
        "instructions": "",
    }
    if is_beta:
        return common | {
            "modalities": ["audio", "text"], "voice": voice, "input_audio_format": "pcm16",
            "output_audio_format": "pcm16", "turn_detection": turn_detection, "tools": [],
        }  # fmt: skip
    sound = {"type": "audio/pcm", "rate": rate_hz}
    return common | {
        "type": "realtime",
        "output_modalities": ["audio"],
        "audio": {
            "input": {"format": sound, "turn_detection": turn_detection},
            "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": voice},
        },
        "tools": [],
    }


def message(id: str, role: str, content: list[dict[str, Any]], *, status: str = "completed") -> dict[str, Any]:
    """A conversation item."""
    return {"id": id, "object": "realtime.item", "type": "message", "status": status, "role": role, "content": content}


def response_object(id: str, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """A response; cancelled ones say why."""
    details = {"type": "cancelled", "reason": "client_cancelled"} if status == "cancelled" else None
    return {
        "id": id, "object": "realtime.response", "status": status, "status_details": details, "output": output,
        "output_modalities": ["audio"],
    }  # fmt: skip

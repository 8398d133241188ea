"""What a session reports, as plain values that any door can send.

An event's JSON form is `{"type", "session", "pts_ms", ...data}`; `pts_ms` is session media time, counted from the
session's first picture. Events are handed to subscribers on the loop, in order; a subscriber that queues them bounds
its own queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

SessionState = Literal["idle", "listening", "thinking", "speaking", "degraded", "closing"]

EVENT_TYPES = (
    "state",
    "speech_started",
    "speech_stopped",
    "playback_started",
    "playback_finished",
    "prompt_applied",
    "avatar_applied",
    "block",
    "stats",
    "pause",
    "resume",
    "warning",
    "error",
    "closing",
)
"""Everything a session says of its own accord; `hello`, `pong` and `queue` are the doors' own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One report."""

    type: str
    """One of EVENT_TYPES."""
    session: str
    """Session id."""
    pts_ms: int
    """Session media time at which it happened."""
    data: Mapping[str, object] = field(default_factory=dict)
    """The fields that the contract lists for this type."""

    def as_json(self) -> dict[str, object]:
        """The wire form, ready for `json.dumps`."""
        return {"type": self.type, "session": self.session, "pts_ms": self.pts_ms, **self.data}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaybackReport:
    """How far a segment was heard; the answer to every interrupt."""

    segment: str | None
    """The segment that was playing; None if nothing was."""
    position_ms: int
    """Heard part of the segment."""
    interrupted: bool
    """Whether its end was cut off."""

    def as_json(self) -> dict[str, object]:
        return {"segment": self.segment, "position_ms": self.position_ms, "interrupted": self.interrupted}


Listener = Callable[[Event], None]


class Announcer:
    """Hands events to whoever subscribed.

    Args:
        session: session id put on every event.
        media_ms: session media time now.
    """

    def __init__(self, session: str, media_ms: Callable[[], int]) -> None:
        self._session = session
        self._media_ms = media_ms
        self._listeners: dict[int, Listener] = {}
        self._next_key = 0

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; the returned function ends that."""
        key, self._next_key = self._next_key, self._next_key + 1
        self._listeners[key] = listener

        def unsubscribe() -> None:
            self._listeners.pop(key, None)

        return unsubscribe

    def tell(self, type_: str, **data: object) -> None:
        """Make one event and hand it out."""
        event = Event(type=type_, session=self._session, pts_ms=self._media_ms(), data=data)
        for listener in list(self._listeners.values()):
            listener(event)

"""Two participants in one room without a LiveKit server: what `livekit.agents.voice.avatar` asks of a room, in memory.

Byte streams and remote calls go from one side to the other; everything that uses them is the package's own code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from livekit import rtc


class Reader:
    """The receiving end of one byte stream."""

    def __init__(self, stream_id: str, attributes: dict[str, str]) -> None:
        self.info = SimpleNamespace(stream_id=stream_id, attributes=attributes)
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class Writer:
    """The sending end."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def write(self, data: bytes) -> None:
        self._reader.chunks.put_nowait(bytes(data))

    async def aclose(self) -> None:
        self._reader.chunks.put_nowait(None)


@dataclass
class Participant:
    """One side."""

    identity: str
    kind: int = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
    state: int = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
    attributes: dict[str, str] = field(default_factory=dict)
    other: Room | None = None
    published: list[Any] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    _rpc_handlers: dict[str, Callable[[rtc.RpcInvocationData], str]] = field(default_factory=dict)

    def register_rpc_method(self, name: str, handler: Callable[[rtc.RpcInvocationData], str]) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        assert self.other is not None and destination_identity == self.other.local_participant.identity
        self.calls.append((method, payload))
        handler = self.other.local_participant._rpc_handlers.get(method)
        if handler is None:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, "Method not supported at destination")
        await asyncio.sleep(0)
        return handler(rtc.RpcInvocationData("1", self.identity, payload, 10.0))

    async def stream_bytes(
        self, *, name: str, topic: str, destination_identities: list[str], attributes: dict[str, str]
    ) -> Writer:
        assert self.other is not None and destination_identities == [self.other.local_participant.identity]
        reader = Reader(name, attributes)
        self.other.byte_streams[topic](reader, self.identity)
        return Writer(reader)

    async def publish_track(self, track: Any, options: rtc.TrackPublishOptions) -> Any:
        self.published.append((track, options.source))

        async def subscribed() -> None:
            await asyncio.sleep(0)

        return SimpleNamespace(wait_for_subscription=subscribed)


class Room(rtc.EventEmitter[str]):
    """The room as one side sees it."""

    def __init__(self, identity: str) -> None:
        super().__init__()
        self.name = "lobby"
        self.local_participant = Participant(identity)
        self.remote_participants: dict[str, Participant] = {}
        self.byte_streams: dict[str, Callable[[Reader, str], None]] = {}

    def isconnected(self) -> bool:
        return True

    def register_byte_stream_handler(self, topic: str, handler: Callable[[Reader, str], None]) -> None:
        self.byte_streams[topic] = handler


def pair(agent: str, avatar: str) -> tuple[Room, Room]:
    """The room of an agent and of its avatar."""
    rooms = Room(agent), Room(avatar)
    for mine, other in (rooms, rooms[::-1]):
        mine.local_participant.other = other
        mine.remote_participants[other.local_participant.identity] = other.local_participant
    return rooms

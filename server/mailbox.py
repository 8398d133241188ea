"""Events on their way to one client, and that client's messages on their way in: the same for both doors, the data
channel and the WebSocket."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from server import messages
from server.errors import ApiError
from streaming.errors import StreamingError

MAX_WAITING = 256
"""Messages that may wait for one client; one that reads no more is cut off."""

Handler = Callable[[messages.Inbound], Awaitable[None]]


class RateLimit:
    """At most `limit` calls within any second.

    Args:
        limit: calls a second.
    """

    def __init__(self, limit: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._times: deque[float] = deque(maxlen=limit)
        self._now = now

    def allows(self) -> bool:
        """Count one call; False if it is one too many."""
        now = self._now()
        if len(self._times) == self._times.maxlen and now - self._times[0] < 1:
            return False
        self._times.append(now)
        return True


class Inbox:
    """One client's messages: limited, decoded, and handed on; what is wrong with them is answered with `error`.

    Args:
        may_control: whether the client may do more than ping and ask for key frames.
        per_second: most messages a second.
        handle: does what a message asks; an `ApiError` it raises is answered.
        answer: sends one message of this type and these fields back.
    """

    def __init__(self, *, may_control: bool, per_second: int, handle: Handler, answer: Callable[..., None]) -> None:
        self._may_control = may_control
        self._rate = RateLimit(per_second)
        self._refusals = RateLimit(1)
        self._per_second = per_second
        self._handle = handle
        self.answer = answer
        """Sends one message of this type and these fields to the client."""

    async def receive(self, data: str | bytes) -> None:
        """Take one message; never raises for what the client did."""
        if not self._rate.allows():
            if self._refusals.allows():
                text = f"More than {self._per_second} messages within a second; some were dropped, send fewer."
                self.answer("error", code="rate_limited", message=text)
            return
        try:
            message = messages.decode(data)
            if isinstance(message, messages.Ping):
                self.answer("pong", **({} if message.t is None else {"t": message.t}))
                return
            if not self._may_control and not isinstance(message, messages.Keyframe):
                raise ApiError("forbidden", "A view token may only watch; use the session's control token.")
            await self._handle(message)
        except ApiError as error:
            self.answer("error", code=error.code, message=error.detail)
        except StreamingError as error:
            self.answer("error", code=error.code, message=str(error))


class Mailbox:
    """A client on the events WebSocket.

    Args:
        inbox: where its messages go; set by the owner after construction, because it answers through this mailbox.
        on_close: called once when the mailbox is closed.
    """

    def __init__(self, on_close: Callable[[Mailbox], None]) -> None:
        self.inbox: Inbox | None = None
        self._on_close: Callable[[Mailbox], None] | None = on_close
        self._waiting: deque[str] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, text: str) -> None:
        """One message for the client; a client that does not read is cut off instead of filling memory."""
        if self._closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.clear()
            self.close()
            return
        self._waiting.append(text)
        self._arrived.set()

    async def next(self) -> str | None:
        """The next message; None once closed and empty."""
        while not self._waiting:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def receive(self, data: str | bytes) -> None:
        """Take one message of the client."""
        assert self.inbox is not None
        await self.inbox.receive(data)

    def answer(self, kind: str, **fields: object) -> None:
        """One message of this type and these fields for the client."""
        assert self.inbox is not None
        self.inbox.answer(kind, **fields)

    def close(self) -> None:
        """Take no more messages; what waits can still be read."""
        self._closed = True
        self._arrived.set()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

"""The waiting room: tickets of those who came while every place was taken, served in the order they came.

A ticket is bounded in number and in memory (its portrait is already as small as the model's picture), and it lives as
long as somebody polls or listens. A place that becomes free belongs to the first ticket at once; its session is opened
when the owner comes for it, or now if it listens. Nobody without a ticket overtakes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from server import messages
from server.admission import Admission, Slot
from server.config import LimitsConfig
from server.errors import ApiError
from server.mailbox import Inbox, Mailbox
from server.schemas import NewSession, QueueTicket, SessionCreated

log = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
"""Listeners hear of the expected time this often, and of a new position at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A session that can be opened as soon as there is a place."""

    wanted: NewSession
    avatar: str | None
    portrait: np.ndarray
    """[h, w, 3] uint8 RGB."""


@dataclass(eq=False, slots=True, kw_only=True)
class Ticket:
    """One who waits."""

    wish: Wish
    seen_s: float
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    slot: Slot | None = None
    """The place it has been given."""
    created: SessionCreated | None = None
    """The answer, once the session is open."""
    listeners: set[Mailbox] = field(default_factory=set)
    told: int = 0
    """Position that listeners were told last."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class WaitingRoom:
    """All tickets of one server.

    Args:
        limits: how many may wait, and how long a ticket lives without a sign of its owner.
        admission: where places come from.
        open: opens the session of a wish in a place, and gives the place back if it fails.
        ended: whether the session of this name has ended.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        admission: Admission,
        *,
        open: Callable[[Wish, Slot], Awaitable[SessionCreated]],
        ended: Callable[[str], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._open = open
        self._ended = ended
        self._now = now
        self._tickets: dict[str, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_s = -TELL_EVERY_S
        admission.on_room(self.advance)

    @property
    def length(self) -> int:
        """How many wait for a place."""
        return len(self._queue())

    def _queue(self) -> list[Ticket]:
        return [t for t in self._tickets.values() if t.slot is None and t.created is None]

    def join(self, wish: Wish) -> QueueTicket:
        """Wait at the end.

        Raises:
            ApiError: `capacity` when as many wait as may.
        """
        self.check_room()
        ticket = Ticket(wish=wish, seen_s=self._now())
        self._tickets[ticket.id] = ticket
        log.info("a ticket was drawn, %d wait", self.length)
        self.advance()
        return self._describe(ticket)

    def check_room(self) -> None:
        """Refuse one more who would wait, before any work is done for it.

        Raises:
            ApiError: `capacity` when as many wait as may.
        """
        if self.length >= self._limits.max_waiting:
            if not self._limits.max_waiting:
                raise self._admission.refusal()
            text = f"Every place is taken and {self.length} wait already (limits.max_waiting); try again later."
            raise ApiError("capacity", text, retry_after_s=max(1, round(self._admission.eta_s(self.length + 1))))

    async def poll(self, id: str) -> QueueTicket | SessionCreated:
        """What has become of a ticket: its place in the queue, or the session that was opened for it.

        Raises:
            ApiError: `not_found` for one that has expired, `capacity` while the server leaves, and whatever opening
                the session raises, which ends the ticket.
        """
        ticket = self.find(id)
        ticket.seen_s = self._now()
        if ticket.slot is None and ticket.created is None:
            return self._describe(ticket)
        return await self._claim(ticket)

    async def _claim(self, ticket: Ticket) -> SessionCreated:
        """Open the session of a ticket that has a place; once, however many ask."""
        async with ticket.lock:
            if ticket.created is None:
                if ticket.slot is None:
                    raise _unknown(ticket.id)
                try:
                    ticket.created = await self._open(ticket.wish, ticket.slot)
                except BaseException:
                    self._tickets.pop(ticket.id, None)
                    raise
                ticket.slot = None
                ticket.seen_s = self._now()
            return ticket.created

    def give_up(self, id: str) -> None:
        """Leave the queue; the session of a ticket that was served is not touched.

        Raises:
            ApiError: `not_found`.
        """
        self._remove(self.find(id))

    def listen(self, id: str) -> Mailbox:
        """A client that hears `queue` events, then `opened` with the session, and is then let go.

        Raises:
            ApiError: as for `poll`.
        """
        ticket = self.find(id)
        mailbox = Mailbox(ticket.listeners.discard)

        async def refuse(message: messages.Inbound) -> None:
            raise ApiError("not_live", "The session is not open yet; wait for the message opened.")

        mailbox.inbox = Inbox(
            may_control=True,
            per_second=self._limits.messages_per_second,
            handle=refuse,
            answer=lambda kind, **fields: mailbox.put(json.dumps({"type": kind, **fields}, separators=(",", ":"))),
        )
        ticket.listeners.add(mailbox)
        if ticket.slot is None and ticket.created is None:
            self._tell(ticket)
        else:
            self._serve(ticket)
        return mailbox

    def find(self, id: str) -> Ticket:
        """The ticket of this name.

        Raises:
            ApiError: `not_found`, or `capacity` while the server leaves.
        """
        ticket = self._tickets.get(id)
        if ticket is None and self._admission.closed:
            raise ApiError("capacity", self._admission.closed, retry_after_s=30)
        if ticket is None:
            raise _unknown(id)
        return ticket

    def advance(self) -> None:
        """Give free places to those who wait, first come first served, and tell the others where they stand now."""
        for ticket in self._queue():
            slot = self._admission.take()
            if slot is None:
                break
            ticket.slot = slot
            ticket.seen_s = self._now()
            if ticket.listeners:
                self._serve(ticket)
        for position, ticket in enumerate(self._queue(), 1):
            if ticket.listeners and ticket.told != position:
                self._tell(ticket)

    def tick(self) -> None:
        """Forget tickets nobody asks for, and tell listeners the time; to be called about twice a second."""
        now = self._now()
        for ticket in list(self._tickets.values()):
            if ticket.listeners:
                ticket.seen_s = now
            served = ticket.created is not None and self._ended(ticket.created.id)
            if served or (now - ticket.seen_s > self._limits.ticket_s and not ticket.lock.locked()):
                self._remove(ticket)
        self.advance()
        if now - self._told_s >= TELL_EVERY_S:
            self._told_s = now
            for ticket in self._queue():
                self._tell(ticket)

    async def close(self) -> None:
        """Send everybody away; `Admission.close` has said why."""
        for ticket in list(self._tickets.values()):
            self._farewell(ticket, ApiError("capacity", self._admission.closed or "The server has ended."))
            self._remove(ticket)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _remove(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.id, None)
        for mailbox in list(ticket.listeners):
            mailbox.close()
        if ticket.lock.locked():
            return  # the place is the session's that is being opened
        slot, ticket.slot = ticket.slot, None
        if slot is not None:
            slot.release()
        else:
            self.advance()

    def _describe(self, ticket: Ticket) -> QueueTicket:
        """Position 0 has its place, and the next poll opens the session."""
        position = 0 if ticket.slot else self._queue().index(ticket) + 1
        eta_s = round(self._admission.eta_s(position), 1) if position else 0.0
        return QueueTicket(ticket=ticket.id, position=position, eta_s=eta_s, url=f"v1/queue/{ticket.id}")

    def _tell(self, ticket: Ticket) -> None:
        state = self._describe(ticket)
        ticket.told = state.position
        for mailbox in list(ticket.listeners):
            mailbox.answer("queue", position=state.position, eta_s=state.eta_s)

    def _serve(self, ticket: Ticket) -> None:
        task = asyncio.get_running_loop().create_task(self._open_for_listeners(ticket), name="open from the queue")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_for_listeners(self, ticket: Ticket) -> None:
        try:
            created = await self._claim(ticket)
        except ApiError as error:
            self._farewell(ticket, error)
            return
        except Exception:
            log.exception("a session could not be opened from the queue")
            self._farewell(ticket, ApiError("internal", "The session could not be opened; the server's log says why."))
            return
        for mailbox in list(ticket.listeners):
            mailbox.answer("opened", **created.model_dump())
            mailbox.close()

    def _farewell(self, ticket: Ticket, error: ApiError) -> None:
        for mailbox in list(ticket.listeners):
            mailbox.answer("error", code=error.code, message=error.detail)
            mailbox.close()


def _unknown(id: str) -> ApiError:
    return ApiError("not_found", f"There is no ticket {id[:40]!r}; it may have expired, ask for a session again.")

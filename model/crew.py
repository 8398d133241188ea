"""The leader's side of a plan: orders go to all ranks in one sequence, finished blocks come back.

The other ranks follow: each performs what it is told, in order (`follow`). Orders travel over plain pipes, tensors over
the group's links, so what comes next over a link is known before it comes. The leader decides which item is next
(`model.scheduler`) just before its own device is ready for it: ahead of the device where the plan's arithmetic says
that the item's latents will be back by then, else when they have really come.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.errors import LinkError
from model.mesh import Mesh
from model.orders import Answer, Begin, First, Forget, Halt, Joined, LookAt, Order, Seen, Shown, Start
from model.scheduler import Item, Scheduler
from model.stages import Stage

_MOMENT_S = 0.0005
_SETTLE_S = 0.02


class Peers:
    """Pipes to the other ranks, each with a thread that writes and one that reads.

    Args:
        pipes: to rank 1, 2 and so on.
    """

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes
        self._outboxes: list[queue.SimpleQueue[bytes | None]] = [queue.SimpleQueue() for _ in pipes]
        self.answers: queue.SimpleQueue[Answer | LinkError] = queue.SimpleQueue()
        self._threads = []
        for rank, (pipe, outbox) in enumerate(zip(pipes, self._outboxes, strict=True), 1):
            for target, name in ((self._write, "to"), (self._read, "from")):
                args = (rank, pipe, outbox)
                self._threads.append(
                    threading.Thread(target=target, args=args, name=f"{name} rank {rank}", daemon=True)
                )
                self._threads[-1].start()

    def send(self, order: Order) -> None:
        """To every rank; never waits."""
        if self._outboxes:
            data = bytes(ForkingPickler.dumps(order))
            for outbox in self._outboxes:
                outbox.put(data)

    def halt(self, limit_s: float = 5.0) -> None:
        """All other ranks leave; the pipes are free for another use then."""
        self.send(Halt())
        for outbox in self._outboxes:
            outbox.put(None)
        for thread in self._threads:
            thread.join(limit_s)

    def _write(self, rank: int, pipe: Connection, outbox: queue.SimpleQueue[bytes | None]) -> None:
        while (data := outbox.get()) is not None:
            try:
                pipe.send_bytes(data)
            except OSError:
                return  # the reader tells

    def _read(self, rank: int, pipe: Connection, outbox: queue.SimpleQueue[bytes | None]) -> None:
        while True:
            try:
                answer = pipe.recv()
                if isinstance(answer, Halt):
                    return
                self.answers.put(answer)
            except (EOFError, OSError):
                self.answers.put(LinkError(f"rank {rank} of the plan has ended; the group is started again"))
                return


@dataclass(slots=True)
class _Waiting:
    """A block that was not announced yet."""

    begin: Begin
    deadline_s: float
    needs_sink: bool
    """Whether it is the first to be conditioned on its stream's own first latent."""


class Crew:
    """All ranks of a plan as the leader sees them. Calls come from one thread.

    Args:
        mesh: the plan's.
        stage: the leader's own share; its answers go to `peers.answers`.
        peers: the other ranks.
        config: of the whole checkpoint.
    """

    def __init__(self, mesh: Mesh, stage: Stage, peers: Peers, config: ModelConfig) -> None:
        is_serial = config.stream.history == "clean"
        num_steps = len(config.sampler.sigmas) + is_serial
        self.leading = stage
        """The leader's own share."""
        self.depth = 2 if is_serial else mesh.plan.pipeline + 2
        """Blocks that may be under way: one a stage, one that waits, one that is decoded."""
        self._peers, self._limit = peers, stage.ways.limit
        stages = mesh.plan.pipeline if mesh.plan.kind == "layers" else 1
        self._scheduler = Scheduler(stages, num_steps, is_serial)
        self._returns: list[Item] = []
        self._since_s: dict[tuple[int, int], float] = {}
        self._shown: deque[Shown] = deque()
        self._seen: dict[int, Seen] = {}
        self._firsts: dict[int, First] = {}
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count(1)

    def wait_for_all(self) -> None:
        """Until every rank has loaded and joined.

        Raises:
            LinkError: one did not in time.
        """
        missing = set(range(1, self.leading.role.world))
        end_s = time.monotonic() + self._limit.seconds
        while missing:
            answer = self._answer(end_s, f"rank {min(missing)} of the plan did not start")
            assert isinstance(answer, Joined), answer
            missing.discard(answer.rank)

    @property
    def num_under_way(self) -> int:
        """Blocks that were submitted and not handed out yet."""
        return len(self._since_s)

    @property
    def oldest_s(self) -> float | None:
        """Monotonic time at which the oldest block under way was submitted; None: there is none."""
        return min(self._since_s.values(), default=None)

    def order(self, order: Order) -> None:
        """Tell all ranks, and do the leader's share."""
        self._peers.send(order)
        self.leading.perform(order)

    def look_at(self, picture: np.ndarray, past: np.ndarray | None = None) -> Seen:
        """What the decoding rank makes of a portrait, behind latents of its stream where there are some.

        Raises:
            LinkError: it does not answer.
        """
        number = next(self._numbers)
        self.order(LookAt(portrait=number, picture=picture, past=past))
        end_s = time.monotonic() + self._limit.seconds
        while number not in self._seen:
            self._sort(self._answer(end_s, "the decoding rank does not answer"))
        return self._seen.pop(number)

    def start(self, **values: Any) -> int:
        """Begin a stream; takes the fields of `Start` but its number, which it returns."""
        stream = next(self._numbers)
        self.order(Start(stream=stream, **values))
        return stream

    def forget(self, stream: int, unused: Sequence[int] = ()) -> list[int]:
        """End a stream. Its blocks under way are finished, those not announced yet are dropped.

        Args:
            stream: which.
            unused: portraits that were looked at for it and will not be shown.

        Returns:
            Blocks that were dropped.
        """
        dropped = [waiting for waiting in self._waiting if waiting.begin.stream == stream]
        for waiting in dropped:
            self._waiting.remove(waiting)
            del self._since_s[stream, waiting.begin.block]
        self.order(Forget(stream=stream, portraits=tuple(unused)))
        self._firsts.pop(stream, None)
        self._scheduler.forget(stream)
        return [waiting.begin.block for waiting in dropped]

    def begin_all(self, stream: int) -> None:
        """Bring all blocks of a stream on their way, so that what is ordered next concerns later ones only.

        Raises:
            LinkError: as `settle`.
        """
        while any(waiting.begin.stream == stream for waiting in self._waiting):
            self._move(_SETTLE_S)

    def settle(self, stream: int) -> None:
        """Bring all blocks of a stream to their end; what is finished meanwhile is handed out by `advance` as ever.

        Raises:
            LinkError: a rank does not answer, or has ended.
        """
        while True:
            shown = {(done.stream, done.block) for done in self._shown}
            if not any(key[0] == stream and key not in shown for key in self._since_s):
                return
            self._move(_SETTLE_S)

    def submit(self, begin: Begin, deadline_s: float = 0.0, needs_sink: bool = False) -> None:
        """Take a block; `advance` brings it on its way."""
        self._since_s[begin.stream, begin.block] = time.monotonic()
        self._waiting.append(_Waiting(begin, deadline_s, needs_sink))

    def advance(self, limit_s: float) -> Shown | None:
        """Do the next thing, or wait a moment for one.

        Args:
            limit_s: longest wait where there is nothing to do.

        Returns:
            A finished block, if one has come.

        Raises:
            LinkError: a rank does not answer, or has ended.
        """
        self._move(limit_s, for_shown=True)
        return self._hand_out()

    def _move(self, limit_s: float, for_shown: bool = False) -> None:
        """Take what was answered, begin what may begin, and do the next item, or wait a moment where there is none.

        Args:
            limit_s: longest wait.
            for_shown: do not wait where a finished block is there.
        """
        while not self._peers.answers.empty():
            self._sort(self._peers.answers.get())
        self._announce()
        for item in [item for item in self._returns if self.leading.relay.is_back(item)]:
            self._scheduler.returned(item)
            self._returns.remove(item)
        item = self._scheduler.take()
        if item is not None:
            self._issue(item)
        elif not (for_shown and self._shown):
            self._pause(limit_s)

    def halt(self) -> None:
        """All ranks leave."""
        self._peers.halt()
        self.leading.close()

    def first_of(self, stream: int) -> np.ndarray | None:
        """The first latent frame of the stream's latest finished block that was to keep it; given once."""
        first = self._firsts.pop(stream, None)
        return None if first is None else first.latent

    def _hand_out(self) -> Shown | None:
        if not self._shown:
            return None
        shown = self._shown.popleft()
        return replace(shown, submitted_s=self._since_s.pop((shown.stream, shown.block)))

    def _issue(self, item: Item) -> None:
        self._peers.send(item)
        self.leading.perform(item)
        if self.leading.relay.is_back(item):
            self._scheduler.returned(item)
        else:
            self._returns.append(item)

    def _announce(self) -> None:
        """Tell all ranks of blocks that can begin; one that waits for its stream's first latent holds up the stream."""
        held: set[int] = set()
        for waiting in list(self._waiting):
            begin = waiting.begin
            if waiting.needs_sink and begin.stream not in self._firsts:
                held.add(begin.stream)
            if begin.stream in held:
                continue
            if waiting.needs_sink:
                begin = replace(begin, sink=self._firsts.pop(begin.stream).latent)
            self._waiting.remove(waiting)
            self.order(begin)
            self._scheduler.add(begin.stream, begin.block, waiting.deadline_s)

    def _pause(self, limit_s: float) -> None:
        """Wait for an answer; for latents, which nobody announces, only a moment at a time."""
        with contextlib.suppress(queue.Empty):
            self._sort(self._peers.answers.get(timeout=min(limit_s, _MOMENT_S) if self._returns else limit_s))
        oldest_s = self.oldest_s
        if oldest_s is not None and time.monotonic() - oldest_s > self._limit.seconds:
            raise LinkError(f"a block was not finished within {self._limit.seconds:g} s; the group is started again")

    def _answer(self, end_s: float, what: str) -> Answer:
        try:
            answer = self._peers.answers.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            raise LinkError(f"{what} in time; see the log of its process, and start the group again") from None
        if isinstance(answer, LinkError):
            raise answer
        return answer

    def _sort(self, answer: Answer | LinkError) -> None:
        match answer:
            case LinkError():
                raise answer
            case Seen():
                self._seen[answer.portrait] = answer
            case First():
                self._firsts[answer.stream] = answer
            case Shown():
                self._shown.append(answer)


def follow(stage: Stage, pipe: Connection) -> None:
    """Perform what the leader orders until it says to leave, or is gone.

    Raises:
        LinkError: a neighbour does not answer.
    """
    while True:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            return
        if isinstance(order, Halt):
            stage.close()
            pipe.send(order)
            return
        stage.perform(order)

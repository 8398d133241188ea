"""Ways of tensors between the processes of a plan, over `torch.distributed`: gloo on processors, NCCL on GPUs.

Every way has one direction and a communicator of its own, made at the start, so that a receive that waits holds up
nothing else. Receives are posted before their tensors are needed, into two buffers in turn, and run on a stream of
their own beside the computation; so do sends. Nothing here is a collective. A receive has a time limit: on a processor
it ends the wait, on a GPU `Pace` does, which also keeps the host from running far ahead.

The ranks meet at a store whose port the system chooses; its number travels with the first message (`model.crew`).
"""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import LinkError
from model.mesh import Link, Mesh, Role
from model.sequence import Team

_HOST = "127.0.0.1"
_POLL_S = 0.0005
AHEAD = 2
"""Items that the host may have queued on a GPU beyond the one that runs."""
_CHANNELS = "4"
"""Of NCCL for one way: a receive that waits occupies this many of a GPU's cores, and 100 GB/s are enough."""


def open_store(world: int, limit_s: float, port: int = 0) -> dist.TCPStore:
    """The leader's meeting point; its `port` is what the others need.

    Raises:
        LinkError: the port is taken.
    """
    try:
        return dist.TCPStore(_HOST, port, world, True, timedelta(seconds=limit_s), wait_for_workers=False)
    except RuntimeError as error:
        raise LinkError(
            f"port {port} for the group of processes is in use; free it, or leave the choice to the system"
        ) from error


def find_store(port: int, world: int, limit_s: float) -> dist.TCPStore:
    """The meeting point that the leader has opened.

    Raises:
        LinkError: nobody is there.
    """
    try:
        return dist.TCPStore(_HOST, port, world, False, timedelta(seconds=limit_s))
    except RuntimeError as error:
        raise LinkError(f"the leading process is not at port {port} any more; start the group again") from error


def join(store: dist.Store, rank: int, world: int, device: torch.device, limit_s: float, few_cores: bool) -> None:
    """Make this process a member of the group.

    Args:
        store: where the ranks meet.
        rank, world: this one, and how many there are.
        device: where its tensors lie.
        limit_s: longest wait for the others, now and in every receive.
        few_cores: keep NCCL's transfers narrow; for plans without all-to-all.

    Raises:
        LinkError: not all ranks came, or they cannot reach each other.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        if few_cores:
            os.environ.setdefault("NCCL_MAX_P2P_NCHANNELS", _CHANNELS)
    elif os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with _as_link_error(f"the {world} processes of the plan could not be joined"):
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=limit_s),
        )


def leave() -> None:
    """Undo `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _as_link_error(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise LinkError(
            f"{what} ({first}); start it again, see avatarcast doctor and NCCL_DEBUG=INFO, or choose plan single"
        ) from error


@dataclass(slots=True)
class Limit:
    """Longest time that anything may take; generous while ranks load and compile, short afterwards."""

    seconds: float


class Outgoing:
    """This end of a way gives.

    Args:
        link: from here to where.
        group: of the two ranks.
        device: where tensors lie.
    """

    def __init__(self, link: Link, group: dist.ProcessGroup, device: torch.device) -> None:
        self._link, self._group = link, group
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: collections.deque[tuple[dist.Work, Tensor]] = collections.deque()

    def send(self, x: Tensor) -> None:
        """Give a tensor; it must not be written to afterwards."""
        x = x.contiguous()
        with _as_link_error(f"rank {self._link.target} takes no {self._link.kind} from rank {self._link.source}"):
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._under_way.append((dist.isend(x, self._link.target, group=self._group), x))
            while len(self._under_way) > AHEAD + 2:
                work, _ = self._under_way.popleft()
                work.wait()  # on a GPU it only orders streams


class Arrival:
    """A receive under way. gloo tells of its end only to who waits, so on a processor a thread does."""

    def __init__(self, buffer: Tensor, work: dist.Work, waiter: ThreadPoolExecutor | None, limit_s: float) -> None:
        self.buffer, self._work = buffer, work
        self._waited = None if waiter is None else waiter.submit(work.wait, timedelta(seconds=limit_s))

    def is_here(self) -> bool:
        """Whether the tensor has come."""
        return self._work.is_completed() if self._waited is None else self._waited.done()

    def wait(self) -> None:
        """On a GPU the current stream waits, on a processor the caller does."""
        if self._waited is None:
            self._work.wait()
        else:
            self._waited.result()


class Incoming:
    """This end of a way takes.

    Args:
        link: from where to here.
        group: of the two ranks.
        device: where tensors lie.
        limit: longest wait.
    """

    def __init__(self, link: Link, group: dist.ProcessGroup, device: torch.device, limit: Limit) -> None:
        self._link, self._group, self._device, self._limit = link, group, device, limit
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._waiter = None if is_cuda else ThreadPoolExecutor(1, f"{link.kind} from {link.source}")
        self._free: collections.deque[tuple[Tensor, torch.cuda.Event]] = collections.deque()
        self._taken: Tensor | None = None

    def post(self, shape: tuple[int, ...], dtype: torch.dtype) -> Arrival:
        """Make ready for one tensor; tensors come in the order in which they were given."""
        buffer = self._buffer(tuple(shape), dtype)
        with self._failing(), torch.cuda.stream(self._stream):
            work = dist.irecv(buffer, self._link.source, group=self._group)
        return Arrival(buffer, work, self._waiter, self._limit.seconds)

    def take(self, arrival: Arrival) -> Tensor:
        """The tensor, valid until the next is taken; on a GPU its stream waits, on a processor the caller.

        Raises:
            LinkError: it did not come in time, or the other end is gone.
        """
        if self._stream is not None and self._taken is not None:
            event = torch.cuda.Event()  # where the stream gets here, what was taken before has been read
            event.record()
            self._free.append((self._taken, event))
        self._taken = arrival.buffer
        with self._failing():
            arrival.wait()
        return arrival.buffer

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._stream is None:
            return torch.empty(shape, dtype=dtype)
        for entry in self._free:
            if entry[0].shape == shape:
                self._free.remove(entry)
                self._stream.wait_event(entry[1])
                return entry[0]
        buffer = torch.empty(shape, dtype=dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        return buffer

    def _failing(self) -> contextlib.AbstractContextManager[None]:
        return _as_link_error(f"rank {self._link.source} sent no {self._link.kind} to rank {self._link.target}")


class Ways:
    """All ways of one rank, and the team that it shares its stage with.

    Every rank of the group makes one for the same mesh at the same time, those without a role in it too.

    Args:
        mesh: the plan's.
        role: this rank's; None: it has none.
        device: where its tensors lie.
        limit: longest wait of a receive.

    Raises:
        LinkError: the ranks cannot reach each other.
    """

    def __init__(self, mesh: Mesh, role: Role | None, device: torch.device, limit: Limit) -> None:
        rank = None if role is None else role.rank
        self.limit = limit
        self.incoming: dict[str, Incoming] = {}
        self.outgoing: dict[str, Outgoing] = {}
        self.team: Team | None = None
        with _as_link_error("the processes of the plan cannot reach each other"):
            for link in mesh.links():
                group = dist.new_group([link.source, link.target])
                if rank == link.source:
                    self.outgoing[link.kind] = Outgoing(link, group, device)
                elif rank == link.target:
                    self.incoming[link.kind] = Incoming(link, group, device, limit)
                if rank in (link.source, link.target):
                    self._try(link, group, device, rank)
            for peers in mesh.teams():
                group = dist.new_group(list(peers))
                if rank in peers:
                    self.team = Team(group, len(peers), peers.index(rank))
                    self.team.gather(torch.zeros(1, device=device), 0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    @staticmethod
    def _try(link: Link, group: dist.ProcessGroup, device: torch.device, rank: int) -> None:
        """One number from end to end: NCCL makes a communicator at its first use, which both ends wait for."""
        one = torch.ones(1, device=device)
        if rank == link.source:
            dist.isend(one, link.target, group=group).wait()
        else:
            dist.irecv(one, link.source, group=group).wait()


class Pace:
    """Keeps the host at most `AHEAD` items before a GPU, and notices one that does not get on.

    Args:
        device: what works; a processor works along with its host, so there is nothing to wait for.
        limit: longest time that the oldest item may take.
    """

    def __init__(self, device: torch.device, limit: Limit) -> None:
        self._is_cuda, self._limit = device.type == "cuda", limit
        self._marks: collections.deque[torch.cuda.Event] = collections.deque()

    def wait(self) -> None:
        """Before an item is queued.

        Raises:
            LinkError: the GPU waits for something that does not come.
        """
        while len(self._marks) >= AHEAD:
            end_s = time.monotonic() + self._limit.seconds
            while not self._marks[0].query():
                if time.monotonic() > end_s:
                    raise LinkError(
                        f"a device has got no further for {self._limit.seconds:g} s because another sends it nothing; "
                        "the group is started again"
                    )
                time.sleep(_POLL_S)
            self._marks.popleft()

    def mark(self) -> None:
        """Behind an item that was queued."""
        if self._is_cuda:
            event = torch.cuda.Event()
            event.record()
            self._marks.append(event)

"""The only door to the model: submit blocks, receive pictures, survive the model's process.

The process is started, watched and restarted here. When it dies the state is `degraded` at once; it is started again
after a pause, every session is opened again at its own next block, behind the latents of its last ones, and results
resume. A reason that starting again
cannot mend (a missing checkpoint), or too many deaths in a row, ends in `failed`.

Everything runs on the event loop; the process's reader thread only hands reports over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from model import launch
from model.interface import (
    MOST_PAST_LATENTS,
    BlockRequest,
    ModelInfo,
    SessionInfo,
    SessionSpec,
    SessionUpdate,
    UpdateInfo,
)
from streaming.config import EngineConfig
from streaming.errors import EngineError, RefusedError
from streaming.life import Death, Life

log = logging.getLogger(__name__)

EngineState = Literal["stopped", "starting", "ready", "degraded", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDone:
    """A block's pictures have come."""

    block: int
    epoch: int
    frames: np.ndarray
    """[frames_per_block, height, width, 3] uint8, read-only, valid until `release` is called."""
    release: Callable[[], None]
    """Call once when the frames are not needed any more."""
    started_s: float
    """Monotonic time at which the model began the block."""
    finished_s: float
    """Monotonic time at which it had it."""
    stage_s: Mapping[str, float]
    """Seconds by stage: audio, dit, vae."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSkipped:
    """A block will not come."""

    block: int
    epoch: int
    reason: launch.SkipReason
    message: str
    """What the model said, when it failed."""


class EngineClient(Protocol):
    """What the engine calls on a session, always on the loop."""

    def next_block(self) -> int:
        """The block that will be submitted next; a restarted model goes on there."""
        ...

    def block_done(self, done: BlockDone) -> None: ...

    def block_skipped(self, skipped: BlockSkipped) -> None: ...

    def updated(self, info: UpdateInfo) -> None:
        """A change was prepared; the first block of at least its number shows it."""
        ...

    def update_refused(self, block: int, parts: tuple[str, ...], reason: str) -> None:
        """A change could not be made."""
        ...

    def session_lost(self, reason: str) -> None:
        """The restarted model refused the session."""
        ...


class EnginePort(Protocol):
    """What a session needs of an engine; `Engine` in production, in-process stand-ins in tests."""

    failure: str

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> ModelInfo | None: ...

    def listen(self, listener: Callable[[EngineState], None]) -> Callable[[], None]: ...

    async def ready(self) -> ModelInfo: ...

    async def open_session(self, spec: SessionSpec, client: EngineClient) -> SessionInfo: ...

    def claim_phase(self, session: str, earliest_s: float) -> float: ...

    def submit(self, request: BlockRequest) -> bool: ...

    def update(self, update: SessionUpdate) -> None: ...

    def interrupt(self, session: str, epoch: int) -> None: ...

    async def close_session(self, session: str) -> None: ...


@dataclass(slots=True)
class _Tenant:
    """An open session, with what is needed to open it again."""

    spec: SessionSpec
    client: EngineClient
    opened: asyncio.Future[SessionInfo]
    is_open: bool = False
    pending: set[tuple[int, int]] = field(default_factory=set)
    """(block, epoch) of requests that were not answered yet."""
    updates: list[SessionUpdate] = field(default_factory=list)
    """Changes asked for while it was being opened."""
    past: list[np.ndarray] = field(default_factory=list)
    """Latents of the last blocks, [z, frames, rows, columns] each, from which it goes on after a restart."""
    awaits_image: bool = False
    """Whether another portrait was asked for and is not shown yet; what comes until then is not gone on from."""

    def remember(self, report: launch.Done) -> None:
        """Keep a block's latents, as far as a model looks back."""
        if "image" in report.applied:
            self.awaits_image = False
        if report.latents is None or self.awaits_image:
            return
        self.past.append(report.latents)
        while sum(block.shape[1] for block in self.past[1:]) >= MOST_PAST_LATENTS:
            del self.past[0]


class Engine:
    """Owner of the model's process.

    Args:
        spec: plain values for `launch.WorkerProcess`: `kind`, `threads`, and what that kind takes.
        config: times and bounds.
    """

    def __init__(self, spec: Mapping[str, Any], config: EngineConfig | None = None) -> None:
        self.restarts = 0
        """How often the process was started again."""
        self.failure = ""
        """Why the last process ended, one sentence."""
        self._config = config or EngineConfig()
        self._spec = {"slots": self._config.frame_slots, **spec}
        self._state: EngineState = "stopped"
        self._info: ModelInfo | None = None
        self._listeners: dict[object, Callable[[EngineState], None]] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._phases_s: dict[str, float] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # ready or failed
        self._life: Life | None = None

    # Life

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> ModelInfo | None:
        """What the model is; None until it was ready once."""
        return self._info

    @property
    def pid(self) -> int | None:
        """Process id of the model, for measuring."""
        return self._life.process.pid if self._life else None

    @property
    def pids(self) -> list[int]:
        """Process ids of all ranks of the model, the first being `pid`."""
        return [pid for pid in self._life.process.pids if pid is not None] if self._life else []

    def listen(self, listener: Callable[[EngineState], None]) -> Callable[[], None]:
        """Call `listener` at every change of state; the returned function ends that."""
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    async def start(self) -> None:
        """Begin to start the process; `ready` waits for it."""
        assert self._supervisor is None, "an engine starts once"
        self._set_state("starting")
        self._supervisor = asyncio.create_task(self._supervise(), name="engine")

    async def ready(self) -> ModelInfo:
        """Wait until the model can take sessions.

        Raises:
            EngineError: it has failed; the text is the model's own reason.
        """
        while self._state != "ready":
            if self._state in ("failed", "stopped"):
                raise EngineError(self.failure or "the engine is stopped; start the server again")
            self._settled.clear()
            await self._settled.wait()
        assert self._info is not None
        return self._info

    async def stop(self) -> None:
        """End the process: in peace if it leaves in time, else by force. Blocks under way are lost."""
        if self._supervisor is None:
            return
        self._set_state("stopped")
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        for tenant in self._tenants.values():
            if not tenant.opened.done():
                tenant.opened.set_exception(EngineError("the engine is stopped; start the server again"))
                tenant.opened.exception()  # retrieved: whoever waits raises it again
        self._tenants.clear()

    # Sessions

    async def open_session(self, spec: SessionSpec, client: EngineClient) -> SessionInfo:
        """Open a session, waiting for the model if it is still starting.

        Raises:
            RefusedError: the model does not take this portrait or prompt.
            EngineError: the engine has failed.
        """
        assert spec.session not in self._tenants, f"session {spec.session} is open already"
        await self.ready()
        tenant = _Tenant(spec, client, asyncio.get_running_loop().create_future())
        self._tenants[spec.session] = tenant
        self._send(launch.Open(spec))
        try:
            return await asyncio.shield(tenant.opened)
        except BaseException:
            tenant.opened.cancel()
            await self.close_session(spec.session)
            raise

    def claim_phase(self, session: str, earliest_s: float) -> float:
        """Choose when a session's blocks fall due, as far as possible from those of the others.

        Returns:
            A time from `earliest_s` on, less than a block later.
        """
        assert self._info is not None
        period_s = self._info.geometry.block_s
        start_s = spread(earliest_s, list(self._phases_s.values()), period_s)
        self._phases_s[session] = start_s
        return start_s

    def submit(self, request: BlockRequest) -> bool:
        """Ask for a block; the session's client gets one answer, unless an interrupt or a death comes before it.

        Returns:
            False, and then no answer comes, if the model is not there or the session has too many blocks under way.
        """
        tenant = self._tenants.get(request.session)
        if tenant is None or not tenant.is_open or len(tenant.pending) >= self._config.max_pending_blocks:
            return False
        tenant.pending.add((request.block, request.epoch))
        self._send(launch.Step(request))
        return True

    def update(self, update: SessionUpdate) -> None:
        """Change a session's prompt or portrait from `update.block` on."""
        tenant = self._tenants.get(update.session)
        if tenant is None:
            return
        changes = {name: value for name in ("prompt", "image") if (value := getattr(update, name)) is not None}
        tenant.spec = replace(tenant.spec, **changes)
        if update.image is not None:
            tenant.past.clear()
            tenant.awaits_image = True
        if tenant.is_open:
            self._send(launch.Update(update))
        else:
            tenant.updates.append(update)

    def interrupt(self, session: str, epoch: int) -> None:
        """Blocks of an older epoch are not wanted any more, and are not answered."""
        tenant = self._tenants.get(session)
        if tenant is not None:
            tenant.pending = {(block, of) for block, of in tenant.pending if of >= epoch}
            self._send(launch.Interrupt(session, epoch))

    async def close_session(self, session: str) -> None:
        """Forget a session; unknown names are ignored."""
        self._phases_s.pop(session, None)
        if self._tenants.pop(session, None) is not None:
            self._send(launch.Close(session))

    # Supervision

    async def _supervise(self) -> None:
        """Keep a process running; whatever goes wrong here ends in `failed`, so that nobody waits for ever."""
        try:
            await self._keep_running()
        except Exception as error:
            log.exception("the engine cannot be kept running")
            reason = f"the model's process could not be started: {type(error).__name__}: {error}"
            self._mourn(Death(reason=reason, is_final=True, lived_s=0.0), is_last=True)

    async def _keep_running(self) -> None:
        """Start the process again and again, until it cannot be helped."""
        delays = list(self._config.restart_delays_s)
        while True:
            life = self._life = Life(self._spec, self._config, self._receive)
            try:
                death = await life.run()
                self._life = None
                if death.lived_s >= self._config.healthy_s:
                    delays = list(self._config.restart_delays_s)
                self._mourn(death, is_last=death.is_final or not delays)
            finally:
                self._life = None
                await finish(life.end(self._config.stop_timeout_s))
            if self._state == "failed":
                return
            await asyncio.sleep(delays.pop(0))
            self.restarts += 1

    def _mourn(self, death: Death, *, is_last: bool) -> None:
        """The process has ended: say so at once, and forget what it was asked."""
        self.failure = death.reason
        log.error("engine: %s", death.reason)
        for tenant in self._tenants.values():
            tenant.is_open = False
            tenant.pending.clear()
            if is_last and not tenant.opened.done():
                tenant.opened.set_exception(EngineError(self.failure))
        if is_last:
            self._set_state("failed")
        else:
            self._set_state("degraded" if self._info else "starting")

    def _set_state(self, state: EngineState) -> None:
        if state == self._state:
            return
        log.info("engine: %s", state)
        self._state = state
        if state in ("ready", "failed", "stopped"):
            self._settled.set()
        for listener in list(self._listeners.values()):
            listener(state)

    def _send(self, command: launch.Command) -> None:
        if self._life is not None:
            self._life.process.send(command)

    # Reports of the process

    def _receive(self, report: launch.Report) -> None:
        match report:
            case launch.Ready(info):
                self._info = info
                self._reopen()
            case launch.Opened(info):
                self._opened(info)
            case launch.Refused(session, reason):
                self._refused(session, reason)
            case launch.Updated(info):
                if (tenant := self._tenants.get(info.session)) is not None:
                    tenant.client.updated(info)
            case launch.Unchanged():
                if (tenant := self._tenants.get(report.session)) is not None:
                    tenant.awaits_image &= "image" not in report.parts
                    tenant.client.update_refused(report.block, report.parts, report.reason)
            case launch.Done():
                self._done(report)
            case launch.Skipped():
                tenant = self._answered(report)
                if tenant is not None:
                    tenant.client.block_skipped(
                        BlockSkipped(
                            block=report.block, epoch=report.epoch, reason=report.reason, message=report.message
                        )
                    )

    def _reopen(self) -> None:
        """The process is ready: bring back the sessions that were open when the last one died."""
        for tenant in self._tenants.values():
            past = np.concatenate(tenant.past, 1)[:, -MOST_PAST_LATENTS:] if tenant.past else None
            tenant.spec = replace(tenant.spec, first_block=tenant.client.next_block(), past=past)
            tenant.awaits_image = False
            tenant.updates.clear()  # they are in the spec
            self._send(launch.Open(tenant.spec))
        self._ready_when_open()

    def _ready_when_open(self) -> None:
        if self._state in ("starting", "degraded") and all(tenant.is_open for tenant in self._tenants.values()):
            self._set_state("ready")

    def _opened(self, info: SessionInfo) -> None:
        tenant = self._tenants.get(info.session)
        if tenant is None:
            return
        tenant.is_open = True
        for update in tenant.updates:
            self._send(launch.Update(update))
        tenant.updates.clear()
        if not tenant.opened.done():
            tenant.opened.set_result(info)
        self._ready_when_open()

    def _refused(self, session: str, reason: str) -> None:
        tenant = self._tenants.pop(session, None)
        if tenant is None:
            return
        if tenant.opened.done():
            tenant.client.session_lost(reason)
        else:
            tenant.opened.set_exception(RefusedError(reason))
        self._ready_when_open()

    def _done(self, report: launch.Done) -> None:
        frames, release = self._pictures(report.slot)
        tenant = self._answered(report)
        if tenant is None:
            release()
            return
        tenant.remember(report)
        tenant.client.block_done(
            BlockDone(
                block=report.block,
                epoch=report.epoch,
                frames=frames,
                release=release,
                started_s=report.started_s,
                finished_s=report.finished_s,
                stage_s=report.stage_s,
            )
        )

    def _pictures(self, slot: int) -> tuple[np.ndarray, Callable[[], None]]:
        """What lies in a slot, and its release."""
        assert self._life is not None and self._life.ring is not None
        return self._life.ring.read(slot)

    def _answered(self, report: launch.Done | launch.Skipped) -> _Tenant | None:
        tenant = self._tenants.get(report.session)
        if tenant is None or (report.block, report.epoch) not in tenant.pending:
            return None
        tenant.pending.discard((report.block, report.epoch))
        return tenant


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await work to its end even if that is cancelled meanwhile; the cancellation then goes on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def spread(earliest_s: float, others_s: list[float], period_s: float) -> float:
    """The time in [earliest, earliest + period) whose phase is farthest from those of the others."""
    if not others_s:
        return earliest_s
    phases = sorted(other % period_s for other in others_s)
    gaps = [(b - a, a) for a, b in zip(phases, [*phases[1:], phases[0] + period_s], strict=True)]
    widest, begins = max(gaps)
    return earliest_s + (begins + widest / 2 - earliest_s) % period_s

"""Everything that lives as long as the server: the engine, the sessions, their slots, and the way out.

Routes call the hub; the hub knows no HTTP. Opening a session takes a slot first and gives it back in one place,
whatever fails after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from importlib import metadata

import numpy as np
import psutil
from aiortc import RTCIceServer
from starlette.requests import HTTPConnection

from model.errors import PortraitError
from model.gpus import memory_used
from model.interface import ModelInfo
from model.portrait import decode_image, fit_portrait
from server.admission import Admission, Load, Slot
from server.auth import Authority, Role, Tokens
from server.config import Config, Secrets
from server.encoder import measure_encode_s
from server.errors import ApiError
from server.live import LiveSession, Surroundings
from server.metrics import LoopLag, Metrics
from server.pages import Gallery
from server.planning import plan_to_run
from server.preview import preview_stream
from server.rates import Rates
from server.schemas import Capacity, NewSession, Planned, QueueTicket, SessionChange, SessionCreated
from server.speech import make_provider
from server.waiting import WaitingRoom, Wish
from streaming.clock import Clock, RealClock
from streaming.engine import Engine, EngineState
from streaming.errors import EngineError

log = logging.getLogger(__name__)

CARDS_S = 10.0
"""How often the cards' memory is asked for."""
REAP_S = 0.5
"""How often idle sessions are looked for."""


class Hub:
    """One server's state.

    Args:
        config: the whole configuration; its sections go to the parts they are named for.
        known: secrets of the environment.
        clock: the clock that sessions run on.

    Raises:
        StartError: credentials are needed and missing, or the model does not fit the cards.
        CheckpointError: the checkpoint is missing or broken.
    """

    def __init__(self, config: Config, known: Secrets | None = None, *, clock: Clock | None = None) -> None:
        known = known or Secrets()
        self.config = config
        self.version = metadata.version("avatarcast")
        self.metrics = Metrics()
        self.rates = Rates(config.limits)
        self.authority = Authority(config.server, config.auth, known, rates=self.rates)
        plan, room = plan_to_run(config.model, config.parallel)
        self.admission = Admission(config.limits, room)
        self.waiting = WaitingRoom(
            config.limits,
            self.admission,
            open=self._open_waiting,
            ended=lambda id: id not in self._sessions,
        )
        self.gallery = Gallery()
        self.engine = Engine(config.model.launch_spec(config.server.log_level, plan), config.streaming.engine)
        self.lag = LoopLag(self.metrics)
        self.preview = preview_stream(config.model)
        self.start_error: str | None = None
        """Why the engine could not start at all; one sentence."""
        self._ice_credential = known.ice_credential
        self.ice_servers = self._ice_servers()
        """STUN and TURN for the server's own connections."""
        self._sessions: dict[str, LiveSession] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._started = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self._leaving = False
        self._seen_restarts = 0
        self._around = Surroundings(
            config=config,
            version=self.version,
            engine=self.engine,
            clock=clock or RealClock(),
            metrics=self.metrics,
            preview=self.preview,
            ice_servers=self.ice_servers,
            picture_of=lambda avatar: self._portrait(avatar, None),
            speech=make_provider(config.speech, known.speech_key),
            agent_key=known.agent_key,
            on_block=self.admission.observe_block,
        )

    # Life

    async def start(self) -> None:
        """Begin: the engine starts in its own process while the server already answers."""
        self.engine.listen(self._engine_changed)
        await self.engine.start()
        for work, name in (
            (self._wait_for_engine, "engine start"),
            (self.lag.run, "loop lag"),
            (self._reap, "reaper"),
            (self._watch_cards, "memory of cards"),
        ):
            self._tasks.append(asyncio.create_task(work(), name=name))

    async def stop(self) -> None:
        """End every session, then the engine."""
        self.admission.close("The server is shutting down; try again in half a minute.")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.waiting.close()
        await asyncio.gather(*(self.close_session(s, "the server has ended") for s in self.sessions()))
        await self.engine.stop()

    async def wait_started(self) -> None:
        """Wait until a session can start, or until it is known that none can (`start_error`)."""
        await self._started.wait()

    async def drain(self, deadline_s: float) -> None:
        """Refuse new sessions, tell live ones how long they have, wait for them, then end them."""
        self._leaving = True
        self.admission.close("The server is shutting down; try again in half a minute.")
        log.info("leaving: %d sessions have %.0f s", len(self._sessions), deadline_s)
        await self.waiting.close()
        for session in self.sessions():
            session.announce_closing(deadline_s)
        ended = asyncio.create_task(self._empty.wait(), name="sessions ended")
        hurried = asyncio.create_task(self._hurry.wait(), name="hurry")
        await asyncio.wait({ended, hurried}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, hurried):
            task.cancel()
        await asyncio.gather(ended, hurried, return_exceptions=True)
        await asyncio.gather(*(self.close_session(s, "the server has ended") for s in self.sessions()))

    def hurry(self) -> None:
        """Cut a drain short."""
        self._hurry.set()

    async def _wait_for_engine(self) -> None:
        try:
            info = await self.engine.ready()
        except EngineError as error:
            self.start_error = str(error)
            self._started.set()
            return
        await self._measure(info)
        log.info("engine %s: %.0f ms a block of %.0f ms", info.name, 1000 * info.block_s, info.geometry.block_ms)
        self._started.set()

    async def _measure(self, info: ModelInfo) -> None:
        """Tell admission what a session costs here."""
        geometry = info.geometry
        encode_s = await asyncio.to_thread(
            measure_encode_s,
            width=geometry.width,
            height=geometry.height,
            fps=geometry.fps,
            config=self.config.encode,
            pictures=geometry.frames_per_block,
        )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        block_s = info.interval_s or info.block_s
        self.admission.measured(
            Load(
                block_s=block_s,
                encode_s=encode_s,
                period_s=geometry.block_s,
                cores=cores,
                overlap=max(1.0, info.block_s / block_s) if block_s else 1.0,
            )
        )

    def _engine_changed(self, state: EngineState) -> None:
        new = self.engine.restarts - self._seen_restarts
        if new > 0:
            self.metrics.engine_restarts.inc(new)
            self._seen_restarts = self.engine.restarts

    async def _reap(self) -> None:
        """End sessions that nobody speaks to or watches, and tickets that nobody asks for."""
        while True:
            await asyncio.sleep(REAP_S)
            self.waiting.tick()
            for session in self.sessions():
                if session.idle_s > self.config.limits.idle_s:
                    await self.close_session(session, "idle")

    async def _watch_cards(self) -> None:
        """Keep the figures of the cards' memory; ends at once where there are none or the model uses none."""
        while self.config.model.device != "cpu" and (used := await asyncio.to_thread(memory_used)):
            for device, amount in used.items():
                self.metrics.gpu_memory.labels(device).set(amount)
            await asyncio.sleep(CARDS_S)

    # Sessions

    def sessions(self) -> list[LiveSession]:
        """All live sessions."""
        return list(self._sessions.values())

    def find(self, id: str) -> LiveSession | None:
        """The session of this id, if it lives."""
        return self._sessions.get(id)

    async def open_session(self, wanted: NewSession, image: bytes | None, *, client: str) -> LiveSession:
        """Open a session.

        Args:
            wanted: what the client asked for.
            image: the bytes of its own portrait; the gallery's otherwise.
            client: its address, for the rate limit.

        Raises:
            ApiError: `capacity`, `rate_limited`, `not_found` (avatar), `unsupported_media` (portrait), `engine_down`.
        """
        slot = self._enter(wanted, client)
        if slot is None:
            raise self.admission.refusal()
        return await self._fill(slot, wanted, image)

    async def open_or_queue(
        self, wanted: NewSession, image: bytes | None, *, client: str
    ) -> SessionCreated | QueueTicket:
        """Open a session, or draw a ticket when every place is taken.

        Raises:
            ApiError: as for `open_session`; `capacity` only when the queue is full too.
        """
        slot = self._enter(wanted, client)
        if slot is not None:
            return (await self._fill(slot, wanted, image)).created()
        self.waiting.check_room()
        wish = await self._wish(wanted, image)
        geometry = self.preview.geometry
        small = fit_portrait(wish.portrait, geometry.width, geometry.height)
        return self.waiting.join(Wish(wanted=wanted, avatar=wish.avatar, portrait=small))

    def _enter(self, wanted: NewSession, client: str) -> Slot | None:
        """A slot; None when there is none, or others wait for one."""
        if wanted.mode == "agent" and not self.config.agent.url:
            raise ApiError("bad_request", "mode is agent, but no endpoint is configured; set agent.url, or use push.")
        if self.engine.state == "failed":
            raise ApiError("engine_down", f"The engine has failed: {self.engine.failure}", retry_after_s=30)
        self.admission.enter(client)
        return None if self.waiting.length else self.admission.take()

    async def _wish(self, wanted: NewSession, image: bytes | None) -> Wish:
        avatar = wanted.avatar if image is None else None
        if image is None and avatar is None:
            avatar = self.gallery.default()
        return Wish(wanted=wanted, avatar=avatar, portrait=await self._portrait(avatar, image))

    async def _fill(self, slot: Slot, wanted: NewSession, image: bytes | None) -> LiveSession:
        try:
            wish = await self._wish(wanted, image)
        except BaseException:
            slot.release()
            raise
        return await self._open(wish, slot)

    async def _open_waiting(self, wish: Wish, slot: Slot) -> SessionCreated:
        return (await self._open(wish, slot)).created()

    async def _open(self, wish: Wish, slot: Slot) -> LiveSession:
        """Open a session in a slot, which is given back if that fails."""
        resume = wish.wanted.resume
        try:
            if resume is not None and resume.id in self._sessions:
                raise ApiError("conflict", "resume names a session that still lives; send an offer to it instead.")
            session = LiveSession(
                id=resume.id if resume else secrets.token_urlsafe(12),
                wanted=wish.wanted,
                avatar=wish.avatar,
                portrait=wish.portrait,
                tokens=self.authority.issue(resume.token, resume.view_token) if resume else self.authority.issue(),
                around=self._around,
                release=slot.release,
            )
            self._sessions[session.id] = session
            self._empty.clear()
            await session.start()
        except BaseException:
            slot.release()
            raise
        log.info("session %s opened, %d live", session.id, len(self._sessions))
        return session

    async def change_session(self, session: LiveSession, change: SessionChange, image: bytes | None) -> Planned:
        """Plan a change of prompt or portrait.

        Raises:
            ApiError: as for `open_session`; `bad_request` when nothing is asked for.
        """
        portrait: np.ndarray | None = None
        if image is not None or change.avatar is not None:
            portrait = await self._portrait(change.avatar, image)
        if portrait is None and change.prompt is None and change.idle_prompt is None:
            raise ApiError("bad_request", "Nothing is to change; send prompt, idle_prompt, avatar or image.")
        return session.change(
            prompt=change.prompt,
            idle_prompt=change.idle_prompt,
            avatar=change.avatar if image is None else None,
            portrait=portrait,
        )

    async def close_session(self, session: LiveSession, reason: str) -> None:
        """End a session and free its slot; once, whoever asks."""
        if self._sessions.pop(session.id, None) is None:
            return
        if not self._sessions:
            self._empty.set()
        log.info("session %s ended (%s) after %.0f s", session.id, reason, session.age_s)
        await session.close(reason)

    async def _portrait(self, avatar: str | None, image: bytes | None) -> np.ndarray:
        """The picture as RGB, decoded off the loop."""
        if image is not None and avatar is not None:
            raise ApiError("bad_request", "Both avatar and image were sent; send one.")
        data = image if image is not None else self.gallery.picture(avatar or self.gallery.default())
        try:
            return await asyncio.to_thread(decode_image, data)
        except PortraitError as error:
            text = str(error)
            raise ApiError("unsupported_media", f"{text[:1].upper()}{text[1:]}.") from error

    # Operations

    def unready_reason(self) -> str | None:
        """Why no session can start now; None if one can."""
        if self._leaving:
            return "The server is shutting down."
        if self.start_error:
            return f"The engine has failed: {self.start_error}"
        if not self._started.is_set():
            return "The engine is starting."
        if self.engine.state != "ready":
            return f"The engine is {self.engine.state}: {self.engine.failure}".rstrip(": ")
        return None

    def health(self) -> dict[str, object]:
        """What `/healthz` says."""
        info = self.engine.info
        return {
            "status": "ok",
            "version": self.version,
            "engine": {
                "state": self.engine.state,
                "restarts": self.engine.restarts,
                "name": info.name if info else None,
                "profile": info.profile if info else None,
            },
            "sessions": len(self._sessions),
            "loop_lag_p99_ms": round(1000 * self.lag.p99_s(), 2),
        }

    def capacity(self) -> Capacity:
        """What `/v1/capacity` says."""
        return Capacity(
            sessions=self.admission.taken,
            max_sessions=self.admission.max_sessions,
            rtf_p95=round(self.admission.rtf_p95, 3),
            queue=self.waiting.length,
        )

    def refresh_metrics(self) -> None:
        """Bring the gauges up to date."""
        drifts = [session.av_drift_s for session in self.sessions()]
        self.metrics.sessions.set(len(self._sessions))
        self.metrics.bitrate.set(min((session.bitrate_kbps for session in self.sessions()), default=0))
        self.metrics.tickets.set(self.waiting.length)
        self.metrics.rtf.set(self.admission.rtf_p95)
        self.metrics.av_drift.set(max(drifts, key=abs, default=0.0))
        for session in self.sessions():
            session.refresh_metrics()

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory: of this process, and of all the model's."""
        found = {"server": psutil.Process().memory_info().rss}
        with contextlib.suppress(psutil.Error):
            ranks = [psutil.Process(pid).memory_info().rss for pid in self.engine.pids]
            if ranks:
                found["model"] = sum(ranks)
        return found

    def demand_any(self, connection: HTTPConnection) -> None:
        """Let in the admin and whoever holds a token of any live session.

        Raises:
            ApiError: `unauthorized`.
        """
        known: list[Tokens | None] = [session.tokens for session in self.sessions()]
        if all(self.authority.role(connection, tokens) == Role.NOBODY for tokens in known or [None]):
            self.authority.demand(connection, Role.VIEW)

    def count_request(self, connection: HTTPConnection) -> None:
        """Count a request that changes something, for the client that sent it.

        Raises:
            ApiError: `rate_limited`.
        """
        self.rates.request(connection, is_admin=self.authority.shows_key(connection))

    def session_for(self, connection: HTTPConnection, id: str, least: Role) -> tuple[LiveSession, Role]:
        """The session and what this client may do to it; strangers do not learn which sessions exist.

        Raises:
            ApiError: `unauthorized`, `forbidden`, `not_found`.
        """
        session = self.find(id)
        role = self.authority.demand(connection, least, session.tokens if session else None)
        if session is None:
            raise ApiError("not_found", f"There is no session {id[:40]!r}; it may have ended.")
        return session, role

    def ice_servers_for_clients(self) -> list[dict[str, object]]:
        """What a browser passes to RTCPeerConnection."""
        found: list[dict[str, object]] = []
        for server in self.config.ice.servers:
            entry: dict[str, object] = {"urls": list(server.urls)}
            if server.username is not None:
                entry |= {"username": server.username, "credential": self._ice_credential or ""}
            found.append(entry)
        return found

    def _ice_servers(self) -> list[RTCIceServer]:
        return [
            RTCIceServer(
                urls=list(server.urls),
                username=server.username,
                credential=self._ice_credential if server.username else None,
            )
            for server in self.config.ice.servers
        ]

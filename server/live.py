"""One live session as the server sees it: the conversation (`streaming.session`), its encoder, broadcast and peers.

Every door is a thin adapter to the same session: the speaker's and the viewers' peer connections, the data channel and
the events WebSocket. Whatever the session reports goes to all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from aiortc import RTCIceCandidate, RTCIceServer
from av import AudioFrame

from model.interface import SessionSpec
from model.portrait import fit_portrait
from server import messages
from server.agent import Agent
from server.auth import Role, Tokens
from server.bitrate import BitrateControl
from server.config import Config
from server.encoder import SessionEncoder
from server.errors import ApiError
from server.mailbox import Inbox, Mailbox
from server.metrics import Metrics
from server.peer import Peer, PeerHandlers
from server.preview import Preview
from server.schemas import Media, NewSession, Planned, SessionCreated, Urls
from server.session_metrics import SessionMetrics
from server.signaling import Offer
from server.speaker import Speaker
from server.speech import SpeechProvider
from server.tracks import AudioTrack, Broadcast, VideoTrack
from streaming.clock import Clock
from streaming.engine import Engine
from streaming.errors import StreamingError
from streaming.events import Event, PlaybackReport
from streaming.session import Session

if TYPE_CHECKING:
    from server.outputs import Output
    from server.whip_push import WhipOutput

log = logging.getLogger(__name__)

Part = Literal["speaker", "publisher", "viewer"]
"""A page that speaks and watches; a WHIP client that only speaks; a page or WHEP client that only watches."""
RATES_HZ = (16_000, 24_000, 48_000)
FAREWELL_S = 0.05
"""Time for the last message to leave before a connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every session of a server shares."""

    config: Config
    version: str
    engine: Engine
    clock: Clock
    metrics: Metrics
    preview: Preview
    ice_servers: list[RTCIceServer]
    picture_of: Callable[[str], Any]
    """Awaitable RGB picture of a gallery portrait; raises ApiError."""
    speech: SpeechProvider
    """Makes the sound of `say`."""
    agent_key: str | None
    """Bearer of the endpoint that answers in `mode: agent`."""
    on_block: Callable[[float], None]
    """Told the seconds of work of every block."""


class LiveSession:
    """One session. Made by `open`; `close` ends it and frees its slot.

    Args:
        id: unguessable name.
        wanted: what the client asked for.
        avatar: name of the gallery portrait; None for a picture of the client's own.
        portrait: [h, w, 3] uint8 RGB, any size.
        tokens: its credentials.
        around: what all sessions share.
        release: frees the slot; called once.
    """

    def __init__(
        self,
        *,
        id: str,
        wanted: NewSession,
        avatar: str | None,
        portrait: np.ndarray,
        tokens: Tokens,
        around: Surroundings,
        release: Callable[[], None],
    ) -> None:
        geometry = around.preview.geometry
        self.id = id
        self.tokens = tokens
        self.avatar = avatar
        self.prompt = wanted.prompt
        self.mode = wanted.mode
        self._around = around
        self._release = release
        self._opened = datetime.now(UTC)
        self._opened_s = self._idle_since_s = time.monotonic()
        fitted = fit_portrait(portrait, geometry.width, geometry.height)
        self.session = Session(
            SessionSpec(session=id, image=fitted, prompt=wanted.prompt, seed=wanted.seed),
            engine=around.engine,
            config=around.config.streaming,
            clock=around.clock,
            fps=geometry.fps,
            mode="echo" if wanted.mode == "echo" else "push",
            push_buffer_s=around.config.limits.push_buffer_s,
        )
        self.speaker = Speaker(self.session, around.speech)
        self.figures = SessionMetrics(around.metrics, self.session, around.on_block)
        self._encoder = SessionEncoder(
            width=geometry.width,
            height=geometry.height,
            fps=geometry.fps,
            config=around.config.encode,
            name=id[:6],
            on_encoded=self.figures.encoded,
            on_keyframe_request=around.metrics.keyframe_requests.inc,
        )
        self.broadcast = Broadcast(
            self.session.playout,
            self._encoder,
            around.clock,
            send_delay_s=self._send_delay_s,
            on_picture=self.figures.picture_left,
        )
        encode = around.config.encode
        self._bitrate = BitrateControl(most_kbps=encode.bitrate_kbps, least_kbps=encode.min_bitrate_kbps)
        self._doors = 0
        self._agent: asyncio.Task[None] | None = None
        self._speaker: Peer | None = None
        self._publisher: Peer | None = None
        self._viewers: list[Peer] = []
        self._channels: dict[Peer, Inbox] = {}
        self._mailboxes: set[Mailbox] = set()
        self.outputs: dict[str, Output | WhipOutput] = {}
        """Pushes and recordings, by id; `server.outputs` fills it."""
        self._answering = asyncio.Lock()
        self._bad_audio: str | None = None
        self._notice: dict[str, object] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._unsubscribe = self.session.subscribe(self._forward)

    async def start(self) -> None:
        """Begin; returns at once, the portrait can be seen from now on."""
        await self.session.start()
        if self.mode == "agent":
            agent = Agent(self.session, self.speaker, self._around.config.agent, self._around.agent_key)
            self._agent = asyncio.create_task(agent.run(), name=f"agent {self.id}")

    # What it is

    @property
    def live(self) -> bool:
        """Whether the model has taken the session, so that what is said will be seen."""
        return self.session.info is not None and self._closing is None

    @property
    def idle_s(self) -> float:
        """Seconds without speaker and viewer."""
        if any(output.state == "live" for output in self.outputs.values()):
            self._idle_since_s = time.monotonic()
            return 0.0
        if self._doors or any(not peer.closed for peer in self._peers()):
            return 0.0
        return time.monotonic() - self._idle_since_s

    @property
    def age_s(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._opened_s

    @property
    def av_drift_s(self) -> float:
        """Picture minus sound where they leave."""
        return self.broadcast.av_drift_s

    @property
    def _send_delay_s(self) -> float:
        return self._around.config.encode.send_delay_ms / 1000

    @property
    def latency_s(self) -> float:
        """From a sample's arrival until its picture leaves: measured, or expected while the model starts."""
        around = self._around
        latency = self.session.latency_s
        if latency is None:
            latency = around.preview.latency_s(around.config.streaming, around.engine.info)
        return latency + self._send_delay_s

    @property
    def voice(self) -> str:
        """Voice of `say` where none is named."""
        return self._around.config.speech.voice

    @contextlib.contextmanager
    def speaking_door(self) -> Iterator[None]:
        """Keep the session alive while a client that pushes speech is connected."""
        self._doors += 1
        try:
            yield
        finally:
            self._doors -= 1
            self._idle_since_s = time.monotonic()

    def media(self) -> Media:
        """The stream's sizes."""
        geometry = self._around.preview.geometry
        return Media(
            width=geometry.width,
            height=geometry.height,
            fps=geometry.fps,
            block_ms=round(geometry.block_ms),
            latency_ms=round(1000 * self.latency_s),
        )

    def created(self) -> SessionCreated:
        """The answer to the request that made it."""
        base = f"v1/sessions/{self.id}"
        return SessionCreated(
            id=self.id,
            token=self.tokens.control,
            view_token=self.tokens.view,
            mode=self.mode,
            urls=Urls(
                offer=f"{base}/offer",
                whip=f"whip/{self.id}",
                whep=f"whep/{self.id}",
                events=f"{base}/events",
                audio=f"{base}/audio",
                realtime=f"v1/realtime?session={self.id}",
                page="",
                obs=f"obs/{self.id}?token={self.tokens.view}",
            ),
            media=self.media(),
        )

    def status(self) -> dict[str, object]:
        """The answer to `GET /v1/sessions/{id}`."""
        return {
            "id": self.id,
            "state": self.session.state,
            "mode": self.mode,
            "avatar": self.avatar,
            "prompt": self.prompt,
            "since": self._opened.isoformat(timespec="milliseconds"),
            "viewers": sum(peer.state == "connected" for peer in self._peers() if peer is not self._publisher),
            "stats": self._corrected(self.session.stats().as_json()),
        }

    @property
    def bitrate_kbps(self) -> int:
        """What the shared encoder may spend now."""
        return self._encoder.bitrate_kbps

    def request_keyframe(self) -> None:
        """Ask the shared encoder for a picture that a receiver can begin at."""
        self._encoder.request_keyframe()

    def refresh_metrics(self) -> None:
        """Bring the counters up to date."""
        self.figures.refresh()

    # Peers

    def _peers(self) -> list[Peer]:
        return [peer for peer in (self._speaker, self._publisher) if peer is not None] + self._viewers

    async def answer(self, offer: Offer, role: Role) -> str:
        """Answer a page's offer: with control the speaker's, otherwise a viewer's. See `connect`."""
        return (await self.connect(offer, "speaker" if role >= Role.CONTROL else "viewer")).answered

    async def connect(self, offer: Offer, part: Part) -> Peer:
        """Answer an offer: a speaker or publisher replaces the one before it, a viewer is one more.

        Raises:
            ApiError: `bad_sdp`, and then the old connection goes on; `capacity` for one viewer too many; `not_found`
                when the session has ended meanwhile.
        """
        asked_s = time.monotonic()
        async with self._answering:
            if part == "viewer" and len(self._viewers) >= self._around.config.limits.max_viewers:
                raise ApiError(
                    "capacity", "This session has as many viewers as it may; try again later.", retry_after_s=10
                )
            peer = self._new_peer(part, asked_s)
            await peer.answer(offer, self._around.config.ice.answer_timeout_s)
            if self._closing is not None:
                await peer.close()
                raise ApiError("not_found", "The session has ended.")
            old = self._admit(peer, part)
        if old is not None:
            await old.close()
        return peer

    def _admit(self, peer: Peer, part: Part) -> Peer | None:
        """Give the peer its place; returns the one it takes that from."""
        old = None
        match part:
            case "speaker":
                old, self._speaker = self._speaker, peer
            case "publisher":
                old, self._publisher = self._publisher, peer
            case "viewer":
                self._viewers.append(peer)
        return old

    def _new_peer(self, part: Part, asked_s: float) -> Peer:
        watches = part != "publisher"
        return Peer(
            name=f"{self.id} {part}",
            ice_servers=self._around.ice_servers,
            video=VideoTrack(self.broadcast, on_first=lambda: self.figures.first_picture(asked_s)) if watches else None,
            audio=AudioTrack(self.broadcast) if watches else None,
            listens=part != "viewer",
            handlers=PeerHandlers(
                on_audio=lambda frame: self._hear(frame, part),
                on_message=self._channel_message,
                on_open=lambda peer: self._channel_open(peer, may_control=part != "viewer"),
                on_keyframe_request=self._encoder.request_keyframe,
                on_feedback=self._take_feedback,
                on_closed=self._peer_closed,
            ),
        )

    def peer_named(self, id: str, part: Part) -> Peer | None:
        """The publisher or viewer of this `Peer.id`, while it lives."""
        among = self._viewers if part == "viewer" else [self._publisher]
        return next((peer for peer in among if peer is not None and peer.id == id and not peer.closed), None)

    async def add_candidates(self, candidates: list[RTCIceCandidate | None], role: Role) -> None:
        """Candidates found after the offer, for the newest connection of that role.

        Raises:
            ApiError: `conflict` when no offer came before, `bad_request`.
        """
        peer = self._speaker if role >= Role.CONTROL else (self._viewers[-1] if self._viewers else None)
        if peer is None or peer.closed:
            raise ApiError("conflict", "There is no connection that candidates could belong to; send an offer first.")
        await peer.add_candidates(candidates)

    def _take_feedback(self, peer: Peer, loss: float | None, kbps: float | None) -> None:
        """What a viewer's receiver reports moves the rate of the encoder that all share."""
        now_s = time.monotonic()
        if loss is not None:
            self._bitrate.report_loss(peer, loss, now_s)
        if kbps is not None:
            self._bitrate.report_estimate(peer, kbps, now_s)
        if self._bitrate.step(now_s):
            self._encoder.set_bitrate(self._bitrate.rate_kbps)
            self._around.metrics.bitrate_changes.inc()

    def _peer_closed(self, peer: Peer) -> None:
        self._bitrate.leave(peer)
        self._channels.pop(peer, None)
        if peer is self._speaker:
            self._speaker = None
        if peer is self._publisher:
            self._publisher = None
        if peer in self._viewers:
            self._viewers.remove(peer)
        self._idle_since_s = time.monotonic()

    def _hear(self, frame: AudioFrame, part: Part) -> None:
        """One frame of a microphone; what cannot be taken is told once, not fifty times a second.

        There is one microphone: while a publisher is connected, the page's is not heard.
        """
        if part == "speaker" and self._publisher is not None and self._publisher.state == "connected":
            return
        try:
            self.session.push_audio(frame)
            self._bad_audio = None
        except StreamingError as error:
            if self._bad_audio != error.code:
                self._bad_audio = error.code
                self._tell("error", code=error.code, message=str(error))

    # Events

    def open_mailbox(self, *, may_control: bool) -> Mailbox:
        """A new client of the events WebSocket; it is greeted first."""
        mailbox = Mailbox(self._mailboxes.discard)
        mailbox.inbox = self._inbox(mailbox.put, may_control)
        self._mailboxes.add(mailbox)
        for text in self._greeting():
            mailbox.put(text)
        if self._closing is not None:
            mailbox.close()
        return mailbox

    def _channel_open(self, peer: Peer, *, may_control: bool) -> None:
        self._channels[peer] = self._inbox(lambda text: peer.send(text), may_control)
        for text in self._greeting():
            peer.send(text)

    async def _channel_message(self, peer: Peer, data: str | bytes) -> None:
        inbox = self._channels.get(peer)
        if inbox is not None:
            await inbox.receive(data)

    def _inbox(self, put: Callable[[str], object], may_control: bool) -> Inbox:
        return Inbox(
            may_control=may_control,
            per_second=self._around.config.limits.messages_per_second,
            handle=self._obey,
            answer=lambda kind, **fields: put(self._message(kind, **fields)) and None,
        )

    def _greeting(self) -> list[str]:
        media = self.media()
        hello = self._message(
            "hello",
            version=self._around.version,
            rates=RATES_HZ,
            fps=media.fps,
            block_ms=media.block_ms,
            latency_ms=media.latency_ms,
        )
        found = [hello, self._message("state", state=self.session.state)]
        return found + ([self._message("warning", **self._notice)] if self._notice else [])

    def _message(self, kind: str, **fields: object) -> str:
        start_s = self.session.playout.start_s
        return messages.encode(
            kind, session=self.id, pts_ms=round(1000 * (self._around.clock.now() - start_s)), **fields
        )

    def _tell(self, kind: str, **fields: object) -> None:
        self._send_all(self._message(kind, **fields))

    def _forward(self, event: Event) -> None:
        """Pass one report of the session on to everybody."""
        data = dict(event.data)
        self.figures.report(event)
        if event.type == "stats":
            data = self._corrected(data)
        elif event.type == "warning" and data.get("code") == "out_of_domain":
            self._notice = data
        elif event.type == "avatar_applied":
            self._notice = None
        self._send_all(messages.encode(event.type, session=self.id, pts_ms=event.pts_ms, **data))

    def _corrected(self, stats: dict[str, Any]) -> dict[str, object]:
        """Figures as they are where media leave, not where they are pulled."""
        latency_ms = stats["latency_ms"] + 1000 * self._send_delay_s if self.session.latency_s is not None else 0.0
        return stats | {"latency_ms": round(latency_ms, 1), "av_drift_ms": round(1000 * self.broadcast.av_drift_s, 1)}

    def _send_all(self, text: str) -> None:
        for peer in list(self._channels):
            peer.send(text)
        for mailbox in list(self._mailboxes):
            mailbox.put(text)

    # Control

    async def _obey(self, message: messages.Inbound) -> None:
        """Do what a client's message asks.

        Raises:
            ApiError: it cannot be done.
        """
        match message:
            case messages.Interrupt():
                await self.interrupt()
            case messages.Prompt(text):
                self.change(prompt=text)
            case messages.Avatar(id):
                self.change(avatar=id, portrait=await self._around.picture_of(id))
            case messages.Mute(on):
                self.session.mute(on)
            case messages.Posture(state):
                self.session.set_posture(state)
            case messages.Keyframe():
                self._encoder.request_keyframe()
            case messages.Say(text):
                self.say(text)

    def say(self, text: str, voice: str | None = None) -> str:
        """Speak a text; returns the name of its segment.

        Raises:
            ApiError: `bad_request`, `rate_limited`, or `not_live` when the session has ended.
        """
        try:
            return self.speaker.say(text, voice)
        except StreamingError as error:
            raise ApiError("not_live", str(error)) from error

    async def interrupt(self) -> PlaybackReport:
        """Stop the speech that plays."""
        asked_s = self._around.clock.now()
        report = self.session.interrupt()
        if report.interrupted:
            self.broadcast.on_next_sound(lambda now_s: self.figures.silent(now_s - asked_s))
        return report

    def change(
        self,
        *,
        prompt: str | None = None,
        idle_prompt: str | None = None,
        avatar: str | None = None,
        portrait: np.ndarray | None = None,
    ) -> Planned:
        """Plan a change of expression or portrait; an empty `idle_prompt` ends the one in force.

        Raises:
            ApiError: `not_live` when the session has ended.
        """
        geometry = self._around.preview.geometry
        try:
            planned = None
            if idle_prompt is not None:
                planned = self.session.set_idle_prompt(idle_prompt or None)
            if prompt is not None:
                planned = self.session.set_prompt(prompt)
                self.prompt = prompt
            if portrait is not None:
                fitted = fit_portrait(portrait, geometry.width, geometry.height)
                planned = self.session.set_avatar(fitted, avatar or "")
                self.avatar = avatar
        except StreamingError as error:
            raise ApiError("not_live", str(error)) from error
        assert planned is not None, "nothing was to change"
        return Planned(block=planned.block, frame=planned.frame)

    def announce_closing(self, deadline_s: float) -> None:
        """Tell clients how long they have."""
        self.session.announce_closing(deadline_s)

    async def close(self, reason: str) -> None:
        """End everything that belongs to the session and free its slot. Later calls wait for the first."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name=f"close {self.id}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            self.refresh_metrics()
            if self._agent is not None:
                self._agent.cancel()
                await asyncio.gather(self._agent, return_exceptions=True)
            await self.speaker.close()
            await self.session.close()
            if self._channels or self._mailboxes:
                await asyncio.sleep(FAREWELL_S)
            self._unsubscribe()
            for mailbox in list(self._mailboxes):
                mailbox.close()
            await asyncio.gather(*(peer.close() for peer in self._peers()), return_exceptions=True)
            await asyncio.gather(*(output.close() for output in self.outputs.values()), return_exceptions=True)
            await self.broadcast.close()
            await self._encoder.close()
        finally:
            self._around.metrics.session_seconds.inc(self.age_s)
            self._release()

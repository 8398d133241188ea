"""One WebRTC peer connection, bound to one session: its tracks out, a microphone in, the data channel `events`.

A peer is made for one offer and never renegotiated; a browser that reconnects sends a new offer and gets a new peer.
Calls to aiortc come in the one order that works: tracks and codec preferences before `setRemoteDescription`.
Media that nobody reads is refused in the answer, because an unread track grows without bound; a publisher (WHIP), whose
offer is taken whole or not at all, may send its video, and it is dropped as it arrives.

A peer that vanishes without a word is noticed by its silence (no message, no receiver report, no sound) within
`SILENCE_S`, long before ICE gives up.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

from server.aiortc_adapters import close_quietly, discard_media, on_feedback, on_keyframe_request
from server.errors import ApiError
from server.signaling import MAX_CANDIDATES, Offer

log = logging.getLogger(__name__)

CONNECT_S = 15.0
"""A peer that is not connected after this time is given up."""
SILENCE_S = 8.0
"""A connected peer that was not heard for this time is dead."""
CHECK_S = 1.0
CHANNEL = "events"
_ICE_USER = re.compile(r"^a=ice-ufrag:(\S+)", re.MULTILINE)
MAX_BUFFERED_BYTES = 256 * 1024
"""Messages to a client whose data channel holds more than this are dropped: it does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHandlers:
    """What a peer tells its owner. All are called on the event loop."""

    on_audio: Callable[[AudioFrame], None]
    """One frame of the microphone, any rate and layout."""
    on_message: Callable[[Peer, str | bytes], Awaitable[None]]
    """One message of the data channel."""
    on_open: Callable[[Peer], None]
    """The data channel can be written to."""
    on_keyframe_request: Callable[[], None]
    """The receiver lost its picture."""
    on_feedback: Callable[[Peer, float | None, float | None], None]
    """What the receiver of the pictures reports: the share of packets lost, or the most kbit/s it can take."""
    on_closed: Callable[[Peer], None]
    """The peer is gone, for whatever reason; called once."""


class Peer:
    """One peer connection.

    Args:
        name: for logs: the session and the role.
        ice_servers: STUN and TURN; empty on one machine or network.
        video: track of encoded H264 packets; None for a publisher, which is sent nothing.
        audio: track of Opus packets; None for a publisher.
        listens: whether the microphone is wanted; a viewer's is not.
        handlers: who is told what.
    """

    def __init__(
        self,
        *,
        name: str,
        ice_servers: list[RTCIceServer],
        video: MediaStreamTrack | None,
        audio: MediaStreamTrack | None,
        listens: bool,
        handlers: PeerHandlers,
    ) -> None:
        self.name = name
        self._video, self._audio = video, audio
        self._listens = listens
        self._handlers = handlers
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=ice_servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        self._channel: RTCDataChannel | None = None
        self._microphone: MediaStreamTrack | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._created_s = self._heard_s = time.monotonic()
        self.id = secrets.token_urlsafe(24)
        """Unguessable name, for doors that give every connection an address."""
        self.ice_users: frozenset[str] = frozenset()
        """ICE user fragments of the offer."""
        self._candidates = 0
        self.answered = ""
        """The answer's SDP, with every candidate of this machine."""
        self._closing: asyncio.Task[None] | None = None
        self._connection.on("track", self._on_track)
        self._connection.on("datachannel", self._on_channel)
        self._connection.on("connectionstatechange", self._on_state)

    @property
    def state(self) -> str:
        """aiortc's connection state: new, connecting, connected, failed or closed."""
        return self._connection.connectionState

    @property
    def closed(self) -> bool:
        """Whether the peer is gone or going."""
        return self._closing is not None

    async def answer(self, offer: Offer, timeout_s: float) -> None:
        """Answer the offer (`answered`) and begin to connect.

        Raises:
            ApiError: `bad_sdp`; the peer is closed then.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._negotiate(offer)
        except TimeoutError as error:
            await self.close()
            raise ApiError(
                "bad_sdp", f"No answer within {timeout_s:.0f} s; check that the servers of ice.servers are reachable."
            ) from error
        except asyncio.CancelledError:
            await asyncio.shield(self._start_closing())
            raise
        except Exception as error:  # the boundary to aiortc, which fails in many ways on malformed offers
            log.info("%s: offer refused: %s", self.name, type(error).__name__)
            await self.close()
            raise ApiError("bad_sdp", "The offer cannot be answered; send the text that createOffer gave.") from error

    async def _negotiate(self, offer: Offer) -> None:
        connection = self._connection
        self.ice_users = frozenset(_ICE_USER.findall(offer.sdp))
        sender = self._add_tracks(offer)
        ours = connection.getTransceivers()
        await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        for extra in connection.getTransceivers():
            if sender is None and extra.receiver.track is not self._microphone:
                discard_media(extra.receiver, self._noticed)
            elif sender is not None and extra not in ours:
                extra.direction = "inactive"
        await connection.setLocalDescription(await connection.createAnswer())
        self._spawn(self._watch(sender), "watch")
        self.answered = connection.localDescription.sdp

    def _add_tracks(self, offer: Offer) -> RTCRtpSender | None:
        """Add what is sent, in the order of the offer's sections: aiortc would otherwise take the transport of the
        bundle for a left-over and stop it. Returns the pictures' sender; None for a publisher."""
        connection, sender = self._connection, None
        for kind in offer.kinds:
            if kind == "audio" and self._audio is not None:
                audio = connection.addTransceiver(self._audio, direction="sendrecv" if self._listens else "sendonly")
                audio.setCodecPreferences(opus_codecs())
            elif kind == "video" and self._video is not None:
                video = connection.addTransceiver(self._video, direction="sendonly")
                video.setCodecPreferences(h264_codecs())
                on_keyframe_request(video.sender, self._handlers.on_keyframe_request)
                on_feedback(video.sender, lambda loss, kbps: self._handlers.on_feedback(self, loss, kbps))
                sender = video.sender
        return sender

    def _noticed(self) -> None:
        """The client sent something."""
        self._heard_s = time.monotonic()

    async def add_candidates(self, candidates: list[RTCIceCandidate | None]) -> None:
        """Take candidates that the browser found after its offer.

        Raises:
            ApiError: `bad_request` if they do not fit this connection, `rate_limited` if there are too many.
        """
        self._candidates += len(candidates)
        if self._candidates > 2 * MAX_CANDIDATES:
            raise ApiError("rate_limited", "Too many candidates were sent for one offer; send a new offer.")
        for candidate in candidates:
            if candidate is not None and candidate.sdpMid is None and candidate.sdpMLineIndex is None:
                candidate.sdpMLineIndex = 0
            try:
                await self._connection.addIceCandidate(candidate)
            except Exception as error:  # the boundary to aiortc
                raise ApiError("bad_request", "A candidate does not fit this connection; send a new offer.") from error

    def send(self, text: str) -> bool:
        """Send one message; False if the channel is not open or the client does not read."""
        channel = self._channel
        if channel is None or channel.readyState != "open" or channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return False
        channel.send(text)
        return True

    async def close(self) -> None:
        """End the connection and everything it started. May be called again."""
        await asyncio.shield(self._start_closing())

    def _start_closing(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name=f"close {self.name}")
        return self._closing

    async def _close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close_quietly(self._connection)
        for track in (self._video, self._audio):
            if track is not None:
                track.stop()
        self._handlers.on_closed(self)

    def _spawn(self, work: Awaitable[None], what: str) -> None:
        task = asyncio.get_running_loop().create_task(_awaited(work), name=f"{what} {self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: a task failed; the peer is closed", task.get_name(), exc_info=error)
            self._start_closing()

    def _on_state(self) -> None:
        log.info("%s: %s", self.name, self.state)
        if self.state in ("failed", "closed") and not self.closed:
            self._start_closing()

    def _on_track(self, track: MediaStreamTrack) -> None:
        if self._listens and track.kind == "audio" and self._microphone is None:
            self._microphone = track
            self._spawn(self._listen(track), "listen")

    async def _listen(self, track: MediaStreamTrack) -> None:
        """Read the microphone as long as there is one."""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            self._heard_s = time.monotonic()
            assert isinstance(frame, AudioFrame)
            self._handlers.on_audio(frame)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != CHANNEL or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        waiting: asyncio.Queue[str | bytes] = asyncio.Queue(256)

        @channel.on("message")
        def on_message(message: str | bytes) -> None:
            self._heard_s = time.monotonic()
            if not waiting.full():
                waiting.put_nowait(message)

        self._spawn(self._read_messages(waiting), "messages")
        self._handlers.on_open(self)

    async def _read_messages(self, waiting: asyncio.Queue[str | bytes]) -> None:
        while True:
            await self._handlers.on_message(self, await waiting.get())

    async def _watch(self, sender: RTCRtpSender | None) -> None:
        """Give up on a peer that never connects or fell silent."""
        while True:
            await asyncio.sleep(CHECK_S)
            now = time.monotonic()
            if self.state != "connected":
                if now - self._created_s > CONNECT_S:
                    log.info("%s: not connected after %.0f s", self.name, CONNECT_S)
                    self._start_closing()
                    return
                self._heard_s = now
                continue
            if sender is not None:
                self._heard_s = max(self._heard_s, now - await report_age_s(sender))
            if now - self._heard_s > SILENCE_S:
                log.info("%s: not heard for %.0f s", self.name, SILENCE_S)
                self._start_closing()
                return


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def report_age_s(sender: RTCRtpSender) -> float:
    """Seconds since the receiver last reported on our pictures; infinite before the first report."""
    times = [s.timestamp for s in (await sender.getStats()).values() if s.type == "remote-inbound-rtp"]
    return (datetime.now(UTC) - max(times)).total_seconds() if times else float("inf")


def h264_codecs() -> list:
    """The codecs that pictures are sent with, and retransmission."""
    capabilities = RTCRtpSender.getCapabilities("video").codecs
    wanted = [codec for codec in capabilities if codec.mimeType.lower() == "video/h264"]
    return wanted + [codec for codec in capabilities if codec.mimeType.lower() == "video/rtx"]


def opus_codecs() -> list:
    """The codec that sound is sent with."""
    return [c for c in RTCRtpSender.getCapabilities("audio").codecs if c.mimeType.lower() == "audio/opus"]

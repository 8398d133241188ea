"""A client made of aiortc: calls a session as a browser does, keeps what comes back, aligns it as a browser would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RtcpSrPacket
from av import AudioFrame

from tests.unit.server.running import Running

PIECE = 960


class Microphone(MediaStreamTrack):
    """Plays samples in real time, then silence.

    Args:
        samples: [n] float32, 48 kHz mono.
    """

    kind = "audio"

    def __init__(self, samples: np.ndarray) -> None:
        super().__init__()
        self._samples = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        self._sent = 0
        self._start_s: float | None = None

    async def recv(self) -> AudioFrame:
        if self._start_s is None:
            self._start_s = time.monotonic()
        await asyncio.sleep(max(0.0, self._start_s + self._sent / 48_000 - time.monotonic()))
        piece = self._samples[self._sent : self._sent + PIECE]
        frame = AudioFrame.from_ndarray(np.pad(piece, (0, PIECE - len(piece)))[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._sent, Fraction(1, 48_000)
        self._sent += PIECE
        return frame


@dataclass(slots=True)
class Received:
    """What came back on one track: media time and content, in order of arrival."""

    ticks: list[int] = field(default_factory=list)
    content: list[np.ndarray] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    reports: list[tuple[float, int]] = field(default_factory=list)
    """Sender reports: wall time in seconds and the RTP timestamp that left then."""
    first: int | None = None
    """RTP timestamp of the first packet; `ticks` count from it."""

    def wall_s(self, rate_hz: int) -> np.ndarray:
        """When each piece of content left, as the sender's reports tell: what a browser synchronises by."""
        assert self.first is not None
        since = [(wall, (ticks - self.first + 2**31) % 2**32 - 2**31) for wall, ticks in self.reports]
        offsets = [wall - ticks / rate_hz for wall, ticks in since]
        return np.array(self.ticks) / rate_hz + float(np.median(offsets))


def capture_reports(receiver: Any, received: Received) -> None:
    """Note the sender's reports and the first timestamp, which aiortc keeps to itself."""
    upstream = receiver._handle_rtcp_packet

    async def handle(packet: Any) -> None:
        if isinstance(packet, RtcpSrPacket):
            info = packet.sender_info
            received.reports.append((info.ntp_timestamp / 2**32, info.rtp_timestamp))
        await upstream(packet)

    receiver._handle_rtcp_packet = handle
    upstream_rtp = receiver._handle_rtp_packet

    async def handle_rtp(packet: Any, arrival_time_ms: int) -> None:
        if received.first is None:
            received.first = packet.timestamp
        await upstream_rtp(packet, arrival_time_ms)

    receiver._handle_rtp_packet = handle_rtp


class Caller:
    """One client connection."""

    def __init__(self, microphone: np.ndarray | None) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.video, self.audio = Received(), Received()
        self.asked_s = time.monotonic()
        self.messages: list[dict[str, Any]] = []
        self.said = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        if microphone is None:
            self.connection.addTransceiver("audio", direction="recvonly")
        else:
            self.connection.addTrack(Microphone(microphone))
        self.connection.addTransceiver("video", direction="recvonly")
        self.channel: RTCDataChannel = self.connection.createDataChannel("events")
        self.channel.on("message", self._message)
        self.connection.on("track", self._track)

    async def call(self, server: Running, session: dict[str, Any], token: str | None = None) -> None:
        """Offer and connect."""
        await self.connection.setLocalDescription(await self.connection.createOffer())
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        description = {"sdp": self.connection.localDescription.sdp, "type": "offer"}
        answer = await server.http.post("/" + session["urls"]["offer"], json=description, headers=headers)
        assert answer.status_code == 200, answer.text
        await self.connection.setRemoteDescription(RTCSessionDescription(**answer.json()))
        for transceiver in self.connection.getTransceivers():
            capture_reports(transceiver.receiver, self.video if transceiver.kind == "video" else self.audio)

    def _message(self, text: str) -> None:
        self.messages.append(json.loads(text))
        self.said.set()

    def _track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._drain(track)))

    async def _drain(self, track: MediaStreamTrack) -> None:
        received = self.video if track.kind == "video" else self.audio
        with contextlib.suppress(MediaStreamError):
            while True:
                frame: Any = await track.recv()
                received.ticks.append(frame.pts)
                received.arrived_s.append(time.monotonic())
                gray = track.kind == "video"
                received.content.append(frame.to_ndarray(format="gray") if gray else frame.to_ndarray()[0])

    async def until(self, kind: str, within_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for a message of this type with these fields."""
        async with asyncio.timeout(within_s):
            while True:
                for message in self.messages:
                    if message["type"] == kind and fields.items() <= message.items():
                        return message
                self.said.clear()
                await self.said.wait()

    async def pictures(self, count: int, within_s: float = 5.0) -> None:
        """Wait until so many pictures have come."""
        until_s = time.monotonic() + within_s
        while len(self.video.ticks) < count:
            assert time.monotonic() < until_s, f"{len(self.video.ticks)} of {count} pictures came"
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a client saw and heard of the stand-in while somebody spoke."""

    first_ms: float
    """First picture, since the connection was asked for."""
    fps: float
    """Pictures a second of media time, as the stamps of those that came say."""
    offset_ms: float
    """Lips after voice, aligned by the sender's reports as a browser aligns them; a picture is 40 ms."""
    agreement: float
    """Correlation of lips and voice at that offset."""

    def __str__(self) -> str:
        return f"TTFF {self.first_ms:.0f} ms, {self.fps:.1f} fps, lips {self.offset_ms:+.0f} ms after sound"


def mouth(picture: np.ndarray) -> float:
    """How dark the stand-in's mouth region is; its inside is drawn nearly black."""
    height, width = picture.shape
    region = picture[int(0.62 * height) : int(0.80 * height), int(0.40 * width) : int(0.60 * width)]
    return float(255 - region.mean())


def judge(caller: Caller) -> Shown:
    """Judge what came; at least six seconds of it after the first two."""
    video_s, audio_s = caller.video.wall_s(90_000), caller.audio.wall_s(48_000)
    begin, end = max(video_s[0], audio_s[0]) + 2, min(video_s[-1], audio_s[-1])
    assert end - begin > 6, f"{end - begin:.1f} s are too few"
    grid = np.arange(begin, end, 0.01)
    loud = np.array([np.sqrt(np.mean(np.square(piece.astype(float)))) for piece in caller.audio.content])
    heard = np.interp(grid, audio_s + 0.01, np.log10(loud + 30))
    opened = np.interp(grid, video_s + 0.02, [mouth(picture) for picture in caller.video.content])
    heard, opened = heard - heard.mean(), opened - opened.mean()

    def agreement(lag: int) -> float:
        a, b = (heard[: len(heard) - lag], opened[lag:]) if lag >= 0 else (heard[-lag:], opened[:lag])
        return float(np.corrcoef(a, b)[0, 1])

    best = max(range(-50, 51), key=agreement)
    late = video_s >= begin
    fps = (late.sum() - 1) / (video_s[-1] - video_s[late][0])
    first_ms = 1000 * (caller.video.arrived_s[0] - caller.asked_s)
    return Shown(first_ms=first_ms, fps=float(fps), offset_ms=10.0 * best, agreement=agreement(best))


@contextlib.asynccontextmanager
async def calling(
    server: Running, session: dict[str, Any], microphone: np.ndarray | None = None, token: str | None = None
) -> AsyncIterator[Caller]:
    """A connected client for the length of a `with`."""
    caller = Caller(microphone)
    try:
        await caller.call(server, session, token)
        yield caller
    finally:
        await caller.close()

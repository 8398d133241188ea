"""WHIP and WHEP clients made of aiortc, and an offer in the shape that OBS sends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpreceiver import StreamStatistics
from av import VideoFrame

from tests.unit.server.caller import Microphone
from tests.unit.server.running import Running

SDP = {"Content-Type": "application/sdp"}


async def until(condition: Callable[[], bool], within_s: float = 8.0) -> None:
    """Wait until something is so."""
    for _ in range(round(within_s / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"it was not so within {within_s} s")


def connection() -> RTCPeerConnection:
    """A client's side, without ICE servers."""
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


async def local_offer(client: RTCPeerConnection) -> str:
    """The client's offer with its candidates."""
    await client.setLocalDescription(await client.createOffer())
    return client.localDescription.sdp


async def post(server: Running, path: str, sdp: str, **headers: str) -> httpx.Response:
    """One POST of an offer."""
    return await server.http.post(path, content=sdp, headers={**SDP, **headers})


def as_obs(sdp: str) -> str:
    """An offer of aiortc in the shape of OBS 30 and later: Opus 111, H264 96, no candidates, actpass, one direction."""
    kept: list[str] = []
    kind = ""
    for line in sdp.splitlines():
        if line.startswith("m="):
            kind = line[2:].split()[0]
            payload = {"audio": "111", "video": "96"}[kind]
            kept.append(f"m={kind} 9 UDP/TLS/RTP/SAVPF {payload}")
        elif line.startswith(("a=candidate", "a=end-of-candidates", "a=extmap", "a=rtcp:", "a=rtcp-fb", "a=fmtp")):
            continue
        elif line.startswith("a=rtpmap:"):
            if "opus/48000/2" in line:
                kept += ["a=rtpmap:111 opus/48000/2", "a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1"]
            elif "H264/90000" in line and "a=rtpmap:96 H264/90000" not in kept:
                kept += [
                    "a=rtpmap:96 H264/90000",
                    "a=rtcp-fb:96 nack",
                    "a=rtcp-fb:96 nack pli",
                    "a=rtcp-fb:96 goog-remb",
                ]
                kept.append("a=fmtp:96 profile-level-id=64001f;packetization-mode=1;level-asymmetry-allowed=1")
        else:
            kept.append(line)
    return "\r\n".join(kept) + "\r\n"


class Watcher:
    """A WHEP viewer that counts packets as they arrive, reports on them, and decodes nothing.

    Sound is received too; a picture is a packet whose marker bit is set.
    """

    def __init__(self) -> None:
        self.connection = connection()
        self.pictures = 0
        self.first_s: float | None = None
        self.sounds = 0
        self.location = ""
        self.tag = ""
        for kind in ("video", "audio"):
            receiver = self.connection.addTransceiver(kind, direction="recvonly").receiver
            receiver._handle_rtp_packet = self._counter(kind, receiver)  # type: ignore[method-assign]

    def _counter(self, kind: str, receiver: Any) -> Any:
        reported = receiver._RTCRtpReceiver__remote_streams

        async def count(packet: Any, arrival_time_ms: int) -> None:
            if packet.ssrc not in reported:
                reported[packet.ssrc] = StreamStatistics(90_000 if kind == "video" else 48_000)
            reported[packet.ssrc].add(packet)
            if kind == "audio":
                self.sounds += 1
            elif packet.marker:
                self.pictures += 1
                self.first_s = self.first_s or asyncio.get_running_loop().time()

        return count

    async def watch(self, server: Running, session: dict[str, Any], **headers: str) -> httpx.Response:
        """Offer and connect."""
        answer = await post(server, "/" + session["urls"]["whep"], await local_offer(self.connection), **headers)
        if answer.status_code == 201:
            self.location, self.tag = answer.headers["location"], answer.headers["etag"]
            await self.connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        return answer

    async def until(self, pictures: int, within_s: float = 8.0) -> None:
        """Wait until so many pictures have come."""
        await until(lambda: self.pictures >= pictures, within_s)


@contextlib.asynccontextmanager
async def watching(server: Running, session: dict[str, Any]) -> AsyncIterator[Watcher]:
    """A connected WHEP viewer for the length of a `with`."""
    watcher = Watcher()
    try:
        answer = await watcher.watch(server, session)
        assert answer.status_code == 201, answer.text
        yield watcher
    finally:
        await watcher.connection.close()


class Noise(MediaStreamTrack):
    """Pictures of noise, 320x240 at 25 a second: a camera that is sent along."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._sent = 0

    async def recv(self) -> Any:
        if self.readyState != "live":
            raise MediaStreamError
        await asyncio.sleep(0.04)
        pixels = np.random.default_rng(self._sent).integers(0, 255, (240, 320, 3), np.uint8)
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._sent * 3600, Fraction(1, 90_000)
        self._sent += 1
        return frame


@contextlib.asynccontextmanager
async def publishing(
    server: Running, session: dict[str, Any], voice: np.ndarray, *, camera: bool = False, obs: bool = False
) -> AsyncIterator[tuple[RTCPeerConnection, httpx.Response]]:
    """A connected WHIP publisher for the length of a `with`, and the server's answer to it.

    Args:
        voice: [n] float32, 48 kHz mono.
        camera: whether it sends video too.
        obs: whether its offer has the shape of OBS's.
    """
    client = connection()
    client.addTrack(Microphone(voice))
    if camera:
        client.addTrack(Noise())
    for transceiver in client.getTransceivers():
        transceiver.direction = "sendonly"
    try:
        sdp = await local_offer(client)
        answer = await post(server, "/" + session["urls"]["whip"], as_obs(sdp) if obs else sdp)
        assert answer.status_code == 201, answer.text
        await client.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        yield client, answer
    finally:
        await client.close()

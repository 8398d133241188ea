"""One session of a server, used from another program: speech goes in as PCM, pictures and sound come back in order.

    async with RemoteAvatar(RemoteConfig(server="http://127.0.0.1:8080")) as avatar:
        await avatar.begin(24_000)
        await avatar.push(pcm)
        await avatar.end()
        async for item in avatar: ...

Speech travels by the audio socket (`/v1/sessions/{id}/audio`), media come back by WHEP; both are the doors that any
program may use, docs/protocol.md describes them. The LiveKit worker and the Pipecat service are thin layers over this.

Pictures and sound of one moment leave the server together. Each is placed on this machine's clock by the quickest
packet of its track, so the two are put in order without waiting for sender reports. The server's event that a segment
is heard comes by the same network, so it falls on the same clock: sound between a segment's two events is its sound.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import httpx
import websockets
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from client_demo.avatar_line import Finished, Item, Line, Picture, Sound
from client_demo.microphone import ClientError, InputError
from client_demo.recording import ArrivalClock

AHEAD_S = 8.0
"""Speech is sent at most this far ahead of its playing, so that the server's buffer never overflows."""
MEDIA_S = 15.0
"""The first picture comes within this time."""
_PIECE_S = 0.5  # of speech in one message
_TAIL_S = 0.06  # media leave the server this much after the event that tells of them


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConfig:
    """Which session is used."""

    server: str = "http://127.0.0.1:8080"
    """Root of the server."""
    session: str | None = None
    """A session that exists; None opens one and deletes it at the end."""
    token: str | None = field(default=None, repr=False)
    """Control token of `session`, where the server asks for credentials."""
    api_key: str | None = field(default=None, repr=False)
    """Admin key, to open a session on a server that asks for credentials."""
    avatar: str | None = None
    """Portrait of the gallery; None takes the server's first."""
    image: Path | None = None
    """Picture file to use instead."""
    prompt: str = ""
    """Expression."""

    def __post_init__(self) -> None:
        if not self.server.startswith(("http://", "https://")):
            raise InputError(f"server is {self.server!r}; it must begin with http:// or https://")
        if self.image is not None and not self.image.is_file():
            raise InputError(f"image is {self.image}, which is no file; check the path")


class RemoteAvatar:
    """A session's two doors. Not thread-safe; everything is called on the loop.

    Args:
        config: which session.

    Raises:
        ClientError: on entering, if the server refuses, is not reached, or no media come; while iterating, if the
            connection is lost.
    """

    def __init__(self, config: RemoteConfig) -> None:
        self.config = config
        self.id = config.session or ""
        self.media: dict[str, Any] = {}
        """`width`, `height`, `fps`, `block_ms`, `latency_ms` of the stream."""
        self.state = "idle"
        """The session's state, as its events tell."""
        self._token = config.token or config.api_key
        self._is_own = config.session is None
        self._line = Line()
        self._names = itertools.count(1)
        self._segment: str | None = None  # the one that is being pushed
        self._bytes_s = 1.0
        self._epoch = 0
        self._played_until_s = 0.0
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._socket: Any = None
        self._connection: RTCPeerConnection | None = None
        self._resource = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> RemoteAvatar:
        try:
            async with asyncio.timeout(MEDIA_S):
                await self._open()
        except TimeoutError:
            await self.close()
            text = "was reached, but no picture came; a firewall may block UDP between here and there"
            raise ClientError(f"{self.config.server} {text}") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._line.items()

    # Speech in

    async def begin(self, rate_hz: int) -> str:
        """Announce an utterance; returns the name that its events carry. One that is open ends.

        Args:
            rate_hz: of the sound that follows, 8000 to 48000.
        """
        self._segment = f"{self.id[:8]}-{next(self._names)}"
        self._bytes_s = 2.0 * rate_hz
        await self._send({"type": "start", "sample_rate": rate_hz, "segment": self._segment})
        return self._segment

    async def push(self, pcm: bytes) -> None:
        """Speak sound of the open utterance; waits while the server has enough. Returns at once after an interrupt.

        Args:
            pcm: s16le mono, whole samples.
        """
        epoch, piece_bytes = self._epoch, 2 * int(self._bytes_s * _PIECE_S / 2)
        for at in range(0, len(pcm), piece_bytes):
            piece = pcm[at : at + piece_bytes]
            await self._pace(len(piece) / self._bytes_s)
            if epoch != self._epoch or self._segment is None:
                return
            await self._send(piece)

    async def end(self) -> None:
        """The utterance is complete; `Finished` follows when it has been heard."""
        if self._segment is not None:
            self._segment = None
            await self._send({"type": "end"})

    async def interrupt(self) -> None:
        """Stop speaking at once: what plays, what waits, what is being pushed."""
        self._epoch += 1
        self._segment = None
        self._played_until_s = 0.0
        self._line.silence()
        await self._send({"type": "interrupt"})

    async def show(self, posture: str) -> None:
        """Look as if `listening` or `thinking`, or `idle`."""
        await self._send({"type": "state", "state": posture})

    async def _pace(self, seconds: float) -> None:
        await self._may_send.wait()
        now_s = time.monotonic()
        self._played_until_s = max(self._played_until_s, now_s) + seconds
        await asyncio.sleep(max(0.0, self._played_until_s - now_s - AHEAD_S))

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        try:
            await self._socket.send(message if isinstance(message, bytes) else json.dumps(message))
        except websockets.ConnectionClosed:
            raise ClientError("the session has ended; open another") from None

    # The two doors

    async def _open(self) -> None:
        async with self._http() as http:
            if self._is_own:
                await self._make_session(http)
            await self._open_socket()
            await self._watch(http)
        picture = await self._line.first_picture()
        self.media |= {"width": picture.frame.width, "height": picture.frame.height}

    async def _make_session(self, http: httpx.AsyncClient) -> None:
        config = self.config
        wish: dict[str, Any] = {"mode": "push", "prompt": config.prompt}
        if config.image is not None:
            wish["image"] = base64.b64encode(await asyncio.to_thread(config.image.read_bytes)).decode()
        elif config.avatar is not None:
            wish["avatar"] = config.avatar
        made = (await _ask(http, "POST", "v1/sessions", json=wish)).json()
        self.id, self.media = made["id"], made["media"]
        self._token = made.get("token") or self._token
        http.headers.update(self._headers())

    async def _open_socket(self) -> None:
        url = self._url(f"v1/sessions/{quote(self.id, safe='')}/audio").replace("http", "ws", 1)
        try:
            self._socket = await websockets.connect(url, additional_headers=self._headers(), max_size=1 << 20)
        except (OSError, websockets.WebSocketException) as error:
            raise ClientError(f"session {self.id} cannot be spoken to: {error}") from error
        self._tasks.append(asyncio.create_task(self._listen(), name="events of the avatar"))

    async def _watch(self, http: httpx.AsyncClient) -> None:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self._connection = connection
        audio = connection.addTransceiver("audio", direction="recvonly")
        video = connection.addTransceiver("video", direction="recvonly")
        codecs = RTCRtpReceiver.getCapabilities("video").codecs
        video.setCodecPreferences([c for c in codecs if c.mimeType.lower() in ("video/h264", "video/rtx")])
        connection.on("connectionstatechange", self._check)
        await connection.setLocalDescription(await connection.createOffer())
        offer = connection.localDescription.sdp
        while True:
            path = f"whep/{quote(self.id, safe='')}"
            answer = await _ask(http, "POST", path, content=offer, type_="application/sdp", ok=(201, 409))
            if answer.status_code == 201:
                break
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))  # the model still starts
        self._resource = answer.headers["Location"]
        clocks = [ArrivalClock(audio.receiver, 48_000), ArrivalClock(video.receiver, 90_000)]
        await connection.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        for transceiver, clock in zip((audio, video), clocks, strict=True):
            receive = self._receive(transceiver.receiver.track, clock)
            self._tasks.append(asyncio.create_task(receive, name=f"{transceiver.kind} of the avatar"))

    def _check(self) -> None:
        if self._connection is not None and self._connection.connectionState == "failed":
            self._line.fail(ClientError("the media path to the server was lost"))

    async def _receive(self, track: MediaStreamTrack, clock: ArrivalClock) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                at_s = clock.at_s(frame.time)
                self._line.put(Picture(at_s, frame) if track.kind == "video" else Sound(at_s, frame, None))
        self._line.fail(ClientError("the server has ended the stream"))

    async def _listen(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self._socket:
                self._hear(json.loads(text))
        self._line.fail(ClientError("the server has ended the session"))

    def _hear(self, event: dict[str, Any]) -> None:
        now_s = time.monotonic()
        match event.get("type"):
            case "hello":
                self.media.setdefault("fps", event.get("fps"))
            case "state":
                self.state = event["state"]
            case "playback_started":
                self._line.begin(event["segment"], now_s)
            case "playback_finished" if event["segment"] is not None:
                done = Finished(event["segment"], event["position_ms"], event["interrupted"])
                self._line.finish(done, now_s + (0.0 if done.interrupted else _TAIL_S))
                if done.segment == self._segment:  # cut off from elsewhere: the rest of it would be refused
                    self._segment, self._epoch = None, self._epoch + 1
            case "pause":
                self._may_send.clear()
            case "resume":
                self._may_send.set()

    async def close(self) -> None:
        """Leave both doors, and delete the session if it was opened here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._line.fail(None)
        if self._socket is not None:
            await self._socket.close()
        async with self._http() as http:
            with contextlib.suppress(ClientError):
                if self._resource:
                    await _ask(http, "DELETE", self._resource)
                if self._is_own and self.id:
                    await _ask(http, "DELETE", f"v1/sessions/{self.id}")
        self._resource, self._is_own = "", False
        if self._connection is not None:
            await self._connection.close()

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url(""), headers=self._headers(), timeout=MEDIA_S)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _url(self, path: str) -> str:
        return urljoin(self.config.server.rstrip("/") + "/", path)


async def _ask(
    http: httpx.AsyncClient, method: str, path: str, *, type_: str | None = None, ok: tuple[int, ...] = (), **body: Any
) -> httpx.Response:
    """One request.

    Raises:
        ClientError: the server refused, with its sentence, or was not reached.
    """
    headers = {"Content-Type": type_} if type_ else {}
    try:
        answer = await http.request(method, path, headers=headers, **body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        text = f"{http.base_url} was not reached ({type(error).__name__}); is the server running there?"
        raise ClientError(text) from error
    if answer.is_success or answer.status_code in ok:
        return answer
    with contextlib.suppress(ValueError, KeyError, TypeError):
        problem = answer.json()
        raise ClientError(f"{problem['code']}: {problem['detail']}")
    raise ClientError(f"{http.base_url} answered {answer.status_code}; is it an avatarcast server?")

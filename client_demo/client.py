"""Command-line client: plays a sound file into a session as its microphone and records the avatar that comes back.

    python -m client_demo.client --server http://127.0.0.1:8080 --audio voice.wav --out avatar.mp4

The file is sent in real time over WebRTC, exactly as a browser sends a microphone. `talk` does the same as a library
call and hands every received frame, on one time line, to whoever asks.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from client_demo.microphone import RATE_HZ, ClientError, FileMicrophone, InputError, read_sound
from client_demo.recording import Alignment, Frame, Mp4Writer, SenderClock

CONNECT_S = 15.0
PING_S = 2.0
TAIL_S = 0.5
"""Recorded after the last sound has come back."""

Sink = Callable[[str, float, Frame], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkConfig:
    """One conversation."""

    server: str = "http://127.0.0.1:8080"
    """Root of the server."""
    audio: Path
    """Sound file that plays the microphone; anything FFmpeg decodes."""
    out: Path | None = None
    """MP4 to write; None records nothing."""
    avatar: str | None = None
    """Portrait of the gallery; None takes the server's first."""
    image: Path | None = None
    """Picture file to use instead of a gallery portrait."""
    prompt: str = ""
    """Expression."""
    seconds: float | None = None
    """Length of the conversation from the first picture; None: the whole file and the latency."""
    api_key: str | None = field(default=None, repr=False)
    """Admin key of a server that asks for one."""

    def __post_init__(self) -> None:
        if not self.server.startswith(("http://", "https://")):
            raise InputError(f"--server is {self.server!r}; it must begin with http:// or https://")
        if self.seconds is not None and not 0 < self.seconds <= 86_400:
            raise InputError(f"--seconds is {self.seconds}; it must be above 0 and at most 86400")
        for name in ("audio", "image"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InputError(f"--{name} is {path}, which is no file; check the path")
        if self.out is not None and not self.out.parent.is_dir():
            raise InputError(f"--out is {self.out}, whose folder does not exist; create {self.out.parent} first")


@dataclass(slots=True, kw_only=True)
class TalkReport:
    """What a conversation was like, seen from the client."""

    session: str = ""
    seconds: float = 0.0
    """From the first picture to the end."""
    first_picture_ms: float | None = None
    """From sending the offer to the first decoded picture."""
    pictures: int = 0
    fps: float = 0.0
    """Pictures received a second."""
    longest_gap_ms: float = 0.0
    """Longest time between two pictures' arrivals."""
    sound_s: float = 0.0
    """Sound received."""
    aligned: bool = False
    """Whether sender reports tied picture and sound together."""
    arrival_skew_ms: float | None = None
    """How much later a picture arrives than the sound of the same moment (median); a player evens this out."""
    latency_ms: float | None = None
    """What the server announces from microphone to lips."""
    blocks: int = 0
    block_ms_p50: float | None = None
    block_ms_p95: float | None = None
    """Time the model took for a block (audio, dit and vae together)."""
    events: dict[str, int] = field(default_factory=dict)
    """Number of events by type."""
    warnings: list[str] = field(default_factory=list)
    out: str | None = None


async def talk(config: TalkConfig, sink: Sink | None = None) -> TalkReport:
    """Hold one conversation and delete its session again, whatever happens.

    Args:
        config: server, sound and length.
        sink: called with `video` or `audio`, seconds on the sender's clock since the first picture, and the frame.

    Returns:
        The report; the recording, if one was asked for, is complete.

    Raises:
        InputError: the sound file or the picture is unusable.
        ClientError: the server refused, was not reached, or media did not flow.
    """
    sound = await asyncio.to_thread(read_sound, config.audio)
    body: dict[str, Any] = {"mode": "echo", "prompt": config.prompt}
    if config.image is not None:
        body["image"] = base64.b64encode(await asyncio.to_thread(config.image.read_bytes)).decode()
    elif config.avatar is not None:
        body["avatar"] = config.avatar
    session = await _request(config, "POST", "v1/sessions", body=body)
    try:
        return await _Conversation(config, session, sound, sink).hold()
    finally:
        with contextlib.suppress(ClientError):
            await _request(config, "DELETE", f"v1/sessions/{session['id']}", token=session.get("token"))


class _Conversation:
    """The connection of one session, from offer to end."""

    def __init__(self, config: TalkConfig, session: dict[str, Any], sound: np.ndarray, sink: Sink | None) -> None:
        self._config, self._session, self._user_sink = config, session, sink
        self._media = session.get("media", {})
        self._microphone = FileMicrophone(sound)
        self._report = TalkReport(session=session["id"], latency_ms=self._media.get("latency_ms"))
        self._events: Counter[str] = Counter()
        self._block_ms: list[float] = []
        self._arrivals: dict[str, list[tuple[float, float]]] = {"video": [], "audio": []}
        self._first_picture = asyncio.Event()
        self._first_picture_s = 0.0
        self._last_picture_s = 0.0
        self._offered_s = 0.0

    async def hold(self) -> TalkReport:
        config = self._config
        writer = Mp4Writer(config.out, self._media.get("fps", 25)) if config.out is not None else None
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        tasks: list[asyncio.Task[None]] = []
        alignment: Alignment | None = None
        try:
            receivers, pinging = await self._connect(connection)
            clocks = {kind: SenderClock(r, 90_000 if kind == "video" else RATE_HZ) for kind, r in receivers.items()}
            alignment = Alignment(clocks, self._sink(writer))
            tasks = [asyncio.create_task(self._listen(kind, r.track, alignment)) for kind, r in receivers.items()]
            tasks.append(asyncio.create_task(pinging))
            await self._stay()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connection.close()
            if alignment is not None:
                alignment.settle()
                self._report.aligned = alignment.exact
            if writer is not None:
                await asyncio.to_thread(writer.close)
        return self._finished()

    async def _connect(self, connection: RTCPeerConnection) -> tuple[dict[str, RTCRtpReceiver], Any]:
        audio = connection.addTransceiver(self._microphone, direction="sendrecv")
        video = connection.addTransceiver("video", direction="recvonly")
        codecs = RTCRtpReceiver.getCapabilities("video").codecs
        video.setCodecPreferences([c for c in codecs if c.mimeType.lower() in ("video/h264", "video/rtx")])
        channel = connection.createDataChannel("events")
        channel.on("message", self._receive)
        connected = asyncio.Event()

        @connection.on("connectionstatechange")
        def check() -> None:
            if connection.connectionState == "connected":
                connected.set()

        await connection.setLocalDescription(await connection.createOffer())
        self._offered_s = time.monotonic()
        answer = await _request(
            self._config,
            "POST",
            self._session["urls"]["offer"],
            token=self._session.get("token"),
            body={"sdp": connection.localDescription.sdp, "type": "offer"},
        )
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        try:
            async with asyncio.timeout(CONNECT_S):
                await connected.wait()
        except TimeoutError:
            raise ClientError(
                "No media path to the server was found; a firewall may block UDP between here and there."
            ) from None
        return {"audio": audio.receiver, "video": video.receiver}, self._ping(channel)

    async def _ping(self, channel: Any) -> None:
        while True:
            if channel.readyState == "open":
                channel.send('{"type":"ping"}')
            await asyncio.sleep(PING_S)

    def _receive(self, text: str | bytes) -> None:
        event = json.loads(text)
        self._events[event.get("type", "")] += 1
        if event.get("type") == "block":
            self._block_ms.append(sum(event.get(name) or 0.0 for name in ("audio_ms", "dit_ms", "vae_ms")))
        elif event.get("type") == "hello":
            self._report.latency_ms = event.get("latency_ms", self._report.latency_ms)
        elif event.get("type") in ("warning", "error"):
            self._report.warnings.append(f"{event.get('code')}: {event.get('message')}")

    async def _listen(self, kind: str, track: MediaStreamTrack, alignment: Alignment) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                now_s = time.monotonic()
                if kind == "video":
                    self._count_picture(now_s)
                else:
                    self._report.sound_s += frame.samples / frame.sample_rate
                alignment.add(kind, frame, now_s)

    def _count_picture(self, now_s: float) -> None:
        report = self._report
        report.pictures += 1
        if report.pictures == 1:
            self._first_picture_s = now_s
            report.first_picture_ms = 1000 * (now_s - self._offered_s)
            self._first_picture.set()
        else:
            report.longest_gap_ms = max(report.longest_gap_ms, 1000 * (now_s - self._last_picture_s))
        self._last_picture_s = now_s

    def _sink(self, writer: Mp4Writer | None) -> Sink:
        def take(kind: str, seconds: float, frame: Frame) -> None:
            lags = self._arrivals[kind]
            lags.append((seconds, time.monotonic()))
            del lags[:-2000]
            if self._user_sink is not None:
                self._user_sink(kind, seconds, frame)
            if writer is not None:
                writer.write(kind, seconds, frame)

        return take

    async def _stay(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._first_picture.wait()
        except TimeoutError:
            raise ClientError(
                "Connected, but no picture came; see /healthz of the server for the model's state."
            ) from None
        if self._config.seconds is not None:
            await asyncio.sleep(self._config.seconds)
            return
        await self._microphone.played.wait()
        await asyncio.sleep((self._report.latency_ms or 2000) / 1000 + TAIL_S)

    def _finished(self) -> TalkReport:
        report = self._report
        report.seconds = round(max(0.0, time.monotonic() - self._first_picture_s), 3)
        span = self._last_picture_s - self._first_picture_s
        report.fps = round((report.pictures - 1) / span, 2) if span > 0 else 0.0
        report.events = dict(sorted(self._events.items()))
        report.blocks = len(self._block_ms)
        if self._block_ms:
            report.block_ms_p50, report.block_ms_p95 = (
                float(v) for v in np.percentile(self._block_ms, (50, 95)).round(1)
            )
        # Frames that waited for the mapping passed in one go; only later ones tell about arrival.
        lag = {k: [at - s for s, at in v[len(v) // 2 :]] for k, v in self._arrivals.items()}
        if report.aligned and lag["video"] and lag["audio"]:
            skew_s = statistics.median(lag["video"]) - statistics.median(lag["audio"])
            report.arrival_skew_ms = round(1000 * skew_s, 1)
        report.sound_s = round(report.sound_s, 2)
        report.longest_gap_ms = round(report.longest_gap_ms, 1)
        report.first_picture_ms = round(report.first_picture_ms or 0.0, 1)
        report.out = str(self._config.out) if self._config.out is not None else None
        return report


async def _request(config: TalkConfig, method: str, path: str, *, body: Any = None, token: str | None = None) -> Any:
    """One JSON request; `path` is relative to the server's root."""
    headers = {"Content-Type": "application/json"}
    if credential := token or config.api_key:
        headers["Authorization"] = f"Bearer {credential}"
    data = None if body is None else json.dumps(body).encode()
    url = urljoin(config.server.rstrip("/") + "/", path.lstrip("/"))
    return await asyncio.to_thread(_send, urllib.request.Request(url, data, headers, method=method))


def _send(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        try:
            problem = json.loads(error.read())
        except ValueError:
            problem = {}
        wait = error.headers.get("Retry-After")
        hint = f" (try again in {wait} s)" if wait else ""
        raise ClientError(f"{problem.get('code', error.code)}: {problem.get('detail', error.reason)}{hint}") from error
    except (urllib.error.URLError, OSError) as error:
        raise ClientError(f"{request.full_url} was not reached ({error}); is the server running there?") from error
    return json.loads(text) if text else None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m client_demo.client", description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8080", help="root of the server (%(default)s)")
    parser.add_argument("--audio", required=True, type=Path, help="sound file that plays the microphone")
    parser.add_argument("--out", type=Path, help="MP4 to write")
    parser.add_argument("--avatar", help="portrait of the gallery, by id")
    parser.add_argument("--image", type=Path, help="picture file to use as the portrait")
    parser.add_argument("--prompt", default="", help="expression")
    parser.add_argument("--seconds", type=float, help="length from the first picture (default: the whole file)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object on the last line")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    try:
        report = asyncio.run(talk(TalkConfig(**options, api_key=os.environ.get("AVATARCAST_API_KEY"))))
    except KeyboardInterrupt:
        return 130
    except ClientError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        _print(report)
    return 0


def _print(report: TalkReport) -> None:
    rate = f"{report.fps:.1f} fps, longest gap {report.longest_gap_ms:.0f} ms"
    print(f"{report.pictures} pictures in {report.seconds:.1f} s ({rate})")
    print(f"first picture after {report.first_picture_ms:.0f} ms, latency {report.latency_ms or float('nan'):.0f} ms")
    for warning in report.warnings:
        print(f"warning: {warning}")
    if report.out:
        print(f"recorded to {report.out}")


if __name__ == "__main__":
    raise SystemExit(main())

"""WHIP push: pictures and sound arrive at an independent receiver; a target that is gone is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.config import OutputsConfig
from server.output_sinks import Target
from server.outputs import begin_output, read_target
from server.whip_push import WhipOutput
from tests.unit.server.caller import Received, capture_reports
from tests.unit.server.output_scene import Scene
from tests.unit.server.running import running
from tests.unit.server.whip_client import until


class Receiver:
    """A WHIP endpoint made of aiortc: decodes and counts what comes."""

    def __init__(self) -> None:
        self.listening = socket.socket()
        self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listening.bind(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.tokens: list[str] = []
        self.asked_s = 0.0
        self.video, self.audio = Received(), Received()
        self.flashes = self.pictures = 0
        self.loudest = 0.0
        self.deleted = False
        self.refuse_with = 0
        self.connections: list[RTCPeerConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def post(self, request: Request) -> Response:
        self.tokens.append(request.headers.get("authorization", ""))
        if self.refuse_with:
            return Response(status_code=self.refuse_with)
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.connections.append(connection)
        connection.on("track", self._track)
        self.asked_s = time.monotonic()
        await connection.setRemoteDescription(RTCSessionDescription((await request.body()).decode(), "offer"))
        for transceiver in connection.getTransceivers():
            capture_reports(transceiver.receiver, self.video if transceiver.kind == "video" else self.audio)
        await connection.setLocalDescription(await connection.createAnswer())
        headers = {"Location": "/whip/here/one"}
        return Response(connection.localDescription.sdp, 201, headers=headers, media_type="application/sdp")

    async def delete(self, request: Request) -> Response:
        self.deleted = True
        return Response(status_code=200)

    def _track(self, track: MediaStreamTrack) -> None:
        task = asyncio.get_running_loop().create_task(self._drain(track))
        self._tasks.add(task)

    async def _drain(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame: Any = await track.recv()
                received = self.video if track.kind == "video" else self.audio
                received.ticks.append(frame.pts)
                received.arrived_s.append(time.monotonic())
                if track.kind == "video":
                    self.pictures += 1
                    bright = frame.to_ndarray(format="gray").mean()
                    self.flashes += bright > 128
                    received.content.append(bright)
                else:
                    loud = float(np.abs(frame.to_ndarray()).max())
                    self.loudest = max(self.loudest, loud)
                    received.content.append(np.array(loud))

    def figures(self) -> tuple[float, float, list[float]]:
        """First picture after the offer in ms, pictures a second, and flash after beep in ms, aligned by the sender's
        reports; a beep is found by pieces of 20 ms."""
        first_ms = 1000 * (self.video.arrived_s[0] - self.asked_s)
        video_s, audio_s = self.video.wall_s(90_000), self.audio.wall_s(48_000)
        flashes = video_s[np.array(self.video.content) > 128]
        beeps = audio_s[np.array(self.audio.content) > 5000]
        begun = beeps[np.diff(beeps, prepend=-1) > 0.5]
        near = [1000 * (flash - begun[np.abs(begun - flash).argmin()]) for flash in flashes]
        fps = (len(video_s) - 1) / (video_s[-1] - video_s[0])
        return first_ms, float(fps), [float(offset) for offset in near if abs(offset) < 300]

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self.connections))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    routes = [
        Route("/whip/here", made.post, methods=["POST"]),
        Route("/whip/here/one", made.delete, methods=["DELETE"]),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_config=None, timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[made.listening]))
    yield made
    await made.close()
    server.should_exit = True
    await task
    made.listening.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    await made.close()


def push(scene: Scene, url: str) -> WhipOutput:
    target = Target(scheme="whip", url=url, shown="whip://127.0.0.1", host="127.0.0.1")
    output = begin_output(target, scene.broadcast, scene.encoder.request_keyframe, ("127.0.0.0/8",), [])
    assert isinstance(output, WhipOutput)
    return output


async def test_pictures_and_sound_arrive_and_the_end_is_told(scene: Scene, receiver: Receiver) -> None:
    output = push(scene, f"whip://stream%2Fkey@127.0.0.1:{receiver.port}/whip/here")
    await until(lambda: receiver.flashes >= 5 and receiver.loudest > 5000, 15)
    first_ms, fps, offsets = receiver.figures()
    print(f"WHIP push: first picture {first_ms:.0f} ms, {fps:.1f} fps, A/V offset, ms: {np.round(offsets)}")
    assert 23 < fps < 26 and abs(np.median(offsets)) <= 40
    assert output.state == "live"
    assert receiver.tokens == ["Bearer stream/key"]
    assert "key" not in str(output.as_json())
    await output.close()
    assert output.state == "ended"
    assert receiver.deleted


async def test_a_target_that_fails_is_tried_again_and_stalls_nobody(scene: Scene, receiver: Receiver) -> None:
    receiver.refuse_with = 503
    output = push(scene, f"whip://127.0.0.1:{receiver.port}/whip/here")
    await until(lambda: output.attempts >= 2)
    assert output.state == "retrying"
    assert "503" in str(output.reason)
    viewer = scene.broadcast.watch()
    for _ in range(10):
        assert await asyncio.wait_for(viewer.next(), 2) is not None
    viewer.close()
    receiver.refuse_with = 0
    await until(lambda: output.state == "live" and receiver.pictures > 5, 15)
    receiver.refuse_with = 401
    await receiver.connections[0].close()
    await until(lambda: output.state == "failed", 15)
    assert "401" in str(output.reason)
    await output.close()
    assert output.state == "failed"


async def test_a_target_that_does_not_exist_or_is_private_is_told(scene: Scene) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        output = push(scene, f"whip://127.0.0.1:{taken.getsockname()[1]}/")
        await until(lambda: output.attempts >= 2)
        assert output.reason == "The target does not answer."
        await output.close()
    target = Target(scheme="whip", url="whip://127.0.0.1:1/", shown="", host="127.0.0.1")
    refused = begin_output(target, scene.broadcast, scene.encoder.request_keyframe, ("10.0.0.0/8",), [])
    await until(lambda: refused.state == "failed")
    assert "private range" in str(refused.reason)
    await refused.close()


async def test_our_own_whip_door_hears_it(scene: Scene) -> None:
    async with running() as server:
        session = await server.open()
        live = server.hub.find(session["id"])
        assert live is not None
        url = f"whip://127.0.0.1:{server.port}/whip/{session['id']}"
        target = read_target(url, OutputsConfig(allow=("127.0.0.1",)))
        output = begin_output(target, scene.broadcast, scene.encoder.request_keyframe, ("127.0.0.1",), [])
        await until(lambda: output.state == "live", 15)
        await until(lambda: live._publisher is not None and live._publisher.state == "connected")
        await output.close()
        await until(lambda: live._publisher is None)

"""A stream with a flash and a beep at one moment of every second, pushed to one output; run as a program, it records
until it is killed."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import av
import numpy as np

from server.config import EncodeConfig
from server.encoder import SessionEncoder
from server.output_sinks import Target
from server.outputs import Output
from server.tracks import Broadcast
from streaming.clock import RealClock
from streaming.playout import Playout

FPS, SIZE, AT = 25, 64, 12  # the flash is frame 12 of every second


def second_of_pictures() -> np.ndarray:
    frames = np.zeros((FPS, SIZE, SIZE, 3), np.uint8)
    frames[AT] = 255
    return frames


def beeps(low: int, high: int) -> np.ndarray:
    at = np.arange(low, high) % 16_000
    tone = np.sin(2 * np.pi * 1000 * np.arange(low, high) / 16_000)
    return np.where((at >= AT * 640) & (at < (AT + 1) * 640), 0.8 * tone, 0.0).astype(np.float32)


class Scene:
    """One session's media without a session."""

    def __init__(self, seconds: int = 60) -> None:
        clock = RealClock()
        self.playout = Playout(fps=FPS, start_s=clock.now(), portrait=np.zeros((SIZE, SIZE, 3), np.uint8))
        self.playout.begin(first_picture=5, frames_per_block=FPS, read=beeps)
        for second in range(seconds):
            self.playout.add(second * FPS, second_of_pictures(), lambda: None)
        self.encoder = SessionEncoder(width=SIZE, height=SIZE, fps=FPS, config=EncodeConfig())
        self.broadcast = Broadcast(self.playout, self.encoder, clock, send_delay_s=0.02)

    def output(self, target: Target) -> Output:
        return Output(
            target, self.broadcast, keyframe=self.encoder.request_keyframe, allow=("127.0.0.1", "localhost", "::1")
        )

    async def close(self) -> None:
        await self.broadcast.close()
        await self.encoder.close()


def target_of(url: str) -> Target:
    scheme = url.partition(":")[0]
    if scheme == "file":
        return Target(scheme="file", url=url.partition(":")[2], shown="file")
    return Target(scheme=scheme, url=url, shown=scheme, host="127.0.0.1")


def offsets_ms(place: str) -> list[float]:
    """Flash minus beep, for every flash that a beep belongs to."""
    flashes: list[float] = []
    sound: list[tuple[float, np.ndarray]] = []
    with av.open(place) as container:
        lit = False
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                bright = frame.to_ndarray(format="gray").mean() > 128
                if bright and not lit:
                    flashes.append(frame.time)
                lit = bright
            else:
                sound.append((frame.time, np.abs(frame.to_ndarray()[0])))
    found: list[float] = []
    onsets, loud = [], False
    for time_s, samples in sound:
        for at in range(0, len(samples), 64):
            now = samples[at : at + 64].max() > 0.2
            if now and not loud:
                onsets.append(time_s + at / 48_000)
            loud = now or (loud and bool(onsets) and time_s + at / 48_000 - onsets[-1] < 0.2)
    for flash in flashes:
        near = min(onsets, key=lambda onset: abs(onset - flash), default=None)
        if near is not None and abs(near - flash) < 0.5:
            found.append(1000 * (flash - near))
    return found


async def record(path: Path) -> None:
    scene = Scene()
    output = scene.output(target_of(f"file:{path}"))
    while output.state != "live":
        assert output.active, output.reason
        await asyncio.sleep(0.05)
    print("live", time.monotonic(), flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))

"""What a session sends, put in one order: pictures, sound and the ends of utterances, for one reader."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import av
import numpy as np

from client_demo.microphone import ClientError

_PAIR_WAIT_S = 0.15  # one track waits this long for the other before it goes on alone
_MAX_WAITING = 100  # items for a consumer that does not keep up; the oldest is dropped


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture."""

    at_s: float
    """Its moment on `time.monotonic`."""
    frame: av.VideoFrame


@dataclass(frozen=True, slots=True)
class Sound:
    """20 ms of sound, 48 kHz."""

    at_s: float
    """Its moment on `time.monotonic`."""
    frame: av.AudioFrame
    segment: str | None
    """The utterance it belongs to; None while nobody speaks."""

    def pcm(self) -> bytes:
        """Its samples, s16le mono."""
        frame, channels = self.frame, len(self.frame.layout.channels)
        return mono(bytes(frame.planes[0])[: 2 * frame.samples * channels], channels)


@dataclass(frozen=True, slots=True)
class Finished:
    """An utterance has been heard, or was cut off; comes after its last sound."""

    segment: str
    position_ms: int
    interrupted: bool


Item = Picture | Sound | Finished


class Line:
    """Pictures, sound and ends of utterances in the order of their moments, for one reader."""

    def __init__(self) -> None:
        self._first: asyncio.Future[Picture] = asyncio.get_running_loop().create_future()
        self._waiting: dict[type, deque[Picture | Sound]] = {Picture: deque(), Sound: deque()}
        self._spans: deque[tuple[str, float]] = deque()  # utterances that are heard, from their moment on
        self._ends: deque[tuple[float, Finished]] = deque()
        self._changed = asyncio.Event()
        self._is_over = False
        self._error: ClientError | None = None

    def put(self, item: Picture | Sound) -> None:
        waiting = self._waiting[type(item)]
        waiting.append(item)
        if len(waiting) > _MAX_WAITING:
            waiting.popleft()
        if isinstance(item, Picture) and not self._first.done():
            self._first.set_result(item)
        self._changed.set()

    async def first_picture(self) -> Picture:
        """Wait for it; raises what the line failed with."""
        return await self._first

    def begin(self, segment: str, at_s: float) -> None:
        self._spans.append((segment, at_s))

    def finish(self, done: Finished, at_s: float) -> None:
        self._ends.append((at_s, done))
        self._changed.set()

    def silence(self) -> None:
        """What plays is no utterance's any more."""
        self._spans.clear()

    def fail(self, error: ClientError | None) -> None:
        if not self._is_over:
            self._is_over, self._error = True, error
            if not self._first.done():
                self._first.set_exception(error) if error else self._first.cancel()
            self._changed.set()

    async def items(self) -> AsyncIterator[Item]:
        while True:
            self._changed.clear()
            while (item := self._next(time.monotonic())) is not None:
                yield item
            if self._is_over:
                if self._error is not None:
                    raise self._error
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAIR_WAIT_S / 2):  # a lone track's turn comes by time
                    await self._changed.wait()

    def _next(self, now_s: float) -> Item | None:
        heads = [waiting[0] for waiting in self._waiting.values() if waiting]
        head = min(heads, key=lambda item: item.at_s, default=None)
        if self._ends and (self._ends[0][0] <= (now_s - _PAIR_WAIT_S if head is None else head.at_s)):
            return self._finished()
        if head is None or (len(heads) < 2 and head.at_s > now_s - _PAIR_WAIT_S):
            return None
        self._waiting[type(head)].popleft()
        return head if isinstance(head, Picture) else self._with_segment(head)

    def _with_segment(self, sound: Sound) -> Sound:
        segment = next((name for name, since_s in self._spans if since_s <= sound.at_s), None)
        return Sound(sound.at_s, sound.frame, segment)

    def _finished(self) -> Finished:
        _, done = self._ends.popleft()
        while self._spans and any(name == done.segment for name, _ in self._spans):
            self._spans.popleft()
        return done


def mono(pcm: bytes, channels: int) -> bytes:
    """The mean of interleaved s16le channels."""
    if channels == 1:
        return pcm
    return np.frombuffer(pcm, "<i2").reshape(-1, channels).mean(axis=1).astype("<i2").tobytes()

"""Outbound media: pictures and sound pulled from playout in real time, encoded once, sent to every viewer on one clock.

A `Broadcast` belongs to one session. While anybody watches, two tasks pull what is due from playout: pictures go
through the session's encoder, sound through its Opus encoder. Everything leaves `send_delay` after its presentation
time, which is room for encoding: so a picture and the sound that drove it leave at the same moment, as the receiver's
synchronisation (RTCP sender reports: last timestamp sent, at what wall time) needs. Nothing here ever waits for a slow
viewer; its queue is bounded and it loses what it cannot take.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import Packet

from server.encoder import EncodedPicture, SessionEncoder, Viewer
from server.opus import OpusEncoder
from streaming.clock import Clock
from streaming.playout import PIECE_S, Picture, Playout, Sound

log = logging.getLogger(__name__)

MAX_WAITING_SOUNDS = 25
"""Pieces of sound (half a second) that may wait for one listener; the oldest are dropped."""
LAG_KEEP = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSound:
    """A piece of sound and when it should leave."""

    sound: Sound
    packet: Packet
    """The piece as Opus, the same for everybody."""
    due_s: float


class Listener:
    """One receiver of a session's sound."""

    def __init__(self, leave: Callable[[Listener], None]) -> None:
        self._leave = leave
        self._waiting: deque[TimedSound] = deque(maxlen=MAX_WAITING_SOUNDS)
        self._arrived = asyncio.Event()
        self._closed = False

    async def next(self) -> TimedSound | None:
        """The next piece as soon as it is there; None once closed."""
        while not self._waiting:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """Receive nothing more."""
        self._closed = True
        self._waiting.clear()
        self._arrived.set()
        self._leave(self)

    def _offer(self, sound: TimedSound) -> None:
        self._waiting.append(sound)
        self._arrived.set()


class Lag:
    """How much later than their time things left, recently."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=LAG_KEEP)

    def add(self, seconds: float) -> None:
        """One more departure."""
        self._values.append(seconds)

    @property
    def mean_s(self) -> float | None:
        """Mean in seconds; None before the first departure."""
        return sum(self._values) / len(self._values) if self._values else None


class Broadcast:
    """One session's outgoing media.

    Args:
        playout: where pictures and sound are pulled from; this is its only puller.
        encoder: the session's encoder.
        clock: the clock that playout runs on.
        send_delay_s: room for encoding.
        on_picture: called with every picture that left to its first viewer, and when.
    """

    def __init__(
        self,
        playout: Playout,
        encoder: SessionEncoder,
        clock: Clock,
        *,
        send_delay_s: float,
        on_picture: Callable[[int, float], None] = lambda index, now_s: None,
    ) -> None:
        self._playout = playout
        self._encoder = encoder
        self._clock = clock
        self._send_delay_s = send_delay_s
        self._on_picture = on_picture
        self._opus = OpusEncoder()
        self._listeners: set[Listener] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last_left = -1
        self._on_sounds: list[Callable[[float], None]] = []
        self._video_lag, self._audio_lag = Lag(), Lag()
        self._closed = False

    @property
    def av_drift_s(self) -> float:
        """Picture minus sound where they leave, mean of the last ten seconds; 0 without both."""
        video, audio = self._video_lag.mean_s, self._audio_lag.mean_s
        return 0.0 if video is None or audio is None else video - audio

    @property
    def watched(self) -> bool:
        """Whether anybody receives."""
        return bool(self._listeners) or self._encoder.viewers > 0

    def watch(self) -> Viewer:
        """Receive pictures from now on."""
        viewer = self._encoder.subscribe()
        if not self._closed:
            self._wake()
        return viewer

    def listen(self) -> Listener:
        """Receive sound from now on."""
        listener = Listener(self._listeners.discard)
        if self._closed:
            listener.close()
            return listener
        self._listeners.add(listener)
        self._wake()
        return listener

    async def close(self) -> None:
        """Stop pulling and let everybody go. The encoder stays its owner's."""
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for listener in list(self._listeners):
            listener.close()

    def left(self, kind: str, due_s: float, picture: EncodedPicture | None = None) -> None:
        """Note a departure; called by the tracks."""
        now = self._clock.now()
        (self._video_lag if kind == "video" else self._audio_lag).add(now - due_s)
        if picture is not None and picture.index > self._last_left:
            self._last_left = picture.index
            self._on_picture(picture.index, now)

    def on_next_sound(self, callback: Callable[[float], None]) -> None:
        """Call back once with the time at which the next piece of sound leaves; never if nobody listens."""
        if self._listeners:
            self._on_sounds.append(callback)

    async def until(self, due_s: float) -> None:
        """Wait until something should leave."""
        if due_s > self._clock.now():
            await self._clock.sleep_until(due_s)

    def _wake(self) -> None:
        """Start pulling. The tasks end by themselves when nobody is left, so an unwatched session costs nothing."""
        for name, pull in (("pictures", self._pull_pictures), ("sound", self._pull_sound)):
            task = self._tasks.get(name)
            if task is None or task.done():
                self._tasks[name] = asyncio.get_running_loop().create_task(pull(), name=f"pull {name}")
                self._tasks[name].add_done_callback(_report)

    async def _pull_pictures(self) -> None:
        while self.watched:
            await self._clock.sleep_until(self._playout.next_picture_s)
            picture = self._playout.frame_due(self._clock.now())
            if picture is not None and self._encoder.viewers:
                self._encoder.submit(picture.image, picture.index, self._picture_leaves_s(picture))

    async def _pull_sound(self) -> None:
        while self.watched:
            await self._clock.sleep_until(self._playout.next_sound_s)
            while (sound := self._playout.next_audio(self._clock.now())) is not None:
                timed = TimedSound(sound=sound, packet=self._opus.encode(sound), due_s=self._sound_leaves_s(sound))
                while self._on_sounds:
                    self._on_sounds.pop()(max(timed.due_s, self._clock.now()))
                for listener in self._listeners:
                    listener._offer(timed)

    def _picture_leaves_s(self, picture: Picture) -> float:
        return self._playout.start_s + picture.index / self._playout.fps + self._send_delay_s

    def _sound_leaves_s(self, sound: Sound) -> float:
        return self._playout.start_s + sound.index * PIECE_S + self._send_delay_s


def _report(task: asyncio.Task[None]) -> None:
    """A pull that fails leaves its viewers without pictures; say so at once."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)


class VideoTrack(MediaStreamTrack):
    """The session's H264 packets for one peer. It begins with the first `recv`, that is when the peer is connected.

    Args:
        broadcast: the session's.
        on_first: called when the first picture leaves.
    """

    kind = "video"

    @property
    def dropped(self) -> int:
        """Packets lost because the receiver was too slow."""
        return self._viewer.dropped if self._viewer is not None else 0

    def __init__(self, broadcast: Broadcast, on_first: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._broadcast = broadcast
        self._on_first: Callable[[], None] | None = on_first
        self._viewer: Viewer | None = None

    async def recv(self) -> Packet:
        """The next packet, when it should leave.

        Raises:
            MediaStreamError: the track or the session has ended.
        """
        if self.readyState != "live":
            raise MediaStreamError
        if self._viewer is None:
            self._viewer = self._broadcast.watch()
        picture = await self._viewer.next()
        if picture is None:
            self.stop()
            raise MediaStreamError
        await self._broadcast.until(picture.due_s)
        self._broadcast.left("video", picture.due_s, picture)
        if self._on_first is not None:
            on_first, self._on_first = self._on_first, None
            on_first()
        return picture.packet

    def stop(self) -> None:
        """End the track."""
        super().stop()
        if self._viewer is not None:
            self._viewer.close()


class AudioTrack(MediaStreamTrack):
    """The session's sound for one peer: an Opus packet every 20 ms. It begins with the first `recv`."""

    kind = "audio"

    def __init__(self, broadcast: Broadcast) -> None:
        super().__init__()
        self._broadcast = broadcast
        self._listener: Listener | None = None

    async def recv(self) -> Packet:
        """The next packet, when it should leave.

        Raises:
            MediaStreamError: the track or the session has ended.
        """
        if self.readyState != "live":
            raise MediaStreamError
        if self._listener is None:
            self._listener = self._broadcast.listen()
        timed = await self._listener.next()
        if timed is None:
            self.stop()
            raise MediaStreamError
        await self._broadcast.until(timed.due_s)
        self._broadcast.left("audio", timed.due_s)
        return timed.packet

    def stop(self) -> None:
        """End the track."""
        super().stop()
        if self._listener is not None:
            self._listener.close()

"""One H264 encoder a session, on its own thread, its packets handed to any number of viewers.

libx264 through PyAV: zerolatency, no B-frames; bitrate, rate buffer, key-frame distance, profile and preset from the
configuration. Parameter sets stand in every key frame, so a viewer may begin at any of them. The event loop only
hands pictures over and receives packets; conversion to YUV and encoding happen on the thread.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType

from server.config import EncodeConfig

log = logging.getLogger(__name__)

VIDEO_CLOCK_HZ = 90_000
TIME_BASE = Fraction(1, VIDEO_CLOCK_HZ)
KEYFRAME_SPACING_S = 0.2
"""Key frames asked for by viewers come no closer than this; requests between are joined into one."""
MAX_WAITING_PICTURES = 8
"""Pictures that may wait for the encoder; more means it cannot keep up, and the oldest is dropped."""
MAX_WAITING_PACKETS = 50
"""Packets that may wait for one viewer (two seconds); a slower one loses all of them and starts at a key frame."""

_BT601, _BT709, _LIMITED = 6, 1, 1  # libavutil's numbers: matrix smpte170m, primaries and transfer bt709, 16-235


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPicture:
    """One picture as it travels."""

    index: int
    """Picture number on the session's clock."""
    due_s: float
    """Monotonic time at which it should leave."""
    packet: av.Packet
    """H264 in Annex B, `pts` in 1/90000."""
    keyframe: bool
    """Whether a viewer can begin here."""


class H264Encoder:
    """Pictures in, packets out; knows no threads.

    Args:
        width, height: size in pixels, even.
        fps: pictures a second.
        config: rate, distance of key frames, profile, preset.
    """

    def __init__(self, *, width: int, height: int, fps: int, config: EncodeConfig) -> None:
        self._ticks = VIDEO_CLOCK_HZ // fps
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height = width, height
        context.pix_fmt = "yuv420p"
        context.framerate = Fraction(fps, 1)
        context.time_base = TIME_BASE
        context.bit_rate = config.bitrate_kbps * 1000
        context.gop_size = max(1, round(config.gop_s * fps))
        context.max_b_frames = 0
        context.profile = config.profile.capitalize()
        context.thread_count = config.threads
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries = context.color_trc = _BT709
        kbits = round(config.bitrate_kbps * config.vbv_s)
        context.options = {
            "preset": config.preset,
            "tune": "zerolatency",
            "x264-params": f"vbv-maxrate={config.bitrate_kbps}:vbv-bufsize={kbits}:scenecut=0",
        }
        self._context = context

    def encode(self, picture: np.ndarray, index: int, *, keyframe: bool = False) -> av.Packet:
        """Encode one picture.

        Args:
            picture: [height, width, 3] uint8 RGB.
            index: picture number; must rise from call to call.
            keyframe: whether a viewer must be able to begin here.

        Returns:
            One packet in Annex B with `pts` in 1/90000 (zerolatency: every picture gives its packet at once).
        """
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=_BT601, dst_color_range=_LIMITED
        )
        frame.pts = index * self._ticks
        frame.time_base = TIME_BASE
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        packets = self._context.encode(frame)
        assert len(packets) == 1, f"zerolatency gave {len(packets)} packets"
        packets[0].time_base = TIME_BASE
        return packets[0]


class Viewer:
    """One receiver of a session's pictures. Begins at a key frame; too slow, it begins again at the next one."""

    def __init__(self, encoder: SessionEncoder) -> None:
        self._encoder = encoder
        self._waiting: deque[EncodedPicture] = deque()
        self._arrived = asyncio.Event()
        self._at_keyframe = False
        self._closed = False
        self.dropped = 0
        """Packets this viewer lost because it was too slow."""

    async def next(self) -> EncodedPicture | None:
        """The next picture as soon as it is there; None once the viewer or the encoder is closed."""
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
        self._encoder._leave(self)

    def _offer(self, picture: EncodedPicture) -> None:
        if not self._at_keyframe and not picture.keyframe:
            return
        self._at_keyframe = True
        if len(self._waiting) >= MAX_WAITING_PACKETS:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._at_keyframe = picture.keyframe
            if not picture.keyframe:
                self._encoder.request_keyframe()
                return
        self._waiting.append(picture)
        self._arrived.set()


class SessionEncoder:
    """The encoder of one session: its thread and its viewers. All methods belong to the event loop.

    Args:
        width, height, fps, config: as for `H264Encoder`.
        name: for the thread's name.
        on_encoded: called on the loop with the seconds of work of each picture.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        fps: int,
        config: EncodeConfig,
        name: str = "session",
        on_encoded: Callable[[float], None] = lambda seconds: None,
        on_keyframe_request: Callable[[], None] = lambda: None,
    ) -> None:
        self._make = lambda kbps: H264Encoder(
            width=width, height=height, fps=fps, config=replace(config, bitrate_kbps=kbps)
        )
        self._kbps = config.bitrate_kbps
        self._loop = asyncio.get_running_loop()
        self._on_encoded = on_encoded
        self._on_keyframe_request = on_keyframe_request
        self._viewers: set[Viewer] = set()
        self._inbox: queue.Queue[tuple[np.ndarray, int, float] | None] = queue.Queue(MAX_WAITING_PICTURES)
        self._keyframe = threading.Event()
        self._closed = False
        self.encoded = 0
        """Pictures encoded; one a picture, however many viewers there are."""
        self.dropped = 0
        """Pictures dropped because the encoder could not keep up."""
        self.keyframes = 0
        """Key frames made."""
        self._thread = threading.Thread(target=self._run, name=f"encode-{name}", daemon=True)
        self._thread.start()

    @property
    def viewers(self) -> int:
        """How many receive."""
        return len(self._viewers)

    def subscribe(self) -> Viewer:
        """Add a viewer; a key frame for it is made at once."""
        viewer = Viewer(self)
        if self._closed:
            viewer.close()
            return viewer
        self._viewers.add(viewer)
        self._keyframe.set()
        return viewer

    def request_keyframe(self) -> None:
        """A viewer lost its picture and needs a key frame soon."""
        self._on_keyframe_request()
        self._keyframe.set()

    @property
    def bitrate_kbps(self) -> int:
        """The rate that pictures are encoded with from now on."""
        return self._kbps

    def set_bitrate(self, kbps: int) -> None:
        """Encode with another rate from the next picture on, which is a key frame: the encoder is made anew."""
        self._kbps = kbps

    def submit(self, picture: np.ndarray, index: int, due_s: float) -> None:
        """Hand one picture over; never waits.

        Args:
            picture: [height, width, 3] uint8 RGB; not to be changed afterwards.
            index: rising picture number.
            due_s: monotonic time at which its packet should leave.
        """
        if self._closed:
            return
        try:
            self._inbox.put_nowait((picture, index, due_s))
        except queue.Full:
            self.dropped += 1
            try:
                self._inbox.get_nowait()
            except queue.Empty:
                pass
            self._inbox.put_nowait((picture, index, due_s))

    async def close(self) -> None:
        """Stop the thread and let every viewer go."""
        if not self._closed:
            self._closed = True
            for viewer in list(self._viewers):
                viewer.close()
            while True:
                try:
                    self._inbox.put_nowait(None)
                    break
                except queue.Full:
                    try:
                        self._inbox.get_nowait()
                    except queue.Empty:
                        continue
        while self._thread.is_alive():
            await self._loop.run_in_executor(None, self._thread.join, 1.0)

    def _leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)

    def _run(self) -> None:
        """The thread: encode until the end marker comes."""
        kbps = self._kbps
        encoder = self._make(kbps)
        last_keyframe_s = -KEYFRAME_SPACING_S
        while (item := self._inbox.get()) is not None:
            picture, index, due_s = item
            if kbps != self._kbps:
                kbps = self._kbps
                encoder = self._make(kbps)
            began, cpu = time.monotonic(), time.thread_time()
            wanted = self._keyframe.is_set() and began - last_keyframe_s >= KEYFRAME_SPACING_S
            if wanted:
                self._keyframe.clear()
            try:
                packet = encoder.encode(picture, index, keyframe=wanted)
            except av.FFmpegError:
                log.exception("encoder failed at picture %d; a new one takes over", index)
                encoder = self._make(kbps)
                continue
            if packet.is_keyframe:
                last_keyframe_s = began
            result = EncodedPicture(index=index, due_s=due_s, packet=packet, keyframe=bool(packet.is_keyframe))
            try:
                self._loop.call_soon_threadsafe(self._publish, result, time.thread_time() - cpu)
            except RuntimeError:  # the loop is closed; nobody is left to send to
                return

    def _publish(self, picture: EncodedPicture, seconds: float) -> None:
        self.encoded += 1
        self.keyframes += picture.keyframe
        self._on_encoded(seconds)
        for viewer in list(self._viewers):
            viewer._offer(picture)


def measure_encode_s(*, width: int, height: int, fps: int, config: EncodeConfig, pictures: int = 12) -> float:
    """Seconds of one core that `pictures` moving pictures of this size take; for admission, at start-up."""
    encoder = H264Encoder(width=width, height=height, fps=fps, config=config)
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    encoder.encode(base, 0)
    began = time.thread_time()
    for index in range(1, pictures + 1):
        encoder.encode(np.roll(base, 2 * index, axis=1), index)
    return time.thread_time() - began

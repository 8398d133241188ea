"""What comes back from a session, kept with the sender's timestamps and written to an MP4.

The two tracks of a connection count time from unrelated random origins. RTCP sender reports tie each to one wall
clock (RFC 3550 section 6.4.1), and that is how a browser brings picture and sound together; this does the same, so the
offset between lips and sound in the file is the one that the server sent, not one of arrival.

aiortc keeps neither the reports nor the origin in public; `SenderClock` is the one place that reaches for them.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
from aiortc import RTCRtpReceiver
from aiortc.clock import datetime_from_ntp
from aiortc.rtp import RtcpSrPacket, RtpPacket

Frame = av.VideoFrame | av.AudioFrame

REPORTS_WANTED = 3
"""Sender reports per track before the mapping is fixed; their median outvotes one that was sent late."""
WAIT_S = 5.0
"""After this time with fewer reports, what is there must do."""


class SenderClock:
    """Maps a track's timestamps to the sender's wall clock.

    Args:
        receiver: the track's receiver, before media flow.
        rate_hz: the RTP clock: 90000 for video, 48000 for Opus.
    """

    def __init__(self, receiver: RTCRtpReceiver, rate_hz: int) -> None:
        self._receiver, self._rate_hz = receiver, rate_hz
        self._reports: list[tuple[int, float]] = []  # (RTP timestamp, sender's seconds)
        handle = receiver._handle_rtcp_packet

        async def handle_and_keep(packet: object) -> None:
            if isinstance(packet, RtcpSrPacket):
                info = packet.sender_info
                self._reports.append((info.rtp_timestamp, datetime_from_ntp(info.ntp_timestamp).timestamp()))
                del self._reports[:-1000]
            await handle(packet)

        receiver._handle_rtcp_packet = handle_and_keep  # type: ignore[method-assign]

    @property
    def num_reports(self) -> int:
        return len(self._reports)

    def zero_s(self) -> float | None:
        """The sender's wall clock at which the frame with `pts` 0 is presented; None before the first report."""
        origin = self._receiver._RTCRtpReceiver__timestamp_mapper._origin
        if origin is None or not self._reports:
            return None
        zeros = [sent_s - _since(origin, timestamp) / self._rate_hz for timestamp, sent_s in self._reports]
        return statistics.median(zeros)


class ArrivalClock:
    """Maps a track's timestamps to this machine's clock, at once: by the packet that was on its way the shortest.

    Args:
        receiver: the track's receiver, before media flow.
        rate_hz: the RTP clock: 90000 for video, 48000 for Opus.
    """

    def __init__(self, receiver: RTCRtpReceiver, rate_hz: int) -> None:
        self._receiver, self._rate_hz = receiver, rate_hz
        self._first: int | None = None  # RTP timestamp of the first packet
        self._zero_s = float("inf")  # when the first packet would have come at the best
        handle = receiver._handle_rtp_packet

        async def note_and_handle(packet: RtpPacket, arrival_time_ms: int) -> None:
            self._note(packet.timestamp, time.monotonic())
            await handle(packet, arrival_time_ms)

        receiver._handle_rtp_packet = note_and_handle  # type: ignore[method-assign]

    def _note(self, timestamp: int, now_s: float) -> None:
        self._first = timestamp if self._first is None else self._first
        # The bound creeps up by 1 ms a second, so that two machines' clocks may drift apart.
        self._zero_s = min(self._zero_s + 1e-5, now_s - _since(self._first, timestamp) / self._rate_hz)

    def at_s(self, frame_s: float) -> float:
        """The moment, on `time.monotonic`, of a frame that has come.

        Args:
            frame_s: its `time`.
        """
        origin = self._receiver._RTCRtpReceiver__timestamp_mapper._origin
        assert origin is not None and self._first is not None
        return self._zero_s + _since(self._first, origin) / self._rate_hz + frame_s


def _since(origin: int, timestamp: int) -> int:
    """RTP units from `origin` to `timestamp`, both 32 bits wide and wrapping."""
    difference = (timestamp - origin) & 0xFFFFFFFF
    return difference - (1 << 32) if difference >= 1 << 31 else difference


class Alignment:
    """Turns frames of both tracks into (seconds, frame) on one time line that begins with the first picture.

    Frames wait until both tracks' sender reports have come; after that each goes straight through.

    Args:
        clocks: one per kind, `video` and `audio`.
        sink: called with kind, seconds and frame, per kind in order.
    """

    def __init__(self, clocks: dict[str, SenderClock], sink: Callable[[str, float, Frame], None]) -> None:
        self._clocks, self._sink = clocks, sink
        self._waiting: list[tuple[str, Frame]] = []
        self._zeros: dict[str, float] | None = None
        self._first_s: float | None = None
        self.exact = False
        """Whether sender reports of both tracks made the mapping; without them both are taken to start together."""

    def add(self, kind: str, frame: Frame, now_s: float) -> None:
        """Take one frame that arrived at `now_s`."""
        self._first_s = now_s if self._first_s is None else self._first_s
        if self._zeros is not None:
            self._pass(kind, frame)
            return
        self._waiting.append((kind, frame))
        if (
            all(clock.num_reports >= REPORTS_WANTED for clock in self._clocks.values())
            or now_s - self._first_s > WAIT_S
        ):
            self.settle()

    def settle(self) -> None:
        """Fix the mapping with the reports there are, and let the waiting frames through."""
        if self._zeros is not None:
            return
        zeros = {kind: clock.zero_s() for kind, clock in self._clocks.items()}
        self.exact = None not in zeros.values()
        known = {kind: zero if self.exact and zero is not None else 0.0 for kind, zero in zeros.items()}
        start = min((known[kind] + frame.time for kind, frame in self._waiting if kind == "video"), default=0.0)
        self._zeros = {kind: zero - start for kind, zero in known.items()}
        waiting, self._waiting = self._waiting, []
        for kind, frame in waiting:
            self._pass(kind, frame)

    def _pass(self, kind: str, frame: Frame) -> None:
        assert self._zeros is not None
        self._sink(kind, self._zeros[kind] + frame.time, frame)


class Mp4Writer:
    """Encodes pictures and sound to an MP4 on its own thread; memory does not grow with length.

    Args:
        path: the file; its folder must exist.
        fps: nominal picture rate, for the encoder's rate control only; timestamps are kept as they come.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, fps: int) -> None:
        self._container = av.open(str(path), "w", format="mp4")
        self._fps = fps
        self._items: queue.Queue[tuple[str, float, Frame] | None] = queue.Queue(maxsize=500)
        self._video: av.VideoStream | None = None
        self._audio = self._container.add_stream("aac", rate=48_000)
        self._audio.layout = "mono"
        self._resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=1024)
        self._audio_end = 0
        self._last_video = -1
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="mp4-writer", daemon=True)
        self._thread.start()

    def write(self, kind: str, seconds: float, frame: Frame) -> None:
        """Queue one frame; frames before second 0 are left out."""
        if seconds > -0.0005 and self._error is None:
            self._items.put((kind, max(0.0, seconds), frame))

    def close(self) -> None:
        """Finish the file.

        Raises:
            Exception: what the encoder or the disk failed with.
        """
        self._items.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            started = False
            early: list[tuple[str, float, Frame]] = []
            while (item := self._items.get()) is not None:
                started = started or item[0] == "video"
                if not started:  # the file's header needs the picture's size
                    early.append(item)
                    continue
                for each in [item, *early] if early else [item]:
                    self._encode(*each)
                early = []
            self._finish()
        except Exception as error:  # a thread's boundary: `close` raises it where somebody listens
            self._error = error
            while self._items.get() is not None:
                pass

    def _encode(self, kind: str, seconds: float, frame: Frame) -> None:
        if isinstance(frame, av.VideoFrame):
            self._encode_picture(seconds, frame)
        else:
            self._encode_sound(seconds, frame)

    def _encode_picture(self, seconds: float, frame: av.VideoFrame) -> None:
        if self._video is None:
            self._video = self._container.add_stream(
                "libx264", rate=self._fps, options={"preset": "veryfast", "crf": "16"}
            )
            self._video.width, self._video.height, self._video.pix_fmt = frame.width, frame.height, "yuv420p"
            self._video.codec_context.time_base = Fraction(1, 90_000)
        pts = round(seconds * 90_000)
        if pts <= self._last_video:
            return
        self._last_video = frame.pts = pts
        frame.time_base = Fraction(1, 90_000)
        frame.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._video.encode(frame))

    def _encode_sound(self, seconds: float, frame: av.AudioFrame) -> None:
        """Gaps (lost packets, a server that was away) become silence, so that what follows keeps its place."""
        gap = round(seconds * 48_000) - self._audio_end
        if gap > 480:
            self._feed(_silence(gap))
        self._feed(frame)

    def _feed(self, frame: av.AudioFrame) -> None:
        self._audio_end += round(frame.samples * 48_000 / frame.sample_rate)
        frame.pts = None
        for piece in self._resampler.resample(frame):
            self._container.mux(self._audio.encode(piece))

    def _finish(self) -> None:
        for stream in (self._video, self._audio):
            if stream is not None:
                self._container.mux(stream.encode(None))
        self._container.close()


def _silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="s16", layout="stereo", samples=samples)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate = 48_000
    return frame

"""Where an output's packets go: a file, or an FFmpeg process that carries them to a network target.

PyAV could push RTMP by itself, but a target that accepts and never answers blocks it inside FFmpeg with the interpreter
lock held, and that stops the whole server. A process can be waited for with a limit, and killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from server.encoder import TIME_BASE, EncodedPicture
from streaming.playout import Sound
from streaming.resample import OUT_RATE_HZ

STALL_S = 5.0
"""Longest time a target may take no data before it is dropped."""
CONNECT_S = 10.0
"""Longest time a target may take to accept the stream."""
SOUND_BITRATE = 96_000
_KILL_SAFE = {
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"},
    "matroska": {"cluster_time_limit": "1000"},
}
_FORMATS = {"rtmp": ["-f", "flv"], "rtmps": ["-f", "flv"], "srt": ["-f", "mpegts"]}
_FORMATS["rtsp"] = ["-f", "rtsp", "-rtsp_transport", "tcp"]


class SinkError(Exception):
    """The target does not take the stream; the text says why and holds no address.

    Args:
        reason: one sentence.
        lasting: whether another attempt is useless.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an output goes, already checked."""

    scheme: str
    """rtmp, rtmps, rtsp, srt, whip, whips or file."""
    url: str
    """The full address, secrets included; the file's path for `file`."""
    shown: str
    """What may be told: scheme and host, or the file's name."""
    host: str = ""
    """Host name or address; empty for a file."""


class Muxer:
    """H264 packets as they are and sound as AAC in one container, timed from the first key frame.

    Args:
        place: a path or a writable object.
        format: container's name in FFmpeg.
        first: the key frame that the stream begins with.
    """

    def __init__(self, place: object, format: str, first: EncodedPicture) -> None:
        options = _KILL_SAFE.get(format, {}) | {"flush_packets": "1"}
        self._container = av.open(place, "w", format=format, options=options)
        with av.open(BytesIO(bytes(first.packet)), format="h264") as probe:
            self._video = self._container.add_stream_from_template(probe.streams.video[0])
        self._video.time_base = TIME_BASE
        self._audio = self._container.add_stream("aac", rate=OUT_RATE_HZ, layout="mono")
        self._audio.bit_rate = SOUND_BITRATE
        self._start_ticks = int(first.packet.pts or 0)
        self._start_samples = round(self._start_ticks * TIME_BASE * OUT_RATE_HZ)
        self._next_sample = 0

    def picture(self, picture: EncodedPicture) -> None:
        """Write one picture."""
        packet = av.Packet(bytes(picture.packet))
        packet.pts = packet.dts = int(picture.packet.pts or 0) - self._start_ticks
        packet.time_base = TIME_BASE
        packet.is_keyframe = picture.keyframe
        packet.stream = self._video
        self._container.mux(packet)

    def sound(self, sound: Sound) -> None:
        """Write 20 ms of sound; what is missing before it becomes silence, what is older than the start is left out."""
        begin = sound.pts - self._start_samples
        if begin + len(sound.pcm) <= self._next_sample:
            return
        pcm = sound.pcm[max(0, self._next_sample - begin) :]
        for at in range(self._next_sample, begin, OUT_RATE_HZ):
            self._encode(np.zeros(min(OUT_RATE_HZ, begin - at), np.int16))
        self._encode(pcm)

    def _encode(self, pcm: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = OUT_RATE_HZ, self._next_sample, Fraction(1, OUT_RATE_HZ)
        self._next_sample += len(pcm)
        self._container.mux(self._audio.encode(frame))

    def close(self) -> None:
        """Finish the container."""
        try:
            self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()


class FileSink:
    """A recording that stays playable when the process is killed: MP4 in fragments of a second, or Matroska.

    Raises:
        SinkError: the file cannot be written.
    """

    live = True
    failed: OSError | None = None

    def __init__(self, target: Target, first: EncodedPicture) -> None:
        path = Path(target.url)
        try:
            self.muxer = Muxer(str(path), "mp4" if path.suffix == ".mp4" else "matroska", first)
        except OSError as error:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> SinkError:
        """The reason behind a failed write."""
        return SinkError(f"The file cannot be written: {error.strerror or 'unknown reason'}.", lasting=True)

    def close(self) -> None:
        """Finish the file."""
        self.muxer.close()


class ProcessSink:
    """A network target behind an FFmpeg process, fed with FLV: that carries the codec headers RTSP wants first.

    Raises:
        SinkError: the process does not start.
    """

    def __init__(self, target: Target, first: EncodedPicture) -> None:
        command = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-stats_period", "0.5"]
        command += ["-progress", "pipe:1", "-fflags", "nobuffer", "-analyzeduration", "500000"]
        command += ["-f", "flv", "-i", "pipe:0", "-c", "copy", *_FORMATS[target.scheme], target.url]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        except OSError as error:
            raise SinkError("The ffmpeg program is missing; install the package ffmpeg.", lasting=True) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            os.set_blocking(stream.fileno(), False)
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._began_s = time.monotonic()
        self.live = False
        """Whether the target has taken part of the stream."""
        self.failed: OSError | None = None
        """Why nothing more can be written; None while all is well."""
        self.muxer = Muxer(self, "flv", first)

    def write(self, data: bytes) -> int:
        """Hand bytes to the process; called by the muxer, which takes no errors, so one is kept in `failed`."""
        if self.failed is None:
            try:
                self._write(data)
            except OSError as error:
                self.failed = error
        return len(data)

    def _write(self, data: bytes) -> None:
        self._look()
        rest = memoryview(data)
        until_s = time.monotonic() + STALL_S
        while rest:
            if not select.select([], [self._in], [], max(0.0, until_s - time.monotonic()))[1]:
                raise TimeoutError("The target took nothing for too long.")
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._in, rest) :]

    def _look(self) -> None:
        """Note from the process's progress whether the target takes the stream."""
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._out, 65_536).decode(errors="replace").splitlines():
                name, _, value = line.partition("=")
                self.live = self.live or (name == "total_size" and value.isdigit() and int(value) > 0)
                self.live = self.live or (name == "frame" and value.strip().isdigit() and int(value) > 0)
        if not self.live and time.monotonic() - self._began_s > CONNECT_S:
            raise TimeoutError("The target did not accept the stream in time.")

    def explain(self, error: OSError) -> SinkError:
        """The reason behind a failed write, as the process tells it, without the address."""
        if isinstance(error, TimeoutError):
            return SinkError(str(error))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        assert self._process.stderr
        lines = (self._process.stderr.read() or b"").decode(errors="replace").strip().splitlines()
        text = " ".join(lines)
        if "Protocol not found" in text:
            return SinkError("This ffmpeg lacks the protocol; install the package ffmpeg of Debian.", lasting=True)
        said = lines[-1].rsplit(": ", 1)[-1][:120] if lines else "the connection ended"
        return SinkError(f"The target does not take the stream: {said}.")

    def close(self) -> None:
        """End the stream, and the process whatever happens."""
        try:
            with contextlib.suppress(OSError):
                self.muxer.close()
            assert self._process.stdin
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
        finally:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()


def open_sink(target: Target, first: EncodedPicture) -> FileSink | ProcessSink:
    """The sink of a target, begun with a key frame.

    Raises:
        SinkError: it cannot be opened.
    """
    return FileSink(target, first) if target.scheme == "file" else ProcessSink(target, first)

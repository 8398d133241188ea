"""Reading sound and video files and writing MP4: H264 pictures and AAC sound, interleaved as they come.

Sound keeps its own rate up to 48 kHz, and mono or stereo. Pictures and sound both start at 0, and every piece of sound
is written up to the pictures it belongs to, so nothing has to be held in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.errors import MediaFileError

SILENCE = 0.001
"""Samples that stay within this much of full scale are silence: -60 dBFS."""
_AAC_RATES_HZ = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
_BAD_PACKETS = 50  # this many damaged packets in a row are the end of a file


def read_sound(path: Path) -> Iterator[av.AudioFrame]:
    """Decode a file's first sound track; damaged packets are passed over.

    Raises:
        MediaFileError: it cannot be read, or has no sound.
    """
    with _open(path) as container:
        bad = 0
        for packet in container.demux(audio=0):
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.FFmpegError:
                bad += 1
                if bad > _BAD_PACKETS:
                    return
                continue
            bad = 0 if frames else bad
            for frame in frames:
                if isinstance(frame, av.AudioFrame) and frame.samples:
                    yield frame


def sound_length_s(path: Path) -> float | None:
    """Length that the file states; None if it does not.

    Raises:
        MediaFileError: as `read_sound`.
    """
    with _open(path) as container:
        stream = container.streams.audio[0]
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        return None if container.duration is None else container.duration / av.time_base


def sound_start_s(path: Path) -> float | None:
    """When a file's first audible sound comes; None if it is silent from end to end.

    Reads no further than that, so an hours-long file costs nothing unless it is silent.

    Raises:
        MediaFileError: as `read_sound`, or not one sample can be read.
    """
    read_s = 0.0
    to_float = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
    for frame in read_sound(path):
        length_s = frame.samples / frame.sample_rate
        try:
            pieces = to_float.resample(frame)
        except ValueError:  # the form changed within the file
            to_float = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            pieces = to_float.resample(frame)
        for piece in pieces:
            loud = np.flatnonzero(np.abs(piece.to_ndarray()[0]) > SILENCE)
            if len(loud):
                return read_s + float(loud[0]) / SAMPLE_RATE_HZ
        read_s += length_s
    if read_s == 0:
        raise MediaFileError(f"{path.name} holds no sound; give another file")
    return None


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except FileNotFoundError as error:
        raise MediaFileError(f"{path} does not exist; check the path") from error
    except PermissionError as error:
        raise MediaFileError(f"{path} may not be read by this user; change its permissions") from error
    except (av.FFmpegError, OSError) as error:
        raise MediaFileError(f"{path} is not a sound file we can read; give WAV, MP3, FLAC, OGG or M4A") from error
    if not container.streams.audio:
        container.close()
        raise MediaFileError(f"{path} has no sound track; give a file with sound")
    return container


def read_pictures(path: Path, fps: int) -> Iterator[np.ndarray]:
    """A video's pictures at another picture rate: picture k is what is shown at k / fps seconds.

    Yields:
        [height, width, 3] uint8 RGB.

    Raises:
        MediaFileError: it cannot be read, or has no pictures.
    """
    given, shown, shown_s, length_s = 0, None, 0.0, 0.0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            start_s = None
            for frame in container.decode(video=0):
                at_s = float(frame.time) if frame.time is not None else shown_s + length_s
                start_s = at_s if start_s is None else start_s
                while shown is not None and given / fps < at_s - start_s - 1e-6:
                    yield shown
                    given += 1
                rate = container.streams.video[0].average_rate
                shown, shown_s = frame.to_ndarray(format="rgb24"), at_s
                length_s = float(1 / rate) if rate else 1 / fps
            while shown is not None and given / fps < shown_s + length_s - (start_s or 0.0) - 1e-6:
                yield shown
                given += 1
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise MediaFileError(f"{path} is not a video we can read; give MP4, MOV, MKV or WebM") from error
    if shown is None:
        raise MediaFileError(f"{path} holds no picture; give another video")


class _SoundTrack:
    """A file's sound in pieces that fit the film's sound encoder."""

    def __init__(self, path: Path) -> None:
        self._frames = read_sound(path)
        self._first = next(self._frames, None)
        rate_hz = self._first.sample_rate if self._first else 48_000
        self.rate_hz = next((known for known in _AAC_RATES_HZ if known <= rate_hz), 8_000)
        self.layout = "stereo" if self._first and self._first.layout.nb_channels >= 2 else "mono"
        self._resampler: av.AudioResampler | None = None
        self._form: tuple[str, str, int] | None = None

    def __iter__(self) -> Iterator[av.AudioFrame]:
        if self._first is not None:
            yield from self._convert(self._first)
        for frame in self._frames:
            yield from self._convert(frame)
        yield from self._flush()

    def _convert(self, frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:
            yield from self._flush()
            self._form = form
            self._resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=self.rate_hz)
        assert self._resampler is not None
        frame.pts = None
        yield from (out for out in self._resampler.resample(frame) if out is not None)

    def _flush(self) -> Iterator[av.AudioFrame]:
        if self._resampler is not None:
            yield from (out for out in self._resampler.resample(None) if out is not None)
            self._resampler = None


class _MixedTrack:
    """Several files' sound as one: their mean, which cannot clip, as long as the shortest."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tracks = [_SoundTrack(path) for path in paths]
        self.rate_hz = max(track.rate_hz for track in self._tracks)
        self.layout = "stereo" if any(track.layout == "stereo" for track in self._tracks) else "mono"
        for track in self._tracks:
            track.rate_hz, track.layout = self.rate_hz, self.layout

    def __iter__(self) -> Iterator[av.AudioFrame]:
        sources = [iter(track) for track in self._tracks]
        if len(sources) == 1:
            yield from sources[0]
            return
        waiting: list[np.ndarray | None] = [None] * len(sources)
        while True:
            for i, source in enumerate(sources):
                if waiting[i] is None or not waiting[i].shape[1]:
                    piece = next(source, None)
                    if piece is None:
                        return
                    waiting[i] = piece.to_ndarray()
            length = min(sound.shape[1] for sound in waiting)
            mean = sum(sound[:, :length] for sound in waiting) / np.float32(len(waiting))
            waiting = [sound[:, length:] for sound in waiting]
            yield _sound_frame(mean, self.layout, self.rate_hz)


class Film:
    """An MP4 under way. Leaving the context finishes the file, whatever happened inside.

    Args:
        path: where it is written.
        width: pixels.
        height: pixels.
        fps: pictures a second.
        sounds: files whose sound it gets, mixed, from their beginning, cut to the pictures.
        crf: quality of the pictures, x264's constant rate factor.

    Raises:
        MediaFileError: the file cannot be written, or the sound not be read.
    """

    def __init__(self, path: Path, *, width: int, height: int, fps: int, sounds: Sequence[Path], crf: int = 17) -> None:
        self.num_frames = 0
        """Pictures written."""
        self._fps = fps
        track = _MixedTrack(sounds)
        self._pieces = iter(track)
        self._rate_hz = track.rate_hz
        self._sound_pts = 0
        self._waiting: av.AudioFrame | None = None
        self._path = path
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        options = {"crf": str(crf), "preset": "veryfast"}
        self._video = self._container.add_stream("libx264", rate=fps, options=options)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.gop_size = 2 * fps
        self._audio = self._container.add_stream("aac", rate=track.rate_hz, layout=track.layout)
        self._audio.bit_rate = 160_000 if track.layout == "stereo" else 96_000
        with self._writing():
            self._container.start_encoding()  # creates the file

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing():
            try:
                self._container.mux(self._video.encode(None))
                self._container.mux(self._audio.encode(None))
            finally:
                self._container.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # FFmpeg's errors are of this kind
            where, reason = self._path.parent, error.strerror or "unknown reason"
            raise MediaFileError(f"the film cannot be written to {where}: {reason}; choose another place") from error

    def add(self, frames: np.ndarray) -> None:
        """Write pictures and the sound that belongs to them.

        Args:
            frames: [n, height, width, 3] uint8 RGB.
        """
        with self._writing():
            for image in frames:
                self._add_picture(image)
            self._add_sound(self.num_frames * self._rate_hz // self._fps)

    def _add_picture(self, image: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.pts, picture.time_base = self.num_frames, Fraction(1, self._fps)
        self.num_frames += 1
        self._container.mux(self._video.encode(picture))

    def _add_sound(self, end: int) -> None:
        """Write sound until sample `end` of the film's sound track."""
        while self._sound_pts < end:
            piece = self._waiting or next(self._pieces, None)
            self._waiting = None
            if piece is None:
                return
            if self._sound_pts + piece.samples > end:
                piece, self._waiting = _split(piece, end - self._sound_pts)
            piece.pts, piece.time_base = self._sound_pts, Fraction(1, self._rate_hz)
            self._sound_pts += piece.samples
            self._container.mux(self._audio.encode(piece))


def _split(frame: av.AudioFrame, num_samples: int) -> tuple[av.AudioFrame, av.AudioFrame]:
    """Cut a planar frame in two."""
    samples = frame.to_ndarray()
    first, second = (
        _sound_frame(part, frame.layout.name, frame.sample_rate)
        for part in (samples[:, :num_samples], samples[:, num_samples:])
    )
    return first, second


def _sound_frame(samples: np.ndarray, layout: str, rate_hz: int) -> av.AudioFrame:
    """[channels, n] float32 as a planar frame."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate_hz
    return frame

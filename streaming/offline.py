"""A portrait, a sound file, and out comes an MP4: the live path without a clock.

The same windows, voice activity, gate and model calls as in a live session, fed with the same samples, give the same
pictures. Sound is decoded a second time at its own quality, so that the film does not sound like a telephone. Memory
does not grow with length, and what was made before an interruption is a playable film.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.interface import AvatarModel, BlockRequest, SessionInfo, SessionSpec
from streaming.config import StreamingConfig
from streaming.errors import MediaFileError
from streaming.film import Film, read_pictures, read_sound, sound_length_s
from streaming.judge import make_judge
from streaming.resample import SpeechResampler
from streaming.stream import posture_of
from streaming.windows import Windows

_SESSION = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a film is."""

    frames: int
    """Pictures made."""
    num_frames: int | None
    """Pictures there will be; None if the file does not tell its length."""
    fps: float
    """Pictures made a second."""
    eta_s: float | None
    """Seconds until it is finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmReport:
    """What was made."""

    path: Path
    frames: int
    seconds: float
    """Length of the film."""
    wall_s: float
    """Time it took."""
    interrupted: bool
    """Whether it was cut off; it is playable all the same."""
    in_domain: bool
    """Whether the portrait is of the kind the checkpoint knows."""
    width: int
    height: int


class _Speaker:
    """One sound that is there as a whole: read as far as windows need it.

    Args:
        pieces: of any size.
        windows: of this sound.
        step: samples that are written at once.
    """

    def __init__(self, pieces: Iterable[np.ndarray], windows: Windows, step: int) -> None:
        self.windows = windows
        self.num_samples: int | None = None
        """Its length, once its end was read."""
        self._pieces = (piece[at : at + step] for piece in pieces for at in range(0, len(piece), step))

    def hear(self, end: int) -> None:
        """Read until sample `end`, or to the end of the sound."""
        while self.num_samples is None and self.windows.written < end:
            piece = next(self._pieces, None)
            if piece is None:
                self.num_samples = self.windows.written
            else:
                self.windows.write(self.windows.written, piece)


def speech_frames(
    model: AvatarModel,
    *sounds: Iterable[np.ndarray],
    session: str = _SESSION,
    config: StreamingConfig | None = None,
    pose: Iterator[np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Pictures of a speech, block by block.

    Args:
        model: with `session` open at block 0; one that works on several blocks at once (`depth`) is kept full.
        sounds: of every speaker, pieces of 16 kHz mono float32 of any size.
        session: session id.
        config: voice activity and fades.
        pose: pictures of a pose video, [height, width, 3] uint8 RGB at the stream's rate.

    Yields:
        [frames, height, width, 3] uint8; the last block is cut to the length of the shortest sound.

    Raises:
        ModelError: the model cannot go on.
    """
    requests = _requests(model, sounds, session, config or StreamingConfig(), pose)
    depth = getattr(model, "depth", 1)
    if depth == 1:
        for request, left in requests:
            yield model.step(request).frames[:left]
        return
    lengths: deque[int] = deque()
    try:
        for request, left in requests:
            while len(lengths) >= depth:
                yield from _finished(model, lengths)
            model.submit(request)
            lengths.append(left)
        while lengths:
            yield from _finished(model, lengths)
    except (GeneratorExit, KeyboardInterrupt):  # the film is cut off; what is under way must not come out in the next
        while lengths:
            for _ in _finished(model, lengths):
                pass
        raise


def _finished(model: Any, lengths: deque[int]) -> Iterator[np.ndarray]:
    """The next block of a model that works on several, if one is finished within a moment; a stream's come in order."""
    result = model.advance()
    if result is not None:
        yield result.frames[: lengths.popleft()]


def _requests(
    model: AvatarModel,
    sounds: Sequence[Iterable[np.ndarray]],
    session: str,
    config: StreamingConfig,
    pose: Iterator[np.ndarray] | None,
) -> Iterator[tuple[BlockRequest, int]]:
    """What is asked of the model, block by block, and how many of the block's pictures belong to the film."""
    geometry, spec = model.info.geometry, model.info.window.of_known_sound
    speakers = [
        _Speaker(s, Windows(spec, config.window, config.vad, make_judge(config.vad)), spec.block_samples)
        for s in sounds
    ]
    for block in itertools.count():
        for speaker in speakers:
            speaker.hear(speaker.windows.window_end(block))
        ends = [speaker.num_samples for speaker in speakers if speaker.num_samples is not None]
        first = geometry.block_start_frame(block)
        left = math.ceil(min(ends) / geometry.samples_per_frame) - first if ends else geometry.frames_per_block
        if left <= 0:
            return
        windows = [speaker.windows.close(block)[0] for speaker in speakers]
        heard = [window.samples for window in windows]
        postures = [posture_of(window) for window in windows]
        request = BlockRequest(
            session=session,
            block=block,
            epoch=0,
            window=heard[0] if len(heard) == 1 else np.stack(heard),
            posture=next((posture for posture in postures if posture == "speaking"), postures[0]),
            pose=None if pose is None else _next_pictures(pose, geometry.frames_per_block),
        )
        yield request, left


def _next_pictures(pose: Iterator[np.ndarray], count: int) -> np.ndarray | None:
    """The next pictures of a pose video, black where it ends within them; None after its end."""
    pictures = list(itertools.islice(pose, count))
    if not pictures:
        return None
    return np.stack(pictures + [np.zeros_like(pictures[0])] * (count - len(pictures)))


def speech_of(path: Path) -> Iterator[np.ndarray]:
    """A file's sound as the model hears it: pieces of 16 kHz mono float32.

    Raises:
        MediaFileError: the file cannot be read or has no sound.
    """
    resampler = SpeechResampler(any_rate=True)
    for frame in read_sound(path):
        yield resampler.push(frame)
    yield resampler.flush()


def generate(
    model: AvatarModel,
    *,
    image: np.ndarray,
    audio: Path | Sequence[Path],
    out: Path,
    prompt: str = "",
    seed: int = 0,
    config: StreamingConfig | None = None,
    max_frames: int | None = None,
    parity: bool = False,
    on_open: Callable[[SessionInfo], None] = lambda info: None,
    masks: np.ndarray | None = None,
    pose_video: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FilmReport:
    """Make a film.

    Args:
        model: loaded, in this process.
        image: portrait, [h, w, 3] uint8 RGB, any size.
        audio: any file with sound that FFmpeg reads, or one for every speaker; the film is as long as the shortest and
            carries their mix.
        out: the MP4; it has another name until it is finished, and replaces an older one only then.
        prompt: for the model.
        seed: for the model.
        config: voice activity and fades.
        max_frames: most pictures of the film; None: as long as the sound.
        parity: hear the whole file at once, as the published pipelines do; memory grows with its length.
        on_open: told what opening the session found out, before the first block.
        masks: [speakers, h, w] bool, where each speaker's face is in the portrait; None: strips from left to right.
        pose_video: any video that FFmpeg reads; where it ends before the film, the rest has a black one.
        on_progress: called after every block.
        should_stop: asked after every block; also a `KeyboardInterrupt` ends the film early.

    Returns:
        What was made.

    Raises:
        MediaFileError: sound or pose video cannot be read, or the film not be written.
        ModelError: the model refuses the portrait, the speakers or the pose video, or cannot go on.
    """
    started_s = time.monotonic()
    sounds = (audio,) if isinstance(audio, Path) else tuple(audio)
    lengths_s = [sound_length_s(sound) for sound in sounds]
    geometry = model.info.geometry
    pose = None if pose_video is None else _begun(read_pictures(pose_video, geometry.fps))
    info = model.open(
        SessionSpec(
            session=_SESSION,
            image=image,
            prompt=prompt,
            seed=seed,
            sound=tuple(map(_whole, sounds)) if parity else None,
            speakers=len(sounds),
            masks=masks,
            has_pose=pose is not None,
        )
    )
    on_open(info)
    known_s = [length_s for length_s in lengths_s if length_s is not None]
    num_frames = math.ceil(min(known_s) * geometry.fps - 1e-6) if len(known_s) == len(sounds) else None
    if max_frames is not None:
        num_frames = max_frames if num_frames is None else min(num_frames, max_frames)
    part = out.with_name(f".{out.name}.part")
    interrupted = False
    try:
        with Film(part, width=geometry.width, height=geometry.height, fps=geometry.fps, sounds=sounds) as film:
            try:
                for frames in speech_frames(model, *map(speech_of, sounds), config=config, pose=pose):
                    film.add(frames if max_frames is None else frames[: max_frames - film.num_frames])
                    on_progress(_progress(film.num_frames, num_frames, time.monotonic() - started_s))
                    if should_stop():
                        interrupted = True
                        break
                    if film.num_frames == max_frames:
                        break
            except KeyboardInterrupt:
                interrupted = True
            if film.num_frames == 0 and not interrupted:
                names = " or ".join(sound.name for sound in sounds)
                raise MediaFileError(f"{names} holds no sound; give another file")
        if film.num_frames:
            os.replace(part, out)
    finally:
        model.close(_SESSION)
        with contextlib.suppress(OSError):
            part.unlink()
    return FilmReport(
        path=out,
        frames=film.num_frames,
        seconds=film.num_frames / geometry.fps,
        wall_s=time.monotonic() - started_s,
        interrupted=interrupted,
        in_domain=info.in_domain,
        width=geometry.width,
        height=geometry.height,
    )


def _whole(sound: Path) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *speech_of(sound)])


def _begun(pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pictures; a file that cannot be read fails now rather than later."""
    return itertools.chain([next(pictures)], pictures)


def _progress(frames: int, num_frames: int | None, elapsed_s: float) -> Progress:
    fps = frames / max(elapsed_s, 1e-6)
    eta_s = None if num_frames is None else max(0, num_frames - frames) / fps
    return Progress(frames=frames, num_frames=num_frames, fps=fps, eta_s=eta_s)

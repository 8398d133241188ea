"""A portrait, a sound file, and out comes an MP4: the live path without a clock.

The same windows, voice activity, gate and model calls as in a live session, fed with the same samples, give the same
pictures. Sound is decoded a second time at its own quality, so that the film does not sound like a telephone. Memory
does not grow with length, and what was made before an interruption is a playable film.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.interface import AvatarModel, BlockRequest, SessionInfo, SessionSpec
from streaming.config import StreamingConfig
from streaming.errors import MediaFileError
from streaming.film import Film, read_sound, sound_length_s
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


def speech_frames(
    model: AvatarModel, sound: Iterable[np.ndarray], *, session: str = _SESSION, config: StreamingConfig | None = None
) -> Iterator[np.ndarray]:
    """Pictures of a speech, block by block.

    Args:
        model: with `session` open at block 0.
        sound: pieces of 16 kHz mono float32, of any size.
        session: session id.
        config: voice activity and fades.

    Yields:
        [frames, height, width, 3] uint8; the last block is cut to the length of the sound.

    Raises:
        ModelError: the model cannot go on.
    """
    config = config or StreamingConfig()
    geometry, spec = model.info.geometry, model.info.window
    windows = Windows(spec, config.window, config.vad, make_judge(config.vad))
    block = 0

    def close() -> np.ndarray:
        window, _ = windows.close(block)
        request = BlockRequest(session=session, block=block, epoch=0, window=window.samples, posture=posture_of(window))
        return model.step(request).frames

    for piece in sound:
        for at in range(0, len(piece), geometry.samples_per_block):
            windows.write(windows.written, piece[at : at + geometry.samples_per_block])
            while windows.written >= windows.window_end(block):
                yield close()
                block += 1
    num_frames = math.ceil(windows.written / geometry.samples_per_frame)
    while (first := geometry.block_start_frame(block)) < num_frames:
        yield close()[: num_frames - first]
        block += 1


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
    audio: Path,
    out: Path,
    prompt: str = "",
    seed: int = 0,
    config: StreamingConfig | None = None,
    max_frames: int | None = None,
    parity: bool = False,
    on_open: Callable[[SessionInfo], None] = lambda info: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FilmReport:
    """Make a film.

    Args:
        model: loaded, in this process.
        image: portrait, [h, w, 3] uint8 RGB, any size.
        audio: any file with sound that FFmpeg reads.
        out: the MP4; it has another name until it is finished, and replaces an older one only then.
        prompt: for the model.
        seed: for the model.
        config: voice activity and fades.
        max_frames: most pictures of the film; None: as long as the sound.
        parity: hear the whole file at once, as the published pipelines do; memory grows with its length.
        on_open: told what opening the session found out, before the first block.
        on_progress: called after every block.
        should_stop: asked after every block; also a `KeyboardInterrupt` ends the film early.

    Returns:
        What was made.

    Raises:
        MediaFileError: the sound cannot be read, or the film not be written.
        ModelError: the model refuses the portrait or cannot go on.
    """
    started_s = time.monotonic()
    length_s = sound_length_s(audio)
    whole = np.concatenate([np.zeros(0, np.float32), *speech_of(audio)]) if parity else None
    info = model.open(SessionSpec(session=_SESSION, image=image, prompt=prompt, seed=seed, sound=whole))
    on_open(info)
    geometry = model.info.geometry
    num_frames = None if length_s is None else math.ceil(length_s * geometry.fps - 1e-6)
    if max_frames is not None:
        num_frames = max_frames if num_frames is None else min(num_frames, max_frames)
    part = out.with_name(f".{out.name}.part")
    interrupted = False
    try:
        with Film(part, width=geometry.width, height=geometry.height, fps=geometry.fps, sound=audio) as film:
            try:
                for frames in speech_frames(model, speech_of(audio), config=config):
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
                raise MediaFileError(f"{audio.name} holds no sound; give another file")
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


def _progress(frames: int, num_frames: int | None, elapsed_s: float) -> Progress:
    fps = frames / max(elapsed_s, 1e-6)
    eta_s = None if num_frames is None else max(0, num_frames - frames) / fps
    return Progress(frames=frames, num_frames=num_frames, fps=fps, eta_s=eta_s)

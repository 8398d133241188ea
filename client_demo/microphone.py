"""A sound file as a microphone: decoded whole, sent in real time."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from aiortc.mediastreams import MediaStreamTrack

RATE_HZ = 48_000
FRAME_SAMPLES = 960


class ClientError(Exception):
    """The conversation could not be held; the text says why and what to do."""


class InputError(ClientError):
    """An argument or an input file is unusable; the text names it and the remedy."""


class FileMicrophone(MediaStreamTrack):
    """A sound played in real time, 20 ms a frame; silence after its end, as a microphone never ends.

    Args:
        sound: [samples] int16, 48 kHz.
    """

    kind = "audio"

    def __init__(self, sound: np.ndarray) -> None:
        super().__init__()
        self._sound = sound
        self._sent = 0
        self._started_s = 0.0
        self.played = asyncio.Event()
        """Set when the last sample has been sent."""

    async def recv(self) -> av.AudioFrame:
        if self._sent == 0:
            self._started_s = time.monotonic()
        due_s = self._started_s + self._sent / RATE_HZ
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        piece = self._sound[self._sent : self._sent + FRAME_SAMPLES]
        if len(piece) < FRAME_SAMPLES:
            self.played.set()
            piece = np.pad(piece, (0, FRAME_SAMPLES - len(piece)))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece[None]), "s16", "mono")
        frame.sample_rate = RATE_HZ
        frame.time_base = Fraction(1, RATE_HZ)
        frame.pts = self._sent
        self._sent += FRAME_SAMPLES
        return frame


def read_sound(path: Path) -> np.ndarray:
    """Decode a sound file.

    Returns:
        [samples] int16, mono, 48 kHz.

    Raises:
        InputError: it holds no sound that FFmpeg can decode.
    """
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
    pieces: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(audio=0):
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise InputError(f"--audio is {path}, which cannot be decoded ({error}); give a WAV or MP3 file") from error
    if not pieces or not sum(map(len, pieces)):
        raise InputError(f"--audio is {path}, which holds no sound; give another file")
    return np.concatenate(pieces)

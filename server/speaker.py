"""Text and pushed sound into one session: what `say`, the audio socket and the Realtime socket have in common.

A `say` announces its segment at once, so that an interrupt ends it even while its sound is still being made; several
follow one another in order. Sound that is ahead of the session's buffer waits for the `resume` event.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging

import numpy as np

from server.errors import ApiError
from server.speech import SpeechProvider, check_voice
from streaming.errors import BufferFullError, StreamingError
from streaming.events import Event
from streaming.session import Session

log = logging.getLogger(__name__)

PIECE_S = 0.2
"""Sound is handed on in such pieces, so that the smallest buffer is filled beyond its mark before one is refused."""
MAX_WAITING = 16
"""Texts that may wait to be spoken."""
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 48_000


def check_rate(rate_hz: object) -> int:
    """A sample rate that a client named.

    Raises:
        ApiError: `unsupported_rate`.
    """
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, int) or not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        text = f"sample_rate is {rate_hz!r:.40}; it must be a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz."
        raise ApiError("unsupported_rate", text)
    return rate_hz


def read_pcm(data: bytes) -> np.ndarray:
    """PCM s16le as samples.

    Returns:
        [n] int16.

    Raises:
        ApiError: `bad_request` for an odd number of bytes.
    """
    if len(data) % 2:
        raise ApiError(
            "bad_request", f"The sound has {len(data)} bytes; PCM s16le has two a sample, send an even number."
        )
    return np.frombuffer(data, "<i2")


def read_base64(audio: object) -> bytes:
    """The bytes of base64 sound.

    Raises:
        ApiError: `bad_request`.
    """
    if not isinstance(audio, str):
        raise ApiError("bad_request", "audio is missing; send base64 of PCM s16le mono.")
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("bad_request", "audio is not base64; encode PCM s16le mono.") from error


class Speaker:
    """Speaks texts in one session.

    Args:
        session: the conversation.
        provider: makes the sound; when it cannot, the session tells `error`.
    """

    def __init__(self, session: Session, provider: SpeechProvider) -> None:
        self._session = session
        self._provider = provider
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by segment
        self._resumed = asyncio.Event()
        self._unsubscribe = session.subscribe(self._listen)

    def say(self, text: str, voice: str | None = None) -> str:
        """Speak a text after everything that was said before.

        Returns:
            The segment's name; it is announced already.

        Raises:
            ApiError: `bad_request`, `rate_limited`.
            SessionClosedError: the session has ended.
        """
        if not text.strip():
            raise ApiError("bad_request", "text is empty; send what is to be said.")
        check_voice(voice)
        if len(self._tasks) >= MAX_WAITING:
            raise ApiError(
                "rate_limited", f"{MAX_WAITING} texts wait to be spoken already; try again later.", retry_after_s=5
            )
        segment = self._session.begin_segment(is_held=True)
        task = asyncio.get_running_loop().create_task(self._speak(segment, text, voice), name=f"say {segment}")
        self._tasks[segment] = task
        task.add_done_callback(lambda _: self._tasks.pop(segment, None))
        return segment

    async def close(self) -> None:
        """Stop making sound."""
        self._unsubscribe()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _speak(self, segment: str, text: str, voice: str | None) -> None:
        try:
            pieces = self._provider.speak(text, voice)
            try:
                async for pcm, rate_hz in pieces:
                    if not await self.push(segment, pcm, rate_hz):
                        return
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]
        except ApiError as error:
            self._session.announce_error(error.code, error.detail)
        except StreamingError as error:
            self._session.announce_error(error.code, str(error))
        except Exception:
            log.exception("speech synthesis failed")
            self._session.announce_error("internal", "Speech synthesis failed; the server's log says why.")
        finally:
            self._session.end_segment(segment)

    async def push(self, segment: str, pcm: np.ndarray, rate_hz: int) -> bool:
        """Push sound, waiting while the buffer is full; False once the segment was cut off."""
        step = max(1, round(PIECE_S * rate_hz))
        for start in range(0, len(pcm), step):
            while True:
                self._resumed.clear()
                try:
                    if not self._session.push_pcm(pcm[start : start + step], rate_hz, segment):
                        return False
                    break
                except BufferFullError:
                    await self._resumed.wait()
        return True

    def _listen(self, event: Event) -> None:
        if event.type == "resume":
            self._resumed.set()
        elif event.type == "playback_finished":
            task = self._tasks.get(str(event.data["segment"]))
            if task is not None:
                task.cancel()  # it was interrupted before its sound was made

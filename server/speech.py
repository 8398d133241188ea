"""Speech synthesis: text to sound, piece by piece, for `say`.

A provider is one async generator of PCM. Two are built in: espeak-ng, a program that works without network or key, in
its own process; and any service that speaks OpenAI's `/v1/audio/speech`. The bearer of the second comes from the
environment only.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx
import numpy as np

from server.errors import ApiError

HTTP_RATE_HZ = 24_000
"""Rate of `response_format: pcm`."""
VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+.-]{0,63}")
_WAV_HEADER_BYTES = 44
_READ_BYTES = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechConfig:
    """What speaks the text of `say`."""

    kind: Literal["espeak", "http"] = "espeak"
    """espeak: the program espeak-ng on this machine; http: a service in the form of OpenAI's /v1/audio/speech."""
    voice: str = "en"
    """Voice where the request names none; for espeak-ng a language such as en, en-us or de."""
    url: str = ""
    """Full address of the service with `kind: http`; its key is AVATARCAST_SPEECH_KEY."""
    model: str = "tts-1"
    """Model that the service is asked for."""
    timeout_s: float = 20.0
    """Longest wait for the next piece of sound."""

    def __post_init__(self) -> None:
        if not VOICE.fullmatch(self.voice):
            raise ValueError(f"voice is {self.voice!r}; use letters, digits and _ + . -, for example en-us")
        if self.kind == "http" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; with kind http it is the service's http:// or https:// address")
        if not 1 <= self.timeout_s <= 300:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be 1 to 300 seconds")


class SpeechProvider(Protocol):
    """Turns text into sound."""

    def speak(self, text: str, voice: str | None) -> AsyncIterator[tuple[np.ndarray, int]]:
        """Yield the speech in pieces as it is made.

        Args:
            text: what to say.
            voice: a name the provider knows; None takes the configured one.

        Yields:
            [n] int16 mono, and its sample rate.

        Raises:
            ApiError: `engine_down` when the provider is missing or fails, `bad_request` for a voice that is none.
        """
        ...


def make_provider(config: SpeechConfig, key: str | None) -> SpeechProvider:
    """The configured provider.

    Args:
        config: the section `speech`.
        key: bearer of the service, if it needs one.
    """
    return HttpSpeech(config, key) if config.kind == "http" else EspeakSpeech(config)


class EspeakSpeech:
    """espeak-ng in a process of its own; its text goes through standard input."""

    def __init__(self, config: SpeechConfig) -> None:
        self._config = config

    async def speak(self, text: str, voice: str | None) -> AsyncIterator[tuple[np.ndarray, int]]:
        """See `SpeechProvider.speak`."""
        program = shutil.which("espeak-ng")
        if program is None:
            raise ApiError(
                "engine_down",
                "Speech needs the program espeak-ng, which is missing; install the package espeak-ng, or set"
                " speech.kind to http.",
            )
        process = await asyncio.create_subprocess_exec(
            program, "-v", _voice(voice, self._config), "--stdin", "--stdout", "-b", "1",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()
            process.stdin.close()
            header = await self._head(process.stdout)
            if len(header) < _WAV_HEADER_BYTES:
                said = (await process.stderr.read(300)).decode(errors="replace").strip().splitlines()
                raise ApiError("bad_request", f"espeak-ng made no sound: {said[0] if said else 'no reason given'}.")
            rate_hz = int.from_bytes(header[24:28], "little")
            async for pcm in _pieces(self._rest(process.stdout)):
                yield pcm, rate_hz
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.communicate()  # reads what is left, so that the pipes close

    async def _head(self, stream: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await stream.readexactly(_WAV_HEADER_BYTES)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except TimeoutError as error:
            raise ApiError("engine_down", "espeak-ng did not answer in time; the machine may be overloaded.") from error

    async def _rest(self, stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
        while data := await stream.read(_READ_BYTES):
            yield data


class HttpSpeech:
    """A service in the form of OpenAI's `/v1/audio/speech`: raw PCM at 24 kHz, taken while it is being made."""

    def __init__(self, config: SpeechConfig, key: str | None) -> None:
        self._config = config
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def speak(self, text: str, voice: str | None) -> AsyncIterator[tuple[np.ndarray, int]]:
        """See `SpeechProvider.speak`."""
        config = self._config
        wanted = {
            "model": config.model, "input": text, "voice": _voice(voice, config), "response_format": "pcm",
        }  # fmt: skip
        try:
            async with (
                httpx.AsyncClient(timeout=config.timeout_s) as client,
                client.stream("POST", config.url, json=wanted, headers=self._headers) as answer,
            ):
                if answer.status_code != 200:
                    status = answer.status_code
                    reason = f"The speech service answered {status}; check speech.url, speech.model and its key."
                    raise ApiError("engine_down", reason)
                async for pcm in _pieces(answer.aiter_bytes(_READ_BYTES)):
                    yield pcm, HTTP_RATE_HZ
        except httpx.HTTPError as error:
            reason = type(error).__name__
            raise ApiError(
                "engine_down", f"The speech service does not answer ({reason}); check speech.url."
            ) from error


def check_voice(voice: str | None) -> None:
    """Refuse what cannot be a voice's name.

    Raises:
        ApiError: `bad_request`.
    """
    if voice is not None and not VOICE.fullmatch(voice):
        raise ApiError("bad_request", f"voice is {voice[:60]!r}; use letters, digits and _ + . -, for example en-us.")


def _voice(voice: str | None, config: SpeechConfig) -> str:
    check_voice(voice)
    return voice or config.voice


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[np.ndarray]:
    """s16le bytes as samples; a sample may lie on two chunks."""
    held = b""
    async for chunk in chunks:
        data = held + chunk
        whole = len(data) // 2 * 2
        held = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2")

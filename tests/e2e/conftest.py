"""What the browser tests share: recorded speech, a server with the stand-in model, and the one under acceptance."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import chromium
from tests.e2e.serving import FAKE, ROOT, Server, speech_wav


def missing(reason: str) -> None:
    """Without the system packages: a failure where everything must run, a plain skip elsewhere."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 s of recorded sentences with pauses, 48 kHz mono."""
    try:
        return speech_wav(tmp_path_factory.mktemp("voice") / "voice.wav")
    except FileNotFoundError as error:
        missing(str(error))
        raise


@pytest.fixture
async def browser(voice: Path) -> AsyncIterator[chromium.Visit]:
    """Chromium whose microphone is the recorded voice; the test fails if a page complained."""
    if shutil.which("chromium") is None:
        missing("chromium is missing: apt-get install chromium")
    async with chromium.visit(chromium.with_microphone(voice)) as visit:
        yield visit
    assert visit.complaints == []


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers and stops them after the test."""
    started: list[Server] = []

    def start(config: str | dict[str, Any] = FAKE, env: dict[str, str] | None = None) -> Server:
        started.append(Server(config, env))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the stand-in model and room for one session, shared by a module's tests."""
    started = Server({**FAKE, "limits": {"max_sessions": 1}})
    yield started
    started.stop()


@pytest.fixture
def product_config() -> str | dict[str, Any]:
    """What acceptance runs on: the embedded checkpoint, or the stand-in while there is none."""
    if name := os.environ.get("E2E_CONFIG"):
        return FAKE if name == "fake" else name
    return "tiny" if (ROOT / "model" / "checkpoints" / "tiny.safetensors").is_file() else FAKE

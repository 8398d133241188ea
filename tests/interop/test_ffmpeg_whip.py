"""FFmpeg's own WHIP muxer pushes real speech into a server, and the avatar speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from server.config import Secrets
from tests.unit.server.caller import calling, judge
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.test_calls import voice
from tests.unit.server.whip_client import until

KEY = "an admin key of enough length"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Sixteen seconds of speech-like sound as a WAV file."""
    path = tmp_path / "speech.wav"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=48_000, layout="mono")
        samples = (np.clip(voice(16), -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return path


@contextlib.asynccontextmanager
async def ffmpeg(url: str, speech: Path, *more: str, camera: bool = True) -> AsyncIterator[asyncio.subprocess.Process]:
    """FFmpeg pushing for the length of a `with`."""
    picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"] if camera else []
    encode = ["-c:v", "libx264", "-profile:v", "baseline", "-tune", "zerolatency", "-g", "25"] if camera else []
    process = await asyncio.create_subprocess_exec(
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "warning", *picture,
        "-re", "-stream_loop", "-1", "-i", str(speech), *encode, "-c:a", "libopus", "-ac", "2", "-ar", "48000",
        "-t", "14", "-f", "whip", *more, url,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def until_state(server: Running, session: dict, state: str, within_s: float = 10.0) -> float:
    """Wait for a state; returns how long it took."""
    live = server.hub.find(session["id"])
    assert live is not None
    began = time.monotonic()
    await until(lambda: live.session.state == state, within_s)
    return time.monotonic() - began


async def test_ffmpeg_speaks_through_the_avatar(speech: Path) -> None:
    """Opus and H264 with a bearer token; the speech is heard and shown, and FFmpeg's DELETE at its end is obeyed."""
    config = fake_config(auth={"required": "always"}, model={"fake": {"width": 128, "height": 128}})
    async with running(config, Secrets(api_key=KEY)) as server:
        server.http.headers["Authorization"] = f"Bearer {KEY}"
        session = await server.open()
        live = server.hub.find(session["id"])
        assert live is not None
        url = f"http://127.0.0.1:{server.port}/{session['urls']['whip']}"
        async with ffmpeg(url, speech, "-authorization", session["token"]) as process:
            heard_s = await until_state(server, session, "speaking")
            async with calling(server, session) as page:
                await asyncio.sleep(9)
            shown = judge(page)
            print(f"FFmpeg: speaking {heard_s:.2f} s after its start; a page: {shown}")
            assert shown.agreement > 0.6 and abs(shown.offset_ms) <= 40 and shown.fps > 20
            await asyncio.wait_for(process.wait(), 20)
            assert process.stderr is not None
            complaints = (await process.stderr.read()).decode()
            assert process.returncode == 0, complaints
            await until(lambda: live._publisher is None, 2)


async def test_ffmpeg_with_a_view_token_is_refused(speech: Path) -> None:
    config = fake_config(auth={"required": "always"})
    async with running(config, Secrets(api_key=KEY)) as server:
        server.http.headers["Authorization"] = f"Bearer {KEY}"
        session = await server.open()
        url = f"http://127.0.0.1:{server.port}/{session['urls']['whip']}"
        async with ffmpeg(url, speech, "-authorization", session["view_token"], camera=False) as process:
            await asyncio.wait_for(process.wait(), 10)
            assert process.stderr is not None
            assert process.returncode != 0
            assert "403" in (await process.stderr.read()).decode()

"""GStreamer's webrtcbin, whose certificate is RSA, pushes speech into a server through WHIP."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from tests.interop.test_ffmpeg_whip import speech, until_state
from tests.unit.server.caller import calling, judge
from tests.unit.server.running import fake_config, running

__all__ = ["speech"]

SYSTEM_PYTHON = "/usr/bin/python3"  # it has the bindings; python3-gi is a system package


async def test_gstreamer_speaks_through_the_avatar(speech: Path) -> None:  # noqa: F811
    client = Path(__file__).with_name("gstreamer_whip.py")
    async with running(fake_config(model={"fake": {"width": 128, "height": 128}})) as server:
        session = await server.open()
        url = f"http://127.0.0.1:{server.port}/{session['urls']['whip']}"
        process = await asyncio.create_subprocess_exec(
            SYSTEM_PYTHON, str(client), url, str(speech),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        try:
            heard_s = await until_state(server, session, "speaking", 15)
            async with calling(server, session) as page:
                await asyncio.sleep(9)
            shown = judge(page)
            print(f"GStreamer: speaking {heard_s:.2f} s after its start; a page: {shown}")
            assert shown.agreement > 0.6 and abs(shown.offset_ms) <= 40 and shown.fps > 20
            process.stdin.close()
            out, errors = await asyncio.wait_for(process.communicate(), 10)
            assert b"connected" in out, (out, errors)
            assert b"deleted 200" in out, (out, errors)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

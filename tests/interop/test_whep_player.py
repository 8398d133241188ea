"""An independent WHEP player, npm's `whip-whep`, watches a session in Chromium: its code, our server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, Route

from tests.e2e import chromium
from tests.e2e.serving import FAKE, Server

pytestmark = pytest.mark.browser

PACKAGE = "whip-whep@1.2.0"
PLAYER = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<video id="avatar" autoplay muted playsinline></video>
<script type="module">
  import { WHEPClient } from "./whep.js";
  const { href, token } = window.wanted;
  const pc = window.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  pc.addTransceiver("audio", { direction: "recvonly" });
  pc.addTransceiver("video", { direction: "recvonly" });
  const stream = new MediaStream();
  const video = document.querySelector("#avatar");
  window.times = [];
  const count = (now) => { window.times.push(now); video.requestVideoFrameCallback(count); };
  video.requestVideoFrameCallback(count);
  pc.ontrack = ({ track }) => { stream.addTrack(track); video.srcObject = stream; };
  window.asked = performance.now();
  window.player = new WHEPClient();
  window.player.view(pc, href, token).catch((error) => console.error(`refused: ${error.message}`));
</script>"""
OFFSET = """async () => {
  const at = {};
  (await pc.getStats()).forEach((report) => {
    if (report.type === "inbound-rtp") at[report.kind] = report.estimatedPlayoutTimestamp;
  });
  return at.video && at.audio ? at.video - at.audio : null;
}"""


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The package's module, as npm delivers it."""
    complain = pytest.fail if os.environ.get("CI") else pytest.skip
    folder = tmp_path_factory.mktemp("npm")
    if shutil.which("npm") is None:
        complain("npm is missing: apt-get install npm")
    packed = subprocess.run(
        ["npm", "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=90, check=False
    )
    if packed.returncode:
        complain(f"npm could not fetch {PACKAGE}: {packed.stderr.strip()[-300:]}")
    with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
        member = archive.extractfile("package/whep.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
async def open_player(player: str) -> AsyncIterator[Callable[..., object]]:
    """Opens the player's page under the server's own address, as a site behind the same proxy would serve it."""
    if shutil.which("chromium") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is missing: apt-get install chromium")
    async with chromium.visit(chromium.QUIET) as visit:
        visit.allow("404")  # the player closes the connection before its DELETE, which may then find it gone

        async def open_(server: Server, session: dict[str, object], token: str) -> Page:
            context = await visit.browser.new_context()
            visit.contexts.append(context)

            async def answer(route: Route) -> None:
                is_script = route.request.url.endswith(".js")
                kind = "text/javascript" if is_script else "text/html"
                await route.fulfill(body=player if is_script else PLAYER, content_type=kind)

            await context.route(re.compile(r"/player/"), answer)
            href = f"{server.url}/{session['urls']['whep']}"  # type: ignore[index]
            await context.add_init_script(script=f"window.wanted = {{ href: '{href}', token: '{token}' }};")
            page = await context.new_page()
            page.on("console", visit._on_console)
            page.on("pageerror", lambda error: visit.complaints.append(f"page error: {error}"))
            await page.goto(f"{server.url}/player/index.html")
            return page

        yield open_
    assert visit.complaints == []


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server(FAKE)
    yield started
    started.stop()


async def test_it_plays_in_step_and_frees_its_place(server: Server, open_player: Callable) -> None:
    session = server.post("/v1/sessions", {"avatar": "mei"})
    page = await open_player(server, session, session["view_token"])
    await chromium.until(page, "window.times.length > 25")
    first_ms = await page.evaluate("window.times[0] - window.asked")
    before = await page.evaluate("document.querySelector('#avatar').getVideoPlaybackQuality().totalVideoFrames")
    await asyncio.sleep(4)
    after = await page.evaluate("document.querySelector('#avatar').getVideoPlaybackQuality().totalVideoFrames")
    offset_ms = await page.evaluate(OFFSET)
    print(f"first picture {first_ms:.0f} ms, {(after - before) / 4:.1f} fps, picture after sound {offset_ms} ms")
    assert first_ms < 3000
    assert 20 <= (after - before) / 4 <= 27
    assert offset_ms is not None and abs(offset_ms) <= 60
    assert server.get(f"/v1/sessions/{session['id']}")["viewers"] == 1
    await page.evaluate("window.player.stop()")
    await asyncio.sleep(1)
    assert server.get(f"/v1/sessions/{session['id']}")["viewers"] == 0

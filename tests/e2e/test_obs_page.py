"""The browser-source page with the stand-in model: it plays by itself, cuts out the portrait, outlives the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from PIL import Image
from playwright.async_api import Page, expect

from tests.e2e import chromium
from tests.e2e.serving import FAKE, Server

pytestmark = pytest.mark.browser

LIVE = "document.body.dataset.state === 'live'"
GONE = "document.body.dataset.state === undefined"
BACKDROP = "document.documentElement.style.background = 'rgb(250, 0, 250)'"


async def playing(page: Page, timeout_s: float = 15.0) -> None:
    await chromium.until(page, LIVE, timeout_s)
    await chromium.moving(page)


async def corner_and_middle(page: Page, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Colours at the picture's upper left and at its centre, from a screenshot."""
    path = await chromium.shoot(page, name)
    with Image.open(path) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    height, width = shown.shape[:2]
    left = (width - min(width, height)) // 2
    return shown[12, left + 12], shown[height // 2, width // 2]


async def figures(page: Page) -> str:
    """First picture after the offer, rate, and picture after sound, for docs/interop.md."""
    first_ms = await page.evaluate("probe.firstFrameMs() - probe.offers[0]")
    before = await page.evaluate("document.querySelector('#avatar').getVideoPlaybackQuality().totalVideoFrames")
    await asyncio.sleep(4)
    after = await page.evaluate("document.querySelector('#avatar').getVideoPlaybackQuality().totalVideoFrames")
    at = await page.evaluate("probe.stats()")
    offset_ms = at["video"]["estimatedPlayoutTimestamp"] - at["audio"]["estimatedPlayoutTimestamp"]
    assert abs(offset_ms) <= 60
    return f"OBS page: first picture {first_ms:.0f} ms, {(after - before) / 4:.1f} fps, picture {offset_ms:+.0f} ms"


async def test_it_plays_with_sound_unasked_and_leaves_the_speaker_alone(
    serve: Callable[..., Server], browser: chromium.Visit
) -> None:
    server = serve(FAKE)
    presenter = await browser.open(server.url)
    await chromium.start(presenter)
    session = server.get("/v1/sessions")[0]["id"]
    page = await browser.open(f"{server.url}/obs/{session}")  # without a token an open server takes it for the admin
    await playing(page)
    asked = await page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert any("/whep/" in url for url in asked) and not any("/offer" in url for url in asked), "a plain viewer"
    assert await page.evaluate("!document.querySelector('#avatar').muted"), "sound plays"
    assert await page.evaluate("document.querySelectorAll('button, [controls], a').length") == 0
    assert server.get(f"/v1/sessions/{session}")["viewers"] == 2
    print(await figures(page))
    await chromium.moving(presenter)
    assert await presenter.evaluate("probe.offers.length") == 1, "the speaker must not have been replaced"
    await page.evaluate("dispatchEvent(new CustomEvent('obsSourceVisibleChanged', { detail: { visible: true } }))")
    await page.evaluate("dispatchEvent(new CustomEvent('obsSourceVisibleChanged', { detail: { visible: false } }))")
    await playing(page)
    await chromium.shoot(page, "obs_desktop_plain")
    await page.close()  # before the presenter, whose session ends with it


async def test_it_survives_a_restart_and_finds_the_resumed_session(
    serve: Callable[..., Server], browser: chromium.Visit
) -> None:
    for complaint in ("ERR_CONNECTION_REFUSED", "404", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"):
        browser.allow(complaint)
    server = serve(FAKE)
    made = server.post("/v1/sessions", {"avatar": "mei"})
    page = await browser.open(f"{server.url}/{made['urls']['obs']}")
    await playing(page)
    await asyncio.to_thread(server.stop)
    await chromium.until(page, GONE)
    assert await page.evaluate("getComputedStyle(document.querySelector('#avatar')).visibility") == "hidden"
    again = await asyncio.to_thread(Server, FAKE, None, int(server.url.rsplit(":", 1)[1]))
    try:
        named = {"avatar": "mei", "resume": {key: made[key] for key in ("id", "token", "view_token")}}
        assert again.post("/v1/sessions", named)["urls"] == made["urls"]
        asked_s = time.monotonic()
        await playing(page)
        assert time.monotonic() - asked_s < 10
        await browser.leave()
    finally:
        again.stop()


async def test_a_killed_server_comes_back_under_the_presenter_by_itself(
    serve: Callable[..., Server], browser: chromium.Visit
) -> None:
    for complaint in ("ERR_", "404"):
        browser.allow(complaint)
    server = serve(FAKE)
    presenter = await browser.open(server.url)
    await chromium.start(presenter)
    session = server.get("/v1/sessions")[0]["id"]
    children = server.children()
    server.process.kill()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    again = await asyncio.to_thread(Server, FAKE, None, int(server.url.rsplit(":", 1)[1]))
    try:
        await expect(presenter.locator("#error")).to_contain_text("Back again")
        await chromium.wait_for_state(presenter, "live")
        await chromium.moving(presenter)
        assert [each["id"] for each in again.get("/v1/sessions")] == [session]
        await browser.leave()
    finally:
        again.stop()


async def test_the_address_live_follows_the_newest_session(
    serve: Callable[..., Server], browser: chromium.Visit
) -> None:
    browser.allow("404")
    server = serve(FAKE)
    page = await browser.open(f"{server.url}/obs/live")
    await asyncio.sleep(0.5)
    assert await page.evaluate(GONE)
    first = server.post("/v1/sessions", {"avatar": "mei"})
    await playing(page)
    server.delete(f"/v1/sessions/{first['id']}")
    await chromium.until(page, GONE)
    server.post("/v1/sessions", {"avatar": "jonas"})
    await playing(page)


@pytest.mark.parametrize("way", ["alpha", "key"])
async def test_a_plain_background_is_cut_away(serve: Callable[..., Server], browser: chromium.Visit, way: str) -> None:
    config = {**FAKE, "model": {"kind": "fake", "fake": {"width": 512, "height": 512}}}
    server = serve(config)
    made = server.post("/v1/sessions", {"avatar": "mei"})
    query = "alpha=1" if way == "alpha" else "key=00ff00"
    page = await browser.open(f"{server.url}/{made['urls']['obs']}&{query}")
    await playing(page)
    await chromium.until(page, "document.body.dataset.cut === '1'")
    if way == "alpha":
        await page.evaluate(BACKDROP)
    await asyncio.sleep(0.3)
    corner, middle = await corner_and_middle(page, f"obs_desktop_{way}")
    behind = np.array([250, 0, 250] if way == "alpha" else [0, 255, 0])
    assert np.abs(corner - behind).max() <= 2, corner
    assert np.abs(middle - behind).max() > 40, "the face stays"


async def test_a_busy_background_is_shown_whole_and_said(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    server = serve(FAKE)
    made = server.post("/v1/sessions", {"avatar": "mei"})
    page = await browser.open(f"{server.url}/{made['urls']['obs']}&alpha=1", script=BUSY)
    browser.allow("not plain")
    said = []
    page.on("console", lambda message: said.append(message.text))
    await playing(page)
    for _ in range(100):
        if any("not plain" in text for text in said):
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("nothing was said about the background")
    assert await page.evaluate("document.querySelector('#cut').hidden")


# A camera picture instead of the stream: half of every picture's edge is of another colour.
BUSY = """const draw = OffscreenCanvasRenderingContext2D.prototype.drawImage;
  OffscreenCanvasRenderingContext2D.prototype.drawImage = function (...args) {
    draw.apply(this, args);
    this.fillStyle = '#f00';
    this.fillRect(0, 0, this.canvas.width / 2, this.canvas.height); };"""

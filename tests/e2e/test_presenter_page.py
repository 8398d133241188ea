"""The presenter page with the stand-in model: everything a visitor can run into, none of it timed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Page, expect

from tests.e2e import chromium
from tests.e2e.serving import FAKE, Server

pytestmark = pytest.mark.browser


@pytest.fixture
async def page(server: Server, browser: chromium.Visit) -> AsyncIterator[Page]:
    """The page, loaded; the place on the server is free again afterwards."""
    opened = await browser.open(server.url)
    yield opened
    await opened.goto("about:blank")  # as a visitor leaves: the page itself must free its place
    await empty(server)


async def empty(server: Server) -> None:
    """Wait until no session is left."""
    for _ in range(50):
        if await asyncio.to_thread(server.sessions) == 0:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the page left its session behind")


async def session_id(page: Page) -> str:
    """Id of the running session, from the address its connection was offered to."""
    urls = await page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    return [url.split("/")[-2] for url in urls if url.endswith("/offer")][-1]


async def test_start_shows_the_avatar_and_stop_ends_the_session(page: Page, server: Server) -> None:
    await expect(page.locator("#state")).to_have_text("Ready")
    await expect(page.locator("#stop")).to_be_hidden()
    await chromium.start(page)
    await expect(page.locator("#state")).to_have_text("Live")
    assert server.sessions() == 1
    assert await page.evaluate("document.querySelector('#avatar').muted"), "sound must start muted"
    for name in ("fps", "latency", "block", "offset"):
        await page.wait_for_selector(f'[data-figure="{name}"][data-value]', timeout=15_000)
    await expect(page.locator("#waterfall")).to_have_attribute("aria-label", re.compile("imagining"))
    await page.click("#stop")
    await chromium.wait_for_state(page, "ready")
    await empty(server)


async def test_the_portrait_is_there_before_anything_else(page: Page) -> None:
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await chromium.until(page, "document.querySelector('#avatar').poster !== ''")
    drawn = "[...document.querySelector('#still').getContext('2d').getImageData(200, 200, 40, 40).data].some((v) => v)"
    await chromium.until(page, drawn)
    assert len(await page.query_selector_all("#gallery input")) >= 8


async def test_a_reload_frees_the_place_and_starts_again(page: Page) -> None:
    await chromium.start(page)
    await page.reload()
    await chromium.start(page)  # there is room for one session only


async def test_a_lost_connection_resumes_in_the_same_session(page: Page, server: Server) -> None:
    lose = await chromium.lossy(page)
    await chromium.start(page)
    before = await session_id(page)
    await lose(100)
    await chromium.wait_for_state(page, "lost", timeout_s=20)
    still = "document.querySelector('#still').classList.contains('gone')"
    assert not await page.evaluate(still), "the last picture must stay while the connection is away"
    await lose(0)
    await chromium.wait_for_state(page, "live", timeout_s=40)
    await chromium.moving(page)
    assert await session_id(page) == before
    assert await page.evaluate("probe.connections.length") >= 2
    assert server.sessions() == 1


async def test_a_session_ended_by_the_server_is_explained(page: Page, server: Server) -> None:
    await chromium.start(page)
    server.delete(f"/v1/sessions/{await session_id(page)}")
    await page.wait_for_selector("#error:not(:empty)", timeout=30_000)
    await chromium.wait_for_state(page, "ready")
    await expect(page.locator("#error")).to_contain_text("ended")


async def test_a_full_server_says_so_and_lets_the_next_one_in(
    page: Page, server: Server, browser: chromium.Visit
) -> None:
    await chromium.start(page)
    second = await browser.open(server.url)
    await second.wait_for_selector("#gallery input:checked", state="attached")
    await second.click("#start")
    await chromium.wait_for_state(second, "full")
    await expect(second.locator("#error")).to_contain_text("All places are taken")
    await expect(second.locator("#error")).to_contain_text("1st in line, about")
    await chromium.moving(page)  # the first visitor notices nothing
    await page.click("#stop")
    await chromium.wait_for_state(second, "live")  # by itself
    await chromium.moving(second)
    await second.goto("about:blank")


async def test_a_file_that_is_no_picture_is_refused_kindly(page: Page, tmp_path: Path) -> None:
    await page.wait_for_selector("#gallery input:checked", state="attached")
    chosen = await page.input_value("#gallery input:checked")
    text = tmp_path / "notes.txt"
    text.write_text("not a picture", encoding="utf-8")
    await page.set_input_files("#portrait", text)
    await expect(page.locator("#error")).to_contain_text("“notes.txt” is not a picture")
    assert await page.input_value("#gallery input:checked") == chosen
    await chromium.start(page)  # and nothing is broken by it
    await expect(page.locator("#error")).to_be_empty()


async def test_a_photograph_is_called_out_of_domain_with_the_measure(page: Page, tmp_path: Path) -> None:
    grain = np.random.default_rng(5).normal(128, 60, (300, 260, 3)).clip(0, 255).astype(np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(grain).save(photo, quality=95)
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await page.set_input_files("#portrait", photo)
    await expect(page.locator("#gallery input:checked")).to_have_value("own")
    await page.click("#start")
    await page.wait_for_selector('#error[data-tone="warn"]:not(:empty)', timeout=30_000)
    await expect(page.locator("#error")).to_contain_text("drawn portraits")
    assert "dB" in await page.inner_text("#error"), "the measured reason must be named"


async def test_the_portrait_changes_while_the_avatar_is_live(page: Page) -> None:
    await chromium.start(page)
    colour = """() => { const c = new OffscreenCanvas(8, 8).getContext('2d', { willReadFrequently: true });
      c.drawImage(document.querySelector('#avatar'), 0, 0, 8, 8); return [...c.getImageData(0, 0, 8, 8).data]; }"""
    before = np.array(await page.evaluate(colour))
    await page.locator("#gallery input").nth(3).check(force=True)
    for _ in range(60):
        await asyncio.sleep(0.1)
        if np.abs(np.array(await page.evaluate(colour)) - before).mean() > 15:
            break
    else:
        raise AssertionError("the picture kept showing the first portrait")
    await expect(page.locator("#state")).to_have_text("Live")


async def test_an_expression_is_sent_and_confirmed(page: Page) -> None:
    await page.locator("#suggestions button", has_text="Happy").click()
    assert "happy" in await page.input_value("#prompt")
    await chromium.start(page)
    await page.fill("#prompt", "sad and quiet")
    await page.press("#prompt", "Enter")
    await expect(page.locator("#prompt-note")).to_contain_text("in effect", timeout=15_000)
    pressed = page.locator('#suggestions button[aria-pressed="true"]')
    await expect(pressed).to_have_text("Sad")


async def test_a_sound_file_speaks_instead_of_the_microphone(page: Page, voice: Path) -> None:
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await page.locator('input[name="source"][value="file"]').check(force=True)
    await page.click("#start")
    await expect(page.locator("#error")).to_contain_text("No sound file chosen")
    await page.set_input_files("#file", voice)
    await chromium.start(page)
    await expect(page.locator("#file-time")).to_contain_text("of 0:27")
    await chromium.until(page, "Number(document.querySelector('#meter').getAttribute('aria-valuenow')) > 20")
    await chromium.until(page, "document.querySelector('#frame').dataset.activity === 'speaking'")
    await expect(page.locator("#replay")).to_be_visible()


async def test_a_file_that_is_no_sound_is_refused_kindly(page: Page, tmp_path: Path) -> None:
    await page.locator('input[name="source"][value="file"]').check(force=True)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nothing behind it")
    await page.set_input_files("#file", broken)
    await page.click("#start")
    await expect(page.locator("#error")).to_contain_text("“broken.wav” could not be decoded")
    await chromium.wait_for_state(page, "ready")


async def test_messages_come_by_websocket_where_the_data_channel_does_not_open(
    server: Server, browser: chromium.Visit
) -> None:
    closed = """RTCPeerConnection.prototype.createDataChannel = function () {
      return Object.assign(new EventTarget(), { readyState: 'connecting', close() {} }); };"""
    page = await browser.open(server.url, script=closed)
    await chromium.start(page)
    await page.wait_for_selector('[data-figure="block"][data-value]', timeout=20_000)


async def test_the_engine_may_die_and_the_page_goes_on(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    server = serve(FAKE)
    page = await browser.open(server.url)
    await chromium.start(page)
    [engine] = server.engines()
    engine.kill()
    await chromium.wait_for_state(page, "degraded", timeout_s=10)
    assert await page.evaluate("document.querySelector('#avatar').videoWidth") > 0, "the last picture stays"
    await chromium.wait_for_state(page, "live")
    await chromium.moving(page)
    assert await page.evaluate("probe.offers.length") == 1, "no new offer may be needed"


async def test_a_server_that_leaves_says_goodbye(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    server = serve(FAKE)
    page = await browser.open(server.url)
    await chromium.start(page)
    browser.allow("ERR_CONNECTION_REFUSED")
    leaving = asyncio.create_task(asyncio.to_thread(server.stop))
    await expect(page.locator("#error")).to_contain_text("going down")
    await expect(page.locator("#error")).to_contain_text("has ended")
    await chromium.wait_for_state(page, "ready")
    assert await leaving == 0


async def test_a_waterfall_row_adds_up_to_what_was_measured(page: Page) -> None:
    event = {"index": 10, "window_closed_ms": 5420, "queued_ms": 20, "audio_ms": 30, "dit_ms": 150, "vae_ms": 60}
    row = "([event]) => import('/static/figures.js').then((module) => module.waterfallRow(event, 1000))"
    early = await page.evaluate(row, [{**event, "arrived_ms": 5700, "due_ms": 5800}])
    spans = {span["stage"]: span["ms"] for span in early["spans"]}
    # 620 ms until the window closed, 280 until the pictures came: 20 of them hand-over, 100 in hand until due
    assert spans == {"listen": 620, "queue": 40, "audio": 30, "dit": 150, "vae": 60, "hold": 100}
    assert sum(spans.values()) == early["dueMs"] == 1000
    assert not early["late"]
    late = await page.evaluate(row, [{**event, "arrived_ms": 5900, "due_ms": 5800}])
    assert late["late"]
    assert late["endMs"] == 1100
    assert await page.evaluate(row, [{"index": 1, "due_ms": 5}]) is None

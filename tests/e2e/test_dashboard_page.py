"""The dashboard with the stand-in model: a live session, a refusal, a restart, a locked server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from playwright.async_api import expect

from tests.e2e import chromium
from tests.e2e.serving import FAKE, Server

pytestmark = pytest.mark.browser

ONE = {**FAKE, "limits": {"max_sessions": 1}}
KEY = "an-admin-key-for-this-test"
DRAWN = """(id) => { const c = document.getElementById(id); const g = c.getContext('2d');
  return new Set(new Uint32Array(g.getImageData(0, 0, c.width, c.height).data.buffer)).size; }"""


async def test_a_live_session_and_a_refusal_are_shown(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    browser.allow("503")
    server = serve(ONE)
    page = await browser.open(f"{server.url}/dashboard", viewport={"width": 1280, "height": 920})
    await expect(page.locator("#sessions")).to_have_text("0 of 1")
    await expect(page.locator("#refusals-note")).to_have_text("Nothing was refused.")
    presenter = await browser.open(f"{server.url}/kiosk?avatar=mei")
    await presenter.click("#begin")
    await presenter.wait_for_selector('body[data-state="live"]')
    await presenter.click("#hands-free")
    await expect(page.locator("#sessions")).to_have_text("1 of 1")
    await expect(page.locator("#list li")).to_contain_text("mei")
    await expect(page.locator("#list li")).to_contain_text("ms ·")
    for stage in ("audio", "dit", "vae", "encode"):
        await expect(page.locator(f'#blocks [data-stage="{stage}"] b')).to_contain_text("ms")
    refused = """fetch('/v1/sessions', { method: 'POST', body: '{}', headers: { 'Content-Type': 'application/json' } })
      .then((answer) => answer.status)"""
    status = await presenter.evaluate(refused)
    assert status == 503
    await expect(page.locator('#refusals [data-stage="refused"]')).to_contain_text("capacity")
    await expect(page.locator("#refusals-note")).to_contain_text("Latest: capacity")
    await asyncio.sleep(4)
    assert await page.evaluate(DRAWN, "latency-chart") > 3
    label = await page.get_attribute("#latency-chart", "aria-label")
    assert label is not None
    assert label.startswith("Now: ")
    await chromium.shoot(page, "dashboard_desktop")
    await page.set_viewport_size({"width": 390, "height": 1500})
    await asyncio.sleep(1.2)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing may stick out"
    await chromium.shoot(page, "dashboard_phone")


async def test_a_server_that_goes_and_comes_back_is_noticed(
    serve: Callable[..., Server], browser: chromium.Visit
) -> None:
    browser.allow("ERR_")
    server = serve(FAKE)
    page = await browser.open(f"{server.url}/dashboard")
    await chromium.wait_for_state(page, "live")
    await asyncio.to_thread(server.stop)
    await expect(page.locator("#error")).to_contain_text("does not answer")
    again = await asyncio.to_thread(Server, FAKE, None, int(server.url.rsplit(":", 1)[1]))
    try:
        await chromium.wait_for_state(page, "live")
        await expect(page.locator("#error")).to_be_empty()
        await browser.leave()
    finally:
        again.stop()


async def test_a_locked_server_asks_for_the_key(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    browser.allow("401")
    server = serve({**FAKE, "auth": {"required": "always"}}, {"AVATARCAST_API_KEY": KEY})
    page = await browser.open(f"{server.url}/dashboard")
    await expect(page.locator("#error")).to_contain_text("asks for its admin key")
    await page.fill("#error input", "wrong")
    await page.press("#error input", "Enter")
    await expect(page.locator("#error input")).to_have_value("")
    await page.fill("#error input", KEY)
    await page.press("#error input", "Enter")
    await chromium.wait_for_state(page, "live")
    await expect(page.locator("#error")).to_be_empty()


async def test_metrics_are_read_as_they_are_written(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    page = await browser.open(f"{serve(FAKE).url}/dashboard")
    text = '# HELP a b\n# TYPE a counter\na_total{code="bad \\"sdp\\"",x="1"} 2.0\na_total{code="c"} 1e-3\nb +Inf\n'
    read = """(text) => import('/static/prometheus.js').then(({ parseMetrics }) => {
      const m = parseMetrics(text);
      return [m.all('a_total').length, m.all('a_total')[0].labels.code,
        m.value('a_total', { code: 'c' }), m.value('z')]; })"""
    assert await page.evaluate(read, text) == [2, 'bad "sdp"', 0.001, 0]

"""The kiosk page with the stand-in model: push-to-talk, hands-free, and everything that may go wrong in public."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from tests.e2e import chromium
from tests.e2e.serving import Server
from tests.e2e.test_presenter_page import empty, session_id

pytestmark = pytest.mark.browser

REFUSE = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }"


@pytest.fixture
async def page(server: Server, browser: chromium.Visit) -> AsyncIterator[Page]:
    """The kiosk in attract mode; leaving it must free its place."""
    opened = await browser.open(f"{server.url}/kiosk?avatar=mei")
    await chromium.until(opened, "document.querySelector('#portrait').naturalWidth > 0")
    yield opened
    await opened.goto("about:blank")
    await empty(server)


async def talking(page: Page) -> None:
    await page.click("#begin")
    await in_state(page, "live")
    await chromium.moving(page)


async def in_state(page: Page, state: str, timeout_s: float = 20.0) -> None:
    await page.wait_for_selector(f'body[data-state="{state}"]', timeout=1000 * timeout_s)


async def test_holding_the_button_is_heard_and_spoken(page: Page, server: Server) -> None:
    assert server.sessions() == 0, "attract mode takes no place"
    await talking(page)
    caption = page.locator("#caption")
    await expect(caption).to_have_text("Hold the button and talk")
    assert await caption.get_attribute("aria-live") == "polite"
    await asyncio.sleep(1.5)  # the recorded voice plays all the while, but nobody holds the button
    await expect(caption).to_have_text("Hold the button and talk")
    await page.hover("#talk")
    await page.mouse.down()
    await expect(caption).to_have_text("Listening")
    await expect(page.locator("#talk")).to_have_attribute("aria-pressed", "true")
    await expect(caption).to_have_text("Speaking")
    await page.mouse.up()
    await expect(page.locator("#talk")).to_have_attribute("aria-pressed", "false")
    await expect(caption).to_have_text("Hold the button and talk")
    await page.click("#finish")
    await expect(page.locator("#begin")).to_be_visible()
    await empty(server)


async def test_keys_do_what_touch_does(page: Page) -> None:
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await in_state(page, "live")
    await page.keyboard.down("Space")
    await expect(page.locator("#caption")).to_have_text("Listening")
    await page.keyboard.up("Space")
    await page.focus("#hands-free")
    await page.keyboard.press("Enter")
    await expect(page.locator("#hands-free")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("#caption")).to_have_text("Speaking")
    await page.keyboard.press("Escape")
    await expect(page.locator("#begin")).to_be_visible()


async def test_a_kiosk_left_alone_goes_back_to_its_attract_mode(server: Server, browser: chromium.Visit) -> None:
    page = await browser.open(f"{server.url}/kiosk?idle=2")
    await talking(page)
    await expect(page.locator("#begin")).to_be_visible()
    await empty(server)


async def test_errors_say_what_to_do(page: Page, server: Server, browser: chromium.Visit) -> None:
    await page.evaluate(f"() => {{ window.ask = navigator.mediaDevices.getUserMedia; {REFUSE}; }}")
    await page.click("#begin")
    await expect(page.locator("#error")).to_contain_text("The microphone was not allowed")
    await expect(page.locator("#error")).not_to_contain_text("sound file")
    await expect(page.locator("#begin")).to_be_visible()
    await page.evaluate("() => { navigator.mediaDevices.getUserMedia = window.ask; }")
    await talking(page)
    second = await browser.open(f"{server.url}/kiosk")
    await second.click("#begin")
    await in_state(second, "full")
    await expect(second.locator("#error")).to_contain_text("The avatar is busy")
    await expect(second.locator("#error")).to_contain_text("1st in line")
    await second.click("#finish")
    await expect(second.locator("#error")).to_be_empty()
    server.delete(f"/v1/sessions/{await session_id(page)}")
    await expect(page.locator("#error")).to_contain_text("The conversation has ended")


async def test_a_lost_connection_comes_back_by_itself(page: Page, server: Server) -> None:
    lose = await chromium.lossy(page)
    await talking(page)
    await lose(100)
    await in_state(page, "lost")
    await expect(page.locator("#caption")).to_contain_text("Connection lost")
    assert await page.evaluate("!document.querySelector('#still').hidden"), "the last picture stays"
    await lose(0)
    await in_state(page, "live", timeout_s=40)
    await expect(page.locator("#error")).to_contain_text("Back again")
    assert server.sessions() == 1


@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_screenshots(page: Page, device: str) -> None:
    await page.set_viewport_size(chromium.DESKTOP if device == "desktop" else chromium.PHONE)
    await asyncio.sleep(1.2)
    await chromium.shoot(page, f"kiosk_{device}_attract")
    await talking(page)
    await page.hover("#talk")
    await page.mouse.down()
    await expect(page.locator("#caption")).to_have_text("Speaking")
    await chromium.shoot(page, f"kiosk_{device}_speaking")
    await page.mouse.up()
    await page.click("#finish")
    await page.evaluate(f"() => {{ {REFUSE}; }}")
    await page.click("#begin")
    await expect(page.locator("#error")).not_to_be_empty()
    await chromium.shoot(page, f"kiosk_{device}_error")

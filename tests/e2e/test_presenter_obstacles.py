"""The presenter page where something is missing: permission, microphone, HTTPS, key, H.264, mouse, width."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, expect

from tests.e2e import chromium
from tests.e2e.serving import FAKE, Server

pytestmark = pytest.mark.browser

KEY = "a-key-for-the-tests-0123456789"


async def started(page: Page) -> None:
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await page.click("#start")


async def test_a_refused_microphone_is_explained_and_takes_no_place(server: Server) -> None:
    flags = (*chromium.QUIET, "--use-fake-device-for-media-stream", "--deny-permission-prompts")
    async with chromium.visit(flags) as visit:
        page = await visit.open(server.url)
        await started(page)
        await expect(page.locator("#error")).to_contain_text("The microphone was not allowed")
        await chromium.wait_for_state(page, "ready")
        assert server.sessions() == 0
        assert visit.complaints == []


async def test_a_machine_without_a_microphone_is_told_what_to_do(server: Server) -> None:
    async with chromium.visit((*chromium.QUIET, "--use-fake-ui-for-media-stream")) as visit:
        page = await visit.open(server.url)
        await started(page)
        await expect(page.locator("#error")).to_contain_text("No microphone was found")
        await expect(page.locator("#error")).to_contain_text("sound file")
        await chromium.wait_for_state(page, "ready")
        assert visit.complaints == []


async def test_without_https_the_reason_is_named_and_a_file_still_works(serve: Callable[..., Server], voice) -> None:
    """Also a server with a key: the key comes behind the # of the address, or is asked for."""
    server = serve({**FAKE, "auth": {"required": "always"}}, {"AVATARCAST_API_KEY": KEY})
    flags = (*chromium.QUIET, "--host-resolver-rules=MAP avatar.test 127.0.0.1")
    async with chromium.visit(flags) as visit:
        page = await visit.open(f"http://avatar.test:{urlsplit(server.url).port}/#key={KEY}")
        assert not await page.evaluate("isSecureContext")
        assert KEY not in page.url
        await expect(page.locator("#hint")).to_contain_text("not opened over HTTPS")
        await started(page)
        await expect(page.locator("#error")).to_contain_text("The microphone is out of reach")
        await page.locator('input[name="source"][value="file"]').check(force=True)
        await page.set_input_files("#file", voice)
        await chromium.start(page)
        assert visit.complaints == []


async def test_a_server_with_a_key_asks_for_it(serve: Callable[..., Server], browser: chromium.Visit) -> None:
    server = serve({**FAKE, "auth": {"required": "always"}}, {"AVATARCAST_API_KEY": KEY})
    browser.allow("401")
    page = await browser.open(server.url)
    await page.click("#start")
    await expect(page.locator("#error")).to_contain_text("asks for an access key")
    await page.fill('#error input[type="password"]', KEY)
    await page.press('#error input[type="password"]', "Enter")
    await chromium.wait_for_state(page, "live")


async def test_a_browser_without_h264_is_told_so(server: Server, browser: chromium.Visit) -> None:
    blind = """RTCRtpReceiver.getCapabilities = () => ({ codecs: [{ mimeType: 'video/VP8', clockRate: 90000 }] });"""
    page = await browser.open(server.url, script=blind)
    await started(page)
    await expect(page.locator("#error")).to_contain_text("H.264")
    assert server.sessions() == 0


async def test_the_keyboard_reaches_everything(server: Server, browser: chromium.Visit) -> None:
    page = await browser.open(server.url)
    await page.wait_for_selector("#gallery input:checked", state="attached")
    seen: list[str] = []
    name = """(() => { const e = document.activeElement;
      return e === document.body ? 'BODY' : e.id || e.name || e.textContent.trim() || e.tagName; })()"""
    for _ in range(30):
        await page.keyboard.press("Tab")
        seen.append(await page.evaluate(name))
        focus = "getComputedStyle(document.activeElement).outlineStyle"
        if seen[-1] not in (
            "avatar",
            "portrait",
            "source",
            "BODY",
        ):  # these show the ring on what they belong to
            assert await page.evaluate(focus) != "none", f"{seen[-1]} has the focus but does not show it"
    for wanted in ("start", "avatar", "portrait", "source", "microphone", "prompt", "Apply", "Happy"):
        assert wanted in seen, f"{wanted} cannot be reached by Tab: {seen}"
    await page.focus("#gallery input:checked")
    first = await page.input_value("#gallery input:checked")
    await page.keyboard.press("ArrowRight")
    assert await page.input_value("#gallery input:checked") != first
    await page.focus("#start")
    await page.keyboard.press("Enter")
    await chromium.wait_for_state(page, "live")
    assert await page.evaluate("document.activeElement.id") == "stop", "the focus must not be lost with the button"
    await page.keyboard.press("Enter")
    await chromium.wait_for_state(page, "ready")
    assert await page.evaluate("document.activeElement.id") == "start"


async def test_a_screen_reader_finds_names_and_news(server: Server, browser: chromium.Visit) -> None:
    page = await browser.open(server.url)
    await page.wait_for_selector("#gallery input:checked", state="attached")
    tree = await page.locator("body").aria_snapshot()
    assert re.search(r"- status: Ready", tree)
    for role, name in (
        ("button", "Start talking"),
        ("radio", "Microphone"),
        ("combobox", "Microphone"),
        ("textbox", "Describe the expression"),
        ("radiogroup", "Choose a portrait"),
        ("meter", "Input level"),
    ):
        await expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
    await expect(page.locator("#error")).to_have_attribute("role", "alert")
    await expect(page.locator("#state")).to_have_attribute("aria-live", "polite")
    unnamed = """[...document.querySelectorAll('button, input, select, a')].filter((e) => !e.hidden
      && !(e.textContent.trim() || e.ariaLabel || [...(e.labels ?? [])].some((l) => l.textContent.trim()
      || l.querySelector('img')?.alt))).map((e) => e.outerHTML)"""
    assert await page.evaluate(unnamed) == []


@pytest.mark.parametrize("width", [360, 390, 768, 1024])
async def test_nothing_runs_over_the_edge(server: Server, browser: chromium.Visit, width: int) -> None:
    page = await browser.open(server.url, viewport={"width": width, "height": 760})
    await page.wait_for_selector("#gallery input:checked", state="attached")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    small = """[...document.querySelectorAll('button, select, input[type=text]')].filter((e) => e.offsetParent)
      .filter((e) => e.getBoundingClientRect().height < 36).map((e) => e.outerHTML)"""
    assert await page.evaluate(small) == [], "too small for a finger"

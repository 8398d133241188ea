"""A real Chromium with a recorded voice for a microphone, and what every visit of a page must not do."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

expect.set_options(timeout=15_000)

PROBE = Path(__file__).with_name("probe.js")
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


def with_microphone(wav: Path) -> tuple[str, ...]:
    """Flags for a microphone that plays `wav` in a loop and is always allowed."""
    return (
        *QUIET,
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    )


@dataclass
class Visit:
    """One browser with one or more pages, and all they complained about."""

    browser: Browser
    complaints: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    async def open(self, url: str, *, script: str = "", **options: Any) -> Page:
        """Open a page in a context of its own; the probe is in it before the page's scripts run."""
        context = await self.browser.new_context(**{"viewport": DESKTOP, **options})
        self.contexts.append(context)
        await context.add_init_script(path=PROBE)
        if script:
            await context.add_init_script(script=script)
        page = await context.new_page()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        await page.goto(url)
        return page

    def allow(self, text: str) -> None:
        """Complaints that contain this are part of the test: a browser logs every request that was refused."""
        self.allowed.append(text)

    async def leave(self) -> None:
        """Go away as a visitor does, so that the pages free their places."""
        for page in [page for context in self.contexts for page in context.pages]:
            await page.goto("about:blank")

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(text in message.text for text in self.allowed):
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


@asynccontextmanager
async def visit(args: tuple[str, ...]) -> AsyncIterator[Visit]:
    """A browser for the length of the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(args))
        try:
            opened = Visit(browser)
            yield opened
            await opened.leave()
        finally:
            await browser.close()


async def wait_for_state(page: Page, *states: str, timeout_s: float = 30.0) -> None:
    """Wait until the page's state is one of these."""
    selector = ", ".join(f'#state[data-state="{state}"]' for state in states)
    await page.wait_for_selector(selector, timeout=1000 * timeout_s)


async def start(page: Page) -> None:
    """Wait for the gallery, press start, wait until the avatar is live and its picture really presented."""
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await page.click("#start")
    await wait_for_state(page, "live")
    await moving(page)


async def until(page: Page, condition: str, timeout_s: float = 20.0) -> None:
    """Wait until a JavaScript expression is true. (`page.wait_for_function` needs eval, which the page forbids.)"""
    deadline_s = time.monotonic() + timeout_s
    while not await page.evaluate(condition):
        assert time.monotonic() < deadline_s, f"still not true after {timeout_s:.0f} s: {condition}"
        await asyncio.sleep(0.05)


async def moving(page: Page, frames: int = 3) -> None:
    """Wait until this many more pictures have been presented."""
    await page.evaluate("(n) => probe.moreFrames(n)", frames)


async def lossy(page: Page) -> Callable[[float], Awaitable[None]]:
    """Lets a test lose packets of the page's WebRTC connections, by per cent. Ask for it before they are made: Chromium
    decides about emulation when a socket is opened, and one millisecond of latency is what switches it on.
    """
    network = await page.context.new_cdp_session(page)
    await network.send("Network.enable")

    async def lose(percent: float) -> None:
        conditions = {"offline": False, "latency": 1, "downloadThroughput": -1, "uploadThroughput": -1}
        await network.send("Network.emulateNetworkConditions", {**conditions, "packetLoss": percent})

    await lose(0)
    return lose


async def shoot(page: Page, name: str) -> Path:
    """A screenshot among the artifacts."""
    ARTIFACTS.mkdir(exist_ok=True)
    path = ARTIFACTS / f"{name}.png"
    await page.screenshot(path=path)
    return path

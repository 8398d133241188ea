"""Pictures of the page for people to look at: start, running and error, on a desktop and on a phone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e import chromium
from tests.e2e.serving import Server

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_screenshots(
    serve: Callable[..., Server], browser: chromium.Visit, product_config: str | dict[str, Any], device: str
) -> None:
    size = chromium.DESKTOP if device == "desktop" else chromium.PHONE
    other = "dark"
    server = serve(product_config)
    page = await browser.open(server.url, viewport=size)
    await page.wait_for_selector("#gallery input:checked", state="attached")
    await chromium.until(page, "document.querySelector('#avatar').poster !== ''")
    await asyncio.sleep(0.5)
    shots = [await chromium.shoot(page, f"presenter_{device}_start")]
    await chromium.start(page)
    await page.wait_for_selector('[data-figure="block"][data-value]')
    await asyncio.sleep(4)  # some bars in the waterfall
    shots.append(await chromium.shoot(page, f"presenter_{device}_running"))
    await page.emulate_media(color_scheme=other)
    await asyncio.sleep(0.7)
    shots.append(await chromium.shoot(page, f"presenter_{device}_running_{other}"))
    await page.emulate_media(color_scheme=None)
    await page.click("#stop")
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }"
    await page.evaluate(f"() => {{ {refuse}; }}")
    await page.click("#start")
    await page.wait_for_selector("#error:not(:empty)")
    shots.append(await chromium.shoot(page, f"presenter_{device}_error"))
    for path in shots:
        with Image.open(path) as picture:
            assert picture.size == (size["width"], size["height"])
            assert len(np.unique(np.asarray(picture.convert("L")))) > 100, f"{path.name} shows next to nothing"

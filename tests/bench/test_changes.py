"""Portrait and expression change while the avatar speaks, on tiny: no picture is held or black, the block is named.

Not part of the default suite: on a machine that does other things as well pictures are held for their sake. `make soak`
runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import numpy as np
import pytest

from model.portrait import decode_image, fit_portrait
from server.bench import synthetic_voice
from server.config import Secrets, load_config
from server.hub import Hub
from server.live import LiveSession
from server.schemas import NewSession
from streaming.events import Event
from streaming.playout import Picture
from tests.unit.server.whip_client import until

RATE_HZ = 48_000
PORTRAITS = ("jonas", "mei", "sofia", "kofi", "ingrid", "ravi", "leila", "david")
PROMPTS = ("a happy person", "a sad person")


class Watch:
    """Pulls pictures and sound as they fall due, and keeps the pictures."""

    def __init__(self, live: LiveSession) -> None:
        self.live = live
        self.pictures: list[Picture] = []
        self.events: list[Event] = []
        live.session.subscribe(self.events.append)

    async def run(self) -> None:
        playout, clock = self.live.session.playout, self.live._around.clock
        while True:
            await clock.sleep_until(min(playout.next_picture_s, playout.next_sound_s))
            if (picture := playout.frame_due(clock.now())) is not None:
                self.pictures.append(picture)
            while playout.next_audio(clock.now()) is not None:
                pass

    def told(self, kind: str) -> list[dict]:
        return [dict(event.data) for event in self.events if event.type == kind]


def corners(picture: np.ndarray) -> np.ndarray:
    """The upper corners, which are background: [2, 3]."""
    return np.stack([picture[:12, :12].mean((0, 1)), picture[:12, -12:].mean((0, 1))])


@pytest.mark.soak
async def test_changes_on_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    hub, draw = Hub(load_config("tiny"), Secrets()), random.Random(4)
    await hub.start()
    try:
        await hub.wait_started()
        assert hub.start_error is None
        geometry = hub.preview.geometry
        live = await hub.open_session(NewSession(mode="push", avatar="amara"), None, client="bench")
        watch = Watch(live)
        looking = asyncio.create_task(watch.run())
        with live.speaking_door():
            await until(lambda: live.session.stream is not None)
            live.session.push_pcm(np.tile(synthetic_voice(6.0), 6), RATE_HZ, live.session.begin_segment())
            await asyncio.sleep(4)
            since, planned = len(watch.pictures), []
            for number, name in enumerate(PORTRAITS):
                image = decode_image(hub.gallery.picture(name))
                planned.append(live.change(avatar=name, portrait=image, prompt=PROMPTS[number % 2]))
                await asyncio.sleep(2 + draw.random())
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
    finally:
        await hub.stop()
    shown = watch.pictures[since:]
    held = sum(not picture.is_fresh for picture in shown)
    darkest = min(float(picture.image.mean()) for picture in shown)
    by_frame = {picture.frame: picture.image for picture in shown if picture.is_fresh}
    applied, late = watch.told("avatar_applied"), []
    for change, name, plan in zip(applied, PORTRAITS, planned, strict=True):
        assert change["avatar"] == name and change["frame"] == change["block"] * geometry.frames_per_block
        late.append(change["block"] - plan.block)
        wanted = corners(fit_portrait(decode_image(hub.gallery.picture(name)), geometry.width, geometry.height))
        after, before = corners(by_frame[change["frame"]]), corners(by_frame[change["frame"] - 1])
        assert np.abs(after - wanted).mean() < 12 < np.abs(before - wanted).mean() + 8, name
    figures = {"pictures": len(shown), "held": held, "darkest": round(darkest, 1), "blocks_late": late}
    with capsys.disabled():
        print(f"\n{json.dumps(figures)}")
    assert len(watch.told("prompt_applied")) == len(PORTRAITS)
    assert darkest > 40 and held == 0

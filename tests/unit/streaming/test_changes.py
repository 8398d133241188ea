"""Every change of prompt or portrait that was planned is confirmed once, or refused with a reason, whatever happens."""

import numpy as np
import pytest

from model.errors import PortraitError
from model.fake import FakeConfig, FakeModel
from tests.fakes import PORTRAIT, Room, babble

GRAIN = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def shade(level: int) -> np.ndarray:
    return np.full((80, 80, 3), level, np.uint8)


@pytest.mark.parametrize("wait_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.46])
async def test_a_change_whose_block_is_interrupted_is_still_confirmed(wait_s):
    async with Room(block_s=0.3, image=PORTRAIT, mode="push") as room:
        await room.until(0)
        room.session.push_pcm(babble(9.0), 16_000, room.session.begin_segment())
        await room.run(3.0)
        planned = room.session.set_prompt("happy")
        room.session.set_avatar(shade(200), "nora")
        await room.run(wait_s + 0.04)
        room.session.interrupt()
        await room.run(2.0)
        (prompt,), (image,) = room.told("prompt_applied"), room.told("avatar_applied")
        assert image.data["avatar"] == "nora"
        assert prompt.data["block"] == image.data["block"] <= planned.block + 1
        shown = {picture.frame: int(picture.image[2, 2, 0]) for picture in room.pictures if picture.is_fresh}
        assert shown[max(shown)] == 200


async def test_a_change_that_dies_with_the_model_is_confirmed_by_its_successor():
    async with Room(block_s=0.1, image=PORTRAIT) as room:
        await room.until(1.0)
        room.session.set_avatar(shade(200), "nora")
        await room.engine.kill()
        await room.run(0.3)
        assert room.told("avatar_applied") == []
        room.engine.revive()
        await room.run(2.0)
        (image,) = room.told("avatar_applied")
        shown = {picture.frame: int(picture.image[2, 2, 0]) for picture in room.pictures if picture.is_fresh}
        assert shown[image.data["frame"]] == 200


async def test_each_confirmation_names_its_own_avatar():
    async with Room(block_s=0.4, image=PORTRAIT) as room:
        await room.until(1.0)
        first = room.session.set_avatar(shade(200), "nora")
        await room.run(0.48)
        second = room.session.set_avatar(shade(90), "max")
        assert room.told("avatar_applied") == [], "both wait"
        await room.run(2.0)
        told = [(event.data["avatar"], event.data["block"]) for event in room.told("avatar_applied")]
        assert told == [("nora", first.block), ("max", second.block)]


async def test_a_foreign_portrait_is_called_so_after_it_is_confirmed():
    async with Room(block_s=0.1, image=PORTRAIT) as room:
        await room.until(1.0)
        room.session.set_avatar(GRAIN, "")
        room.session.set_prompt("happy")
        await room.run(1.5)
        (warning,) = room.told("warning")
        assert warning.data["code"] == "out_of_domain" and warning.data["psnr_db"] < warning.data["min_psnr_db"]
        kinds = [event.type for event in room.events]
        assert kinds.index("avatar_applied") < kinds.index("warning")


async def test_a_change_that_cannot_be_made_is_told_and_the_stream_goes_on():
    class Picky(FakeModel):
        def update(self, update):
            if update.image is not None:
                raise PortraitError("the portrait has no face; send one with a face")
            return super().update(update)

    async with Room(model=Picky(FakeConfig(width=64, height=64)), image=PORTRAIT) as room:
        await room.until(1.0)
        room.session.set_avatar(shade(200), "nora")
        room.session.set_prompt("happy")
        await room.run(1.5)
        (error,) = room.told("error")
        assert error.data["code"] == "unsupported_media" and "no face" in error.data["message"]
        assert room.told("avatar_applied") == [] and len(room.told("prompt_applied")) == 1
        assert room.pictures[-1].is_fresh and room.pictures[-1].image[2, 2, 0] == 128

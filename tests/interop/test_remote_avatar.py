"""The client behind LiveKit worker and Pipecat service: what comes back is in order, in step, and told once."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from client_demo.avatar_line import Finished, Picture, Sound
from client_demo.microphone import ClientError, InputError
from client_demo.remote_avatar import AHEAD_S, RemoteAvatar, RemoteConfig
from tests.fakes import babble, mouth_opening
from tests.unit.server.running import Running, running

RATE_HZ = 16_000


def at(server: Running, **options: object) -> RemoteConfig:
    return RemoteConfig(server=f"http://127.0.0.1:{server.port}", **options)


def pcm(sound: np.ndarray) -> bytes:
    return (np.clip(sound, -1, 1) * 32_000).astype("<i2").tobytes()


def onsets(times_s: list[float], is_on: list[bool]) -> np.ndarray:
    """Moments at which something begins that was off for the three before."""
    return np.array([times_s[i] for i in range(3, len(is_on)) if is_on[i] and not any(is_on[i - 3 : i])])


async def test_pictures_and_sound_come_back_in_order_and_in_step() -> None:
    async with running() as server:
        asked_s = time.monotonic()
        async with RemoteAvatar(at(server)) as avatar:
            first_ms = 1000 * (time.monotonic() - asked_s)
            assert (avatar.media["width"], avatar.media["fps"]) == (64, 25)
            name = await avatar.begin(RATE_HZ)
            bursts = [np.concatenate([babble(0.5, seed, 0.9), np.zeros(9600, np.float32)]) for seed in range(5)]
            await avatar.push(pcm(np.concatenate(bursts)))
            await avatar.end()
            pictures: list[Picture] = []
            sounds: list[Sound] = []
            order: list[float] = []
            async for item in avatar:
                if isinstance(item, Finished):
                    break
                order.append(item.at_s)
                (pictures if isinstance(item, Picture) else sounds).append(item)  # type: ignore[arg-type]
            assert (item.segment, item.interrupted) == (name, False)
            assert item.position_ms == pytest.approx(5500, abs=100)
    heard = [sound for sound in sounds if sound.segment == name]
    assert len(heard) * 0.02 == pytest.approx(5.5, abs=0.15)
    assert np.mean(np.diff(order) >= -0.03) > 0.98, "in the order of their moments"
    shown = [mouth_opening(SimpleNamespace(image=p.frame.to_ndarray(format="rgb24"))) > 0.04 for p in pictures]
    loud = [np.abs(np.frombuffer(s.pcm(), "<i2")).max() > 1500 for s in sounds]
    lips_s, sound_s = onsets([p.at_s for p in pictures], shown), onsets([s.at_s for s in sounds], loud)
    offsets_ms = [1000 * (lips_s[np.abs(lips_s - s).argmin()] - s) for s in sound_s]
    span_s = pictures[-1].at_s - pictures[0].at_s
    fps = (len(pictures) - 1) / span_s
    print(f"first picture {first_ms:.0f} ms, {fps:.1f} fps, lips after sound {np.median(offsets_ms):.0f} ms")
    assert len(sound_s) == 5 and abs(np.median(offsets_ms)) <= 60
    assert 15 <= fps <= 26, "a busy machine drops pictures, never invents them"


async def test_a_session_of_others_is_joined_and_an_interrupt_from_elsewhere_is_told() -> None:
    async with running() as server:
        session = await server.open(mode="push")
        async with RemoteAvatar(at(server, session=session["id"], token=session["token"])) as avatar:
            assert avatar.media["width"] == 64
            name = await avatar.begin(24_000)
            pushing = asyncio.create_task(avatar.push(pcm(np.tile(babble(10.0), 3))))
            async for item in avatar:
                if isinstance(item, Sound) and item.segment == name:
                    break
            assert not pushing.done(), f"no more than {AHEAD_S:.0f} s are sent ahead"
            await server.http.post(f"/v1/sessions/{session['id']}/interrupt")
            async for item in avatar:
                if isinstance(item, Finished):
                    break
            assert item.segment == name and item.interrupted
            await asyncio.wait_for(pushing, AHEAD_S)
        assert (await server.http.get(f"/v1/sessions/{session['id']}")).status_code == 200, "it is not ours to end"


async def test_what_cannot_be_had_is_said_in_a_sentence() -> None:
    with pytest.raises(InputError, match="http://"):
        RemoteConfig(server="localhost:8080")
    async with running() as server:
        with pytest.raises(ClientError, match="not in the gallery"):
            async with RemoteAvatar(at(server, avatar="nobody")):
                pass
        with pytest.raises(ClientError, match="cannot be spoken to"):
            async with RemoteAvatar(at(server, session="none")):
                pass
        async with RemoteAvatar(at(server)) as avatar:
            await server.http.delete(f"/v1/sessions/{avatar.id}")
            with pytest.raises(ClientError, match="ended"):
                async for _ in avatar:
                    pass

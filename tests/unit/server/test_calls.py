"""Two aiortc peers over real sockets on loopback: a client calls, and gets pictures and its own voice in step."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from av import AudioFrame
from scipy.signal import resample_poly

from server import peer as peer_module
from tests.fakes import babble
from tests.unit.server.caller import calling, judge
from tests.unit.server.running import Running, fake_config, running

SIZE = 128


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running(fake_config(model={"fake": {"width": SIZE, "height": SIZE}})) as made:
        yield made


def voice(seconds: float) -> np.ndarray:
    """Bursts of speech-like sound with pauses of uneven length, 48 kHz."""
    pieces, seed = [], 0
    while sum(map(len, pieces)) < seconds * 16_000:
        pieces += [babble(0.5 + 0.13 * (seed % 4), seed), np.zeros(int(16_000 * (0.5 + 0.17 * (seed % 3))), np.float32)]
        seed += 1
    return resample_poly(np.concatenate(pieces), 3, 1).astype(np.float32)


async def test_a_caller_sees_a_picture_within_a_second_and_is_greeted(server: Running) -> None:
    session = await server.open()
    asked_s = time.monotonic()
    async with calling(server, session) as caller:
        await caller.pictures(1, within_s=3)
        assert caller.video.arrived_s[0] - asked_s < 1.0
        hello = await caller.until("hello")
        assert hello["session"] == session["id"]
        assert (hello["fps"], hello["block_ms"], hello["rates"]) == (25, 480, [16000, 24000, 48000])
        assert caller.video.content[0].shape == (SIZE, SIZE)
        await caller.until("state")
        status = (await server.http.get(f"/v1/sessions/{session['id']}")).json()
        assert status["viewers"] == 1


async def test_pictures_and_sound_come_back_in_step(server: Running) -> None:
    """Lips and voice, aligned by the sender's reports as a browser aligns them, differ by less than a picture."""
    session = await server.open()
    async with calling(server, session, voice(14)) as caller:
        await caller.until("playback_started", 8)
        await asyncio.sleep(10)
    shown = judge(caller)
    print("a page:", shown)
    assert shown.agreement > 0.6, "the mouth does not follow the voice"
    assert abs(shown.offset_ms) <= 40
    gaps = np.diff(caller.video.ticks)
    assert np.median(gaps) == 3600
    assert (gaps > 0).all()
    assert np.mean(gaps == 3600) > 0.9


async def test_messages_and_events_pass_over_the_data_channel(server: Running) -> None:
    session = await server.open()
    async with calling(server, session, voice(6)) as caller:
        await caller.until("hello")
        caller.channel.send('{"type":"ping","t":7}')
        assert (await caller.until("pong"))["t"] == 7
        caller.channel.send('{"type":"sing"}')
        assert (await caller.until("error", code="bad_request"))["message"]
        await caller.until("speech_started", 6)
        started = await caller.until("playback_started", 6)
        caller.channel.send('{"type":"interrupt"}')
        finished = await caller.until("playback_finished", 3, segment=started["segment"])
        assert finished["interrupted"]
        caller.channel.send('{"type":"prompt","text":"smile"}')
        applied = await caller.until("prompt_applied")
        assert applied["frame"] == 12 * applied["block"]
        caller.channel.send('{"type":"avatar","id":"mei"}')
        assert (await caller.until("avatar_applied"))["avatar"] == "mei"
        caller.channel.send('{"type":"avatar","id":"nobody"}')
        await caller.until("error", code="not_found")
        block = await caller.until("block")
        assert {"index", "window_closed_ms", "queued_ms", "arrived_ms", "due_ms"} <= set(block)
        stats = await caller.until("stats")
        assert {"fps", "block_ms_p50", "latency_ms", "av_drift_ms", "rtf"} <= set(stats)
        times = [message["pts_ms"] for message in caller.messages]
        assert all(later >= earlier - 50 for earlier, later in zip(times, times[1:], strict=False))
    text = (await server.http.get("/metrics")).text
    assert 'avatarcast_block_seconds_count{stage="dit"}' in text
    assert "avatarcast_ttff_seconds_count 1.0" in text
    assert "avatarcast_interrupt_seconds_count 1.0" in text
    latency = dict(line.split() for line in text.splitlines() if line.startswith("avatarcast_mouth_latency_seconds_s"))
    latency |= dict(line.split() for line in text.splitlines() if line.startswith("avatarcast_mouth_latency_seconds_c"))
    name = "avatarcast_mouth_latency_seconds"
    assert 0.5 < float(latency[f"{name}_sum"]) / float(latency[f"{name}_count"]) < 1.2


async def test_a_new_offer_replaces_the_connection_and_the_session_goes_on(server: Running) -> None:
    session = await server.open()
    async with calling(server, session) as first:
        await first.pictures(5)
        async with calling(server, session) as second:
            await second.pictures(5)
            live = server.hub.find(session["id"])
            assert live is not None
            assert len(live._peers()) == 1
            for _ in range(100):
                if first.connection.connectionState == "closed":
                    break
                await asyncio.sleep(0.05)
            assert first.connection.connectionState == "closed"


async def test_viewers_share_the_encode_and_cannot_control(server: Running) -> None:
    session = await server.open()
    view = session["view_token"]
    async with calling(server, session) as speaker, calling(server, session, voice(3), token=view) as viewer:
        await speaker.pictures(20)
        await viewer.pictures(20)
        live = server.hub.find(session["id"])
        assert live is not None
        assert len(live._peers()) == 2
        assert live._encoder.encoded < len(speaker.video.ticks) + 30
        viewer.channel.send('{"type":"interrupt"}')
        await viewer.until("error", code="forbidden")
        viewer.channel.send('{"type":"keyframe"}')
        await asyncio.sleep(1.5)
        assert not [m for m in speaker.messages if m["type"] == "speech_started"], "a viewer's microphone is not heard"
    await asyncio.sleep(0.3)
    assert (await server.http.get(f"/v1/sessions/{session['id']}")).status_code == 200


async def test_a_dead_engine_costs_no_connection(server: Running) -> None:
    """Kill the model's process: `degraded` within a second, the picture stays, and it goes on without a new offer."""
    session = await server.open()
    async with calling(server, session, voice(20)) as caller:
        await caller.until("block", 8)
        pid = server.hub.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        await caller.until("state", 2, state="degraded")
        assert time.monotonic() - killed_s < 1.0
        before = len(caller.video.ticks)
        blocks = sum(m["type"] == "block" for m in caller.messages)
        await caller.pictures(before + 25, within_s=2)
        for _ in range(100):
            if sum(m["type"] == "block" for m in caller.messages) > blocks + 1:
                break
            await asyncio.sleep(0.1)
        assert sum(m["type"] == "block" for m in caller.messages) > blocks + 1, "the stream did not resume"
        assert server.hub.engine.pid != pid
        assert caller.connection.connectionState == "connected"
    assert "avatarcast_engine_restarts_total 1.0" in (await server.http.get("/metrics")).text


async def test_audio_that_cannot_be_taken_is_told_once(server: Running) -> None:
    """0 Hz cannot even be framed; 192 kHz and 4 kHz are refused with the remedy, and good audio is taken again."""
    session = await server.open()
    live = server.hub.find(session["id"])
    assert live is not None
    async with calling(server, session) as caller:
        await caller.until("hello")
        for rate_hz in (192_000, 192_000, 4_000, 48_000, 192_000):
            frame = AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
            frame.sample_rate = rate_hz
            live._hear(frame, "speaker")
        await caller.until("error", code="unsupported_rate")
        await asyncio.sleep(0.3)
        errors = [m["message"] for m in caller.messages if m["type"] == "error"]
        assert len(errors) == 2, errors
        assert "192000 Hz" in errors[0]
        assert "48000" in errors[0]


async def test_a_silent_peer_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "SILENCE_S", 2.0)
    session = await server.open()
    async with calling(server, session) as caller:
        await caller.pictures(3)
        live = server.hub.find(session["id"])
        assert live is not None
        for transport in caller.connection._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
            transport._connection._protocols[0].transport.pause_reading()
            transport._connection.send = _nowhere
            transport._connection.sendto = _nowhere
        gone_s = time.monotonic()
        for _ in range(100):
            if not live._peers():
                break
            await asyncio.sleep(0.1)
        assert not live._peers()
        assert time.monotonic() - gone_s < 8


async def _nowhere(*arguments: object) -> None:
    """A network that takes everything and delivers nothing."""


async def test_a_peer_that_never_connects_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.server.sdp import make_offer

    monkeypatch.setattr(peer_module, "CONNECT_S", 1.0)
    session = await server.open()
    offer = {"type": "offer", "sdp": await make_offer()}
    assert (await server.http.post("/" + session["urls"]["offer"], json=offer)).status_code == 200
    live = server.hub.find(session["id"])
    assert live is not None
    assert len(live._peers()) == 1
    await asyncio.sleep(2.5)
    assert not live._peers()
    assert live.idle_s > 0


async def test_connections_leave_nothing_behind(server: Running) -> None:
    session = await server.open()
    for _ in range(3):
        async with calling(server, session) as caller:
            await caller.pictures(2)
    await server.http.delete(f"/v1/sessions/{session['id']}")
    await asyncio.sleep(0.3)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if session["id"] in name], names
    assert not [name for name in names if name.startswith("pull ")], names
    assert server.hub.admission.taken == 0

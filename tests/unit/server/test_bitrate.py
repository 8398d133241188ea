"""The shared encoder's rate: follows the slowest viewer, above a floor, without flapping."""

from __future__ import annotations

import asyncio

import numpy as np
from aiortc.rtp import RtcpReceiverInfo, RtcpRrPacket

from server.bitrate import BitrateControl
from tests.unit.server.running import fake_config, running
from tests.unit.server.whip_client import until, watching


def control() -> BitrateControl:
    return BitrateControl(most_kbps=2500, least_kbps=400)


def test_without_complaints_nothing_moves() -> None:
    rate = control()
    for second in range(60):
        rate.report_loss("a", 0.01, second)
        assert not rate.step(second)
    assert rate.rate_kbps == 2500


def test_loss_lowers_the_rate_to_the_floor_and_quiet_brings_it_back() -> None:
    rate, changes = control(), 0
    for second in range(40):
        rate.report_loss("a", 0.3, second)
        rate.report_loss("b", 0.0, second)
        changes += rate.step(second)
    assert rate.rate_kbps == 400, "the slowest counts"
    assert changes <= 15
    seconds = 0
    for seconds in range(40, 140):
        for viewer in "ab":
            rate.report_loss(viewer, 0.0, seconds)
        rate.step(seconds)
        if rate.rate_kbps == 2500:
            break
    assert 20 <= seconds - 40 <= 60, "back, slowly"


def test_an_estimate_is_a_ceiling_and_goes_with_its_viewer() -> None:
    rate = control()
    rate.report_estimate("phone", 900, 0.0)
    assert rate.step(0.0)
    assert rate.rate_kbps == 900
    rate.report_estimate("phone", 60, 1.0)
    assert rate.step(1.0)
    assert rate.rate_kbps == 400, "nobody pushes it below the floor"
    rate.leave("phone")
    assert not rate.step(2.0), "a rise waits"
    assert rate.step(6.5)
    assert rate.rate_kbps == 2500


def test_noise_around_one_rate_does_not_flap() -> None:
    rate, changes = control(), 0
    for second, jitter in enumerate(np.random.default_rng(3).uniform(0.93, 1.07, 300)):
        rate.report_estimate("a", 1200 * jitter, second)
        changes += rate.step(second)
    assert changes <= 3
    assert 1050 < rate.rate_kbps < 1300


def test_many_reports_within_a_second_count_once() -> None:
    rate = control()
    for number in range(20):
        rate.report_loss("a", 0.3, 0.01 * number)
        rate.step(0.01 * number)
    assert rate.rate_kbps == 2125


async def test_a_viewers_reports_reach_the_shared_encoder() -> None:
    config = fake_config(encode={"bitrate_kbps": 2000, "min_bitrate_kbps": 500})
    async with running(config) as server:
        session = await server.open()
        live = server.hub.find(session["id"])
        assert live is not None
        await until(lambda: live.live)
        async with watching(server, session) as viewer:
            await viewer.until(5)
            senders = [t.sender for t in live._viewers[0]._connection.getTransceivers() if t.kind == "video"]
            keyframes = live._encoder.keyframes
            report = RtcpReceiverInfo(
                ssrc=senders[0]._ssrc, fraction_lost=128, packets_lost=9, highest_sequence=9, jitter=0, lsr=0, dlsr=0
            )
            for _ in range(60):  # one a second counts, and the viewer's own good reports come between
                await senders[0]._handle_rtcp_packet(RtcpRrPacket(ssrc=1, reports=[report]))
                if live.bitrate_kbps < 2000:
                    break
                await asyncio.sleep(0.05)
            assert live.bitrate_kbps == 1500, "half the loss off"
            seen = viewer.pictures
            await viewer.until(seen + 5)
            assert live._encoder.keyframes > keyframes, "the new encoder begins with a key frame"
            text = (await server.http.get("/metrics")).text
            assert "avatarcast_encode_bitrate_kbps 1500.0" in text
            assert "avatarcast_bitrate_changes_total 1.0" in text

"""The places where we reach behind aiortc's public surface still fit the installed release."""

from __future__ import annotations

import aioice.ice
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.rtcdtlstransport import RtpRouter
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RtcpPsfbPacket,
    RtcpReceiverInfo,
    RtcpRrPacket,
    RtpPacket,
    pack_remb_fci,
)

from server import aiortc_adapters
from server.aiortc_adapters import (
    close_quietly,
    discard_media,
    on_feedback,
    on_keyframe_request,
    use_loopback_when_alone,
)


@pytest.mark.parametrize("kind", [RTCP_PSFB_PLI, RTCP_PSFB_FIR])
async def test_a_lost_picture_reaches_the_callback(kind: int) -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video", direction="sendonly").sender
    asked: list[int] = []
    on_keyframe_request(sender, lambda: asked.append(1))
    packet = RtcpPsfbPacket(fmt=kind, ssrc=1, media_ssrc=sender._ssrc)
    await sender._handle_rtcp_packet(packet)
    assert asked == [1]
    await connection.close()


async def test_what_a_receiver_reports_reaches_the_callback() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    sender = connection.addTransceiver("video", direction="sendonly").sender
    heard: list[tuple[float | None, float | None]] = []
    on_feedback(sender, lambda loss, kbps: heard.append((loss, kbps)))
    for ssrc in (sender._ssrc, sender._ssrc ^ 1):
        report = RtcpReceiverInfo(
            ssrc=ssrc, fraction_lost=64, packets_lost=5, highest_sequence=9, jitter=0, lsr=0, dlsr=0
        )
        await sender._handle_rtcp_packet(RtcpRrPacket(ssrc=1, reports=[report]))
        estimate = pack_remb_fci(900_000, [ssrc])
        await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=estimate))
    await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=b"junk"))
    assert heard == [(0.25, None), (None, pytest.approx(900, rel=0.01))], "another stream's are not ours"
    await connection.close()


async def test_discarded_media_are_noticed_and_neither_decoded_nor_kept() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    receiver = connection.addTransceiver("video", direction="recvonly").receiver
    seen: list[int] = []
    discard_media(receiver, lambda: seen.append(1))
    router = RtpRouter()
    router.register_receiver(receiver, ssrcs=[5], payload_types=[96])
    packet = RtpPacket(payload_type=96, ssrc=5, payload=b"x")
    routed = router.route_rtp(packet)
    assert routed is receiver
    await routed._handle_rtp_packet(packet, arrival_time_ms=1)
    assert seen == [1]
    await connection.close()


@pytest.fixture
def restored_addresses(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", aioice.ice.get_host_addresses)
    return monkeypatch


async def test_a_machine_without_a_network_offers_loopback(restored_addresses: pytest.MonkeyPatch) -> None:
    use_loopback_when_alone()
    restored_addresses.setattr(aiortc_adapters, "_upstream_host_addresses", lambda v4, v6: [])
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    await connection.setLocalDescription(await connection.createOffer())
    assert " 127.0.0.1 " in connection.localDescription.sdp
    await connection.close()


async def test_with_a_network_nothing_changes(restored_addresses: pytest.MonkeyPatch) -> None:
    use_loopback_when_alone()
    restored_addresses.setattr(aiortc_adapters, "_upstream_host_addresses", lambda v4, v6: ["192.0.2.7"])
    assert aioice.ice.get_host_addresses(True, True) == ["192.0.2.7"]


async def test_closing_never_fails() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    await close_quietly(connection)
    await close_quietly(connection)

    class Broken:
        async def close(self) -> None:
            raise AttributeError("half applied")

    await close_quietly(Broken())  # type: ignore[arg-type]

"""Every place where we reach behind aiortc's public surface. A new aiortc release is checked against this file alone.

Each adapter is covered by `tests/unit/server/test_aiortc_adapters.py` and says what upstream offers instead (nothing,
at 1.16).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import aioice.ice
from aiortc import RTCPeerConnection, RTCRtpReceiver, RTCRtpSender
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpSrPacket,
    RtpPacket,
    unpack_remb_fci,
)

log = logging.getLogger(__name__)

_upstream_host_addresses = aioice.ice.get_host_addresses


def on_keyframe_request(sender: RTCRtpSender, callback: Callable[[], None]) -> None:
    """Call `callback` whenever the receiver of this sender reports a lost picture (PLI, FIR).

    A track that returns encoded packets bypasses the sender's own encoder, and the request with it.
    """
    sender._send_keyframe = callback  # type: ignore[method-assign]


def on_feedback(sender: RTCRtpSender, callback: Callable[[float | None, float | None], None]) -> None:
    """Call `callback` with what the receiver of this sender reports: the share of packets lost (0 to 1), or the most
    kbit/s that it thinks it can take (REMB); the other is None.

    aiortc keeps the last loss in its statistics, and hands REMB only to its own encoder, which encoded packets bypass.
    """
    upstream = sender._handle_rtcp_packet

    async def handle(packet: object) -> None:
        await upstream(packet)
        if isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            for report in packet.reports:
                if report.ssrc == sender._ssrc:
                    callback(report.fraction_lost / 256, None)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bits, ssrcs = unpack_remb_fci(packet.fci)
            except ValueError:
                return
            if sender._ssrc in ssrcs:
                callback(None, bits / 1000)

    sender._handle_rtcp_packet = handle  # type: ignore[method-assign]


def discard_media(receiver: RTCRtpReceiver, noticed: Callable[[], None]) -> None:
    """Drop what this receiver is sent before it is queued or decoded; `noticed` is called for every packet.

    A receiver whose track nobody reads decodes all the same and keeps every frame.
    """

    async def drop(packet: RtpPacket, arrival_time_ms: int) -> None:
        noticed()

    receiver._handle_rtp_packet = drop  # type: ignore[method-assign]


def use_loopback_when_alone() -> None:
    """Let a machine without any network offer 127.0.0.1; aioice leaves loopback out and would offer nothing."""
    aioice.ice.get_host_addresses = _host_addresses


def _host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    addresses = _upstream_host_addresses(use_ipv4, use_ipv6)
    return addresses or (["127.0.0.1"] if use_ipv4 else ["::1"])


async def close_quietly(connection: RTCPeerConnection) -> None:
    """Close, whatever state a half-applied offer left behind; `close` itself may fail then."""
    try:
        await connection.close()
    except Exception:  # the boundary to aiortc: malformed offers leave transceivers that cannot be stopped
        log.debug("a connection could not be closed cleanly", exc_info=True)

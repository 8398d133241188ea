"""Real offers for tests, made by aiortc as a client; and ways to break them."""

from __future__ import annotations

import random

from aiortc import RTCConfiguration, RTCPeerConnection


async def make_offer(*, video: bool = True, audio: bool = True, channel: bool = True, h264: bool = True) -> str:
    """An offer as the presenter page sends it: a microphone out, video in, the data channel."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        if audio:
            connection.addTransceiver("audio", direction="sendrecv")
        if video:
            connection.addTransceiver("video", direction="recvonly")
        if channel:
            connection.createDataChannel("events")
        await connection.setLocalDescription(await connection.createOffer())
        sdp = connection.localDescription.sdp
    finally:
        await connection.close()
    return sdp if h264 else without_h264(sdp)


def without_h264(sdp: str) -> str:
    """The offer of a browser that was built without H264."""
    payloads = {line.split(":")[1].split()[0] for line in sdp.splitlines() if "H264/90000" in line}
    linked = {
        line.split(":")[1].split()[0]
        for line in sdp.splitlines()
        if line.startswith("a=fmtp:") and any(f"apt={p}" in line for p in payloads)
    }
    gone = payloads | linked
    kept = []
    for line in sdp.splitlines():
        if any(line.startswith((f"a=rtpmap:{p} ", f"a=fmtp:{p} ", f"a=rtcp-fb:{p} ")) for p in gone):
            continue
        if line.startswith("m=video"):
            head, numbers = line.split()[:3], line.split()[3:]
            line = " ".join(head + [n for n in numbers if n not in gone])
        kept.append(line)
    return "\r\n".join(kept) + "\r\n"


def mutations(sdp: str, count: int, seed: int = 7) -> list[str]:
    """Broken variants of an offer: lines lost, doubled, swapped, cut; digits and letters changed."""
    chance = random.Random(seed)
    results = []
    for _ in range(count):
        lines = sdp.splitlines()
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(lines))
            kind = chance.randrange(7)
            if kind == 0:
                del lines[at]
            elif kind == 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            elif kind == 2:
                lines[at] = lines[at][: chance.randrange(len(lines[at]) + 1)]
            elif kind == 3:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            elif kind == 4 and lines[at]:
                where = chance.randrange(len(lines[at]))
                lines[at] = lines[at][:where] + chr(chance.randrange(1, 0x250)) + lines[at][where + 1 :]
            elif kind == 5:
                lines[at] = lines[at].replace(str(chance.randrange(10)), str(chance.choice([-1, 99999, 2**40, ""])))
            else:
                lines[at] = lines[at].replace("=", chance.choice(["", "==", " ", ":"]))
            lines = lines or [""]
        results.append("\r\n".join(lines) + "\r\n")
    return results

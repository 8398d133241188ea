"""Offers and candidates: checked before anything is built on them.

Parsers of session descriptions fail in many ways (aiortc's raises seven exception types on mutated input), so
everything that reads one stands behind `read_offer` and `read_candidates`, which turn every failure into a 4xx with
one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiortc import RTCIceCandidate
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.sdp import SessionDescription, candidate_from_sdp

from server.errors import ApiError

MAX_SDP_BYTES = 128 * 1024
MAX_MEDIA_SECTIONS = 8
MAX_CANDIDATES = 64
"""Candidates taken from one offer or one PATCH; browsers send a handful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An offer that can be answered."""

    sdp: str
    """The text, without candidates that nobody outside the browser's machine can resolve."""
    sends_audio: bool
    """Whether the client means to send a microphone."""


def read_offer(payload: object) -> Offer:
    """Check `{sdp, type}`.

    Raises:
        ApiError: `bad_request` for the JSON around it, `too_large`, `bad_sdp` with 400 for text that is no offer and
            422 for an offer that asks for something this server does not send.
    """
    if not isinstance(payload, dict):
        raise ApiError("bad_request", "The body is not a JSON object; send {sdp, type}.")
    if payload.get("type") != "offer":
        raise ApiError("bad_request", f"type is {payload.get('type')!r:.40}; it must be offer.")
    text = payload.get("sdp")
    if not isinstance(text, str) or not text.strip():
        raise ApiError("bad_request", "sdp is missing or empty; send the offer's text.")
    if len(text.encode("utf-8", "replace")) > MAX_SDP_BYTES:
        raise ApiError("too_large", f"sdp is longer than {MAX_SDP_BYTES} bytes; send an offer with fewer candidates.")
    return inspect_offer(text)


def inspect_offer(text: str) -> Offer:
    """Check an offer's text; see `read_offer`."""
    text = drop_mdns_candidates(text)
    try:
        description = SessionDescription.parse(text)
        sections = [(m.kind, m.direction, [_codec_name(c) for c in m.rtp.codecs]) for m in description.media]
        complete = all(m.ice.usernameFragment and m.ice.password and m.dtls for m in description.media)
    except Exception as error:  # the boundary to aiortc's parser
        raise _not_sdp() from error
    if not sections:
        raise ApiError("bad_sdp", "The offer has no media section; offer audio and video.")
    if len(sections) > MAX_MEDIA_SECTIONS:
        raise ApiError(
            "bad_sdp", f"The offer has {len(sections)} media sections; at most {MAX_MEDIA_SECTIONS} are.", status=422
        )
    if not complete:
        raise ApiError("bad_sdp", "The offer lacks ICE credentials or a DTLS fingerprint; send a WebRTC offer.")
    _check_video(sections)
    _check_audio(sections)
    return Offer(
        sdp=text, sends_audio=any(kind == "audio" and way in ("sendonly", "sendrecv") for kind, way, _ in sections)
    )


def _codec_name(codec: RTCRtpCodecParameters) -> str:
    """`kind/name` in lower case; an H264 variant that we do not send (not baseline, not packetization mode 1) is
    `video/h264 high` or the like, so that it does not pass for ours."""
    name = codec.mimeType.lower()
    if name == "video/h264":
        profile = str(codec.parameters.get("profile-level-id", "42e01f")).lower()
        if not profile.startswith("42") or str(codec.parameters.get("packetization-mode", "0")) != "1":
            return f"{name} {profile}"
    return name


def _not_sdp() -> ApiError:
    return ApiError("bad_sdp", "The session description cannot be read; send the text that createOffer gave.")


def _check_video(sections: list[tuple[str, str | None, list[str]]]) -> None:
    video = [(way, codecs) for kind, way, codecs in sections if kind == "video"]
    if not any(way in ("recvonly", "sendrecv", None) for way, _ in video):
        raise ApiError("bad_sdp", "The offer receives no video; add a recvonly video section.", status=422)
    codecs = [codec for _, codecs in video for codec in codecs]
    if "video/h264" not in codecs:
        offered = sorted({codec.removeprefix("video/").upper() for codec in codecs} - {"RTX", "RED", "ULPFEC"})
        raise ApiError(
            "bad_sdp",
            f"This browser offers no H264 video (it offers {', '.join(offered) or 'nothing'}); install its H264 support"
            " or use Chrome, Edge, Firefox or Safari.",
            status=422,
        )


def _check_audio(sections: list[tuple[str, str | None, list[str]]]) -> None:
    for kind, _, codecs in sections:
        if kind == "audio" and "audio/opus" not in codecs:
            raise ApiError("bad_sdp", "The offer's audio has no Opus; offer Opus.", status=422)


def drop_mdns_candidates(sdp: str) -> str:
    """Leave out `.local` candidates: only the browser's machine can resolve them, and aiortc waits a second for each.

    The pair forms without them, from the address that the browser's first check comes from.
    """
    kept = [line for line in sdp.splitlines() if not (line.startswith("a=candidate") and ".local " in line)]
    return "\r\n".join(kept) + "\r\n"


def read_candidates(payload: object) -> list[RTCIceCandidate | None]:
    """Check `{candidates: [{candidate, sdpMid?, sdpMLineIndex?}]}`; an empty candidate (None) ends gathering.

    Raises:
        ApiError: `bad_request`, naming the entry.
    """
    entries = payload.get("candidates") if isinstance(payload, dict) else None
    if not isinstance(entries, list):
        raise ApiError("bad_request", "candidates is missing; send {candidates: [{candidate, sdpMid}]}.")
    if len(entries) > MAX_CANDIDATES:
        raise ApiError("bad_request", f"candidates has {len(entries)} entries; at most {MAX_CANDIDATES} are taken.")
    found = [_candidate(entry, f"candidates[{i}]") for i, entry in enumerate(entries)]
    return [candidate for candidate in found if candidate is not _SKIP]


_SKIP = RTCIceCandidate(component=0, foundation="", ip="", port=0, priority=0, protocol="", type="")


def _candidate(entry: Any, path: str) -> RTCIceCandidate | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("candidate", ""), str):
        raise ApiError("bad_request", f"{path} is not an object with a text candidate; send what the browser gave.")
    text = entry.get("candidate", "").removeprefix("a=").removeprefix("candidate:").strip()
    if not text:
        return None
    if ".local " in text:
        return _SKIP
    mid, index = entry.get("sdpMid"), entry.get("sdpMLineIndex")
    if not isinstance(mid, str | None) or not isinstance(index, int | None) or isinstance(index, bool):
        raise ApiError("bad_request", f"{path}.sdpMid must be text and sdpMLineIndex a whole number.")
    try:
        candidate = candidate_from_sdp(text)
    except Exception as error:  # the boundary to aiortc's parser
        raise ApiError("bad_request", f"{path} is not a candidate line; send what the browser gave.") from error
    candidate.sdpMid, candidate.sdpMLineIndex = mid, index
    return candidate

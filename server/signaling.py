"""Offers and candidates: checked before anything is built on them.

Parsers of session descriptions fail in many ways (aiortc's raises seven exception types on mutated input), so
everything that reads one stands behind `read_offer` and `read_candidates`, which turn every failure into a 4xx with
one sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from aiortc import RTCIceCandidate
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.sdp import SessionDescription, candidate_from_sdp

from server.errors import ApiError
from server.http import SDP_LIMIT

MAX_SDP_BYTES = SDP_LIMIT
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
    kinds: tuple[str, ...]
    """`audio` and `video`, in the order of their first sections."""


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
    """Check the text of an offer to watch, or to watch and speak; see `read_offer`."""
    text = drop_mdns_candidates(text)
    sections = _sections(text)
    _check_video(sections)
    _check_audio(sections)
    sends_audio = any(kind == "audio" and way in ("sendonly", "sendrecv") for kind, way, _ in sections)
    return Offer(sdp=text, sends_audio=sends_audio, kinds=_kinds(sections))


def inspect_publication(text: str) -> Offer:
    """Check the text of an offer that only sends: Opus, and perhaps video, which will be dropped.

    Raises:
        ApiError: `bad_sdp`, as for `read_offer`.
    """
    text = _PROFILE.sub("profile-level-id=42e01f", drop_mdns_candidates(text))
    sections = _sections(text)
    _check_audio(sections)
    if not any(kind == "audio" and way in ("sendonly", "sendrecv", None) for kind, way, _ in sections):
        raise ApiError("bad_sdp", "The offer sends no audio; add an Opus track, or watch through WHEP.", status=422)
    if _SIMULCAST.search(text):
        raise ApiError("bad_sdp", "The offer has several video layers; send one (OBS: Total layers 1).", status=422)
    for kind, _, codecs in sections:
        if kind == "video" and not {"video/h264", "video/vp8"} & set(codecs):
            raise ApiError(
                "bad_sdp", "The offer's video is neither H264 nor VP8; choose H264, or send no video.", status=422
            )
    return Offer(sdp=text, sends_audio=True, kinds=_kinds(sections))


_PROFILE = re.compile(r"profile-level-id=[0-9a-fA-F]{6}")  # what is dropped may have any profile
_SIMULCAST = re.compile(r"^a=simulcast:", re.MULTILINE)

_Section = tuple[str, str | None, list[str]]
"""Kind, direction and codecs."""


def _kinds(sections: list[_Section]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind for kind, _, _ in sections if kind in ("audio", "video")))


def _sections(text: str) -> list[_Section]:
    """The media sections of an offer that can be answered at all."""
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
    return sections


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


def _check_video(sections: list[_Section]) -> None:
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


def _check_audio(sections: list[_Section]) -> None:
    for kind, _, codecs in sections:
        if kind == "audio" and "audio/opus" not in codecs:
            raise ApiError("bad_sdp", "The offer's audio has no Opus; offer Opus.", status=422)


def drop_mdns_candidates(sdp: str) -> str:
    """Leave out `.local` candidates: only the browser's machine can resolve them, and aiortc waits a second for each.

    The pair forms without them, from the address that the browser's first check comes from.
    """
    lines = sdp.splitlines()
    kept = [line for line in lines if not (line.startswith("a=candidate") and ".local " in line)]
    if len(kept) < len(lines) or not any(line.startswith("a=candidate") for line in kept):
        kept = [line for line in kept if line != "a=end-of-candidates"]  # ICE would fail for want of any
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


def let_client_begin_dtls(sdp: str) -> str:
    """Take an offer that leaves the DTLS roles open as one whose sender begins.

    aiortc's client side knows ECDSA ciphers only and finds none in common with a peer whose certificate is RSA
    (GStreamer); as the server, its own ECDSA certificate decides.
    """
    return sdp.replace("a=setup:actpass", "a=setup:active")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A trickle ICE fragment (RFC 8840)."""

    user: str | None
    """The ICE user fragment it belongs to, if it says so; another than the offer's asks for an ICE restart."""
    candidates: list[RTCIceCandidate | None]


def read_fragment(text: str) -> Fragment:
    """Check the body of a trickle PATCH. The end of candidates is not passed on: peers reached only by the address
    that their checks come from may still be on their way.

    Raises:
        ApiError: `bad_request`, naming the line.
    """
    user = mid = None
    section = -1
    entries: list[dict[str, object]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        if len(line) < 2 or line[1] != "=":
            raise ApiError("bad_request", f"Line {number} of the fragment is not SDP; send a trickle ICE fragment.")
        if line.startswith("m="):
            section, mid = section + 1, None
        elif line.startswith("a=mid:"):
            mid = line.removeprefix("a=mid:")
        elif line.startswith("a=ice-ufrag:"):
            user = line.removeprefix("a=ice-ufrag:")
        elif line.startswith("a=candidate:"):
            entries.append({"candidate": line, "sdpMid": mid, "sdpMLineIndex": None if mid else max(section, 0)})
    if user is None and not entries and "a=end-of-candidates" not in text:
        raise ApiError("bad_request", "The fragment holds no candidates; send a trickle ICE fragment (RFC 8840).")
    return Fragment(user=user, candidates=read_candidates({"candidates": entries}))

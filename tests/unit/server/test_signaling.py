"""Offers and candidates are checked before anything is built on them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
from server.signaling import MAX_CANDIDATES, MAX_SDP_BYTES, inspect_offer, read_candidates, read_offer
from tests.unit.server.sdp import make_offer, mutations

CANDIDATE = "candidate:1 1 udp 2130706431 192.168.1.5 50000 typ host generation 0 ufrag abcd"


async def test_a_browser_offer_is_taken() -> None:
    offer = read_offer({"type": "offer", "sdp": await make_offer()})
    assert offer.sends_audio
    assert "m=video" in offer.sdp


async def test_mdns_candidates_are_left_out_and_others_stay() -> None:
    sdp = await make_offer()
    lines = "a=candidate:1 1 udp 2113937151 8a2d4f3e-1111.local 50000 typ host\r\n"
    assert ".local" not in inspect_offer(sdp + lines).sdp
    assert inspect_offer(sdp).sdp.count("a=candidate") == sdp.count("a=candidate")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (None, "bad_request"),
        ([], "bad_request"),
        ({}, "bad_request"),
        ({"type": "answer", "sdp": "v=0"}, "bad_request"),
        ({"type": "offer"}, "bad_request"),
        ({"type": "offer", "sdp": 5}, "bad_request"),
        ({"type": "offer", "sdp": "   "}, "bad_request"),
        ({"type": "offer", "sdp": "hello"}, "bad_sdp"),
        ({"type": "offer", "sdp": "v=0\r\n"}, "bad_sdp"),
        ({"type": "offer", "sdp": "\ud800"}, "bad_sdp"),
    ],
)
def test_what_is_no_offer_is_refused(payload: object, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_offer(payload)
    assert caught.value.code == code
    assert caught.value.status == 400


async def test_the_size_cap_is_exact() -> None:
    sdp = await make_offer()
    filler = "a=x:" + "y" * (MAX_SDP_BYTES - len(sdp) - 6) + "\r\n"
    assert len(sdp + filler) == MAX_SDP_BYTES
    read_offer({"type": "offer", "sdp": sdp + filler})
    with pytest.raises(ApiError) as caught:
        read_offer({"type": "offer", "sdp": sdp + "a" + filler})
    assert (caught.value.code, caught.value.status) == ("too_large", 413)


async def test_a_browser_without_h264_is_told_what_to_do() -> None:
    with pytest.raises(ApiError) as caught:
        inspect_offer(await make_offer(h264=False))
    assert (caught.value.code, caught.value.status) == ("bad_sdp", 422)
    assert "no H264" in caught.value.detail
    assert "VP8" in caught.value.detail


async def test_h264_that_we_do_not_send_does_not_pass_for_ours() -> None:
    sdp = (await make_offer()).replace("profile-level-id=42", "profile-level-id=64")
    with pytest.raises(ApiError, match="no H264"):
        inspect_offer(sdp)


async def test_an_offer_without_video_is_refused() -> None:
    with pytest.raises(ApiError, match="receives no video"):
        inspect_offer(await make_offer(video=False))


async def test_mutated_offers_pass_or_are_refused_never_worse() -> None:
    refused = 0
    for text in mutations(await make_offer(), 400):
        try:
            inspect_offer(text)
        except ApiError as error:
            assert 400 <= error.status < 500
            refused += 1
    assert refused > 50, "the mutations break too little to prove anything"


def test_candidates_are_read() -> None:
    entries = [{"candidate": CANDIDATE, "sdpMid": "0", "sdpMLineIndex": 0}, {"candidate": ""}, None]
    first, end, also_end = read_candidates({"candidates": entries})
    assert first is not None
    assert (first.ip, first.port, first.sdpMid) == ("192.168.1.5", 50000, "0")
    assert end is None
    assert also_end is None


def test_mdns_candidates_are_skipped() -> None:
    entry = {"candidate": CANDIDATE.replace("192.168.1.5", "8a2d4f3e.local"), "sdpMid": "0"}
    assert read_candidates({"candidates": [entry]}) == []


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {},
        {"candidates": "x"},
        {"candidates": [5]},
        {"candidates": [{"candidate": 5}]},
        {"candidates": [{"candidate": "candidate:1 1 udp"}]},
        {"candidates": [{"candidate": CANDIDATE, "sdpMid": 5}]},
        {"candidates": [{"candidate": CANDIDATE, "sdpMLineIndex": True}]},
        {"candidates": [{"candidate": CANDIDATE}] * (MAX_CANDIDATES + 1)},
    ],
)
def test_bad_candidates_are_refused(payload: object) -> None:
    with pytest.raises(ApiError) as caught:
        read_candidates(payload)
    assert caught.value.code == "bad_request"


@settings(max_examples=150)
@given(st.text(max_size=120))
def test_any_text_is_no_reason_to_fail(text: str) -> None:
    attempts = ((read_offer, {"type": "offer", "sdp": text}), (read_candidates, {"candidates": [{"candidate": text}]}))
    for read, payload in attempts:
        try:
            read(payload)
        except ApiError as error:
            assert 400 <= error.status < 500

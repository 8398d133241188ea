"""WHEP out: any number of viewers, each with one POST, all from one encode."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.sdp import make_offer
from tests.unit.server.test_app import check_problem
from tests.unit.server.whip_client import Watcher, post, until, watching


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


async def live_session(server: Running) -> dict[str, object]:
    """A session that the model has taken."""
    session = await server.open()
    live = server.hub.find(session["id"])
    assert live is not None
    await until(lambda: live.live, 5)
    return session


async def test_two_viewers_share_one_encoder_and_leave_by_delete(server: Running) -> None:
    session = await live_session(server)
    live = server.hub.find(str(session["id"]))
    assert live is not None
    async with watching(server, session) as first, watching(server, session) as second:
        await first.until(25)
        await second.until(25)
        assert first.sounds > 20
        assert first.location != second.location
        assert first.tag != second.tag
        before, first_before, second_before = live._encoder.encoded, first.pictures, second.pictures
        await asyncio.sleep(2)
        encoded = live._encoder.encoded - before
        assert 25 <= encoded <= 55, f"{encoded} encodes in 2 s"  # fewer when the machine is busy, never twice
        assert abs(first.pictures - first_before - encoded) <= 4
        assert abs(second.pictures - second_before - encoded) <= 4
        assert (await server.http.get(f"/v1/sessions/{session['id']}")).json()["viewers"] == 2
        assert (await server.http.delete(first.location)).status_code == 200
        check_problem(await server.http.delete(first.location), 404, "not_found")
        seen = second.pictures
        await second.until(seen + 25)
        check_problem(await server.http.delete(second.location.replace("whep", "whip")), 404, "not_found")


async def test_ten_viewers_cost_one_encode(server: Running) -> None:
    session = await live_session(server)
    live = server.hub.find(str(session["id"]))
    assert live is not None
    async with AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching(server, session)) for _ in range(10)]
        for watcher in watchers:
            await watcher.until(5, within_s=15)
        before, seen = live._encoder.encoded, [watcher.pictures for watcher in watchers]
        await asyncio.sleep(3)
        encoded = live._encoder.encoded - before
        assert 35 <= encoded <= 82, f"{encoded} encodes in 3 s for ten viewers"
        for watcher, had in zip(watchers, seen, strict=True):
            assert abs(watcher.pictures - had - encoded) <= 8
        assert live._encoder.viewers == 10


async def test_a_lost_picture_of_any_viewer_makes_a_keyframe(server: Running) -> None:
    session = await live_session(server)
    live = server.hub.find(str(session["id"]))
    assert live is not None
    async with watching(server, session) as first, watching(server, session) as second:
        await first.until(5)
        await second.until(5)
        await asyncio.sleep(0.5)
        before = live._encoder.keyframes
        receiver = second.connection.getTransceivers()[0].receiver
        sender_ssrc = live._viewers[1]._connection.getTransceivers()[1].sender._ssrc
        await receiver._send_rtcp_pli(sender_ssrc)
        await until(lambda: live._encoder.keyframes > before, 2)


async def test_a_session_that_still_starts_is_not_live() -> None:
    async with running(fake_config(model={"fake": {"load_s": 1.5}}), wait=False) as server:
        session = await server.open()
        early = await post(server, "/" + session["urls"]["whep"], await make_offer(channel=False))
        check_problem(early, 409, "not_live")
        assert int(early.headers["retry-after"]) >= 1
        await asyncio.wait_for(server.hub.wait_started(), 20)
        watcher = Watcher()
        try:
            live = server.hub.find(session["id"])
            assert live is not None
            await until(lambda: live.live)
            assert (await watcher.watch(server, session)).status_code == 201
            await watcher.until(5)
        finally:
            await watcher.connection.close()


async def test_offers_that_cannot_be_watched_with_and_viewers_over_the_limit() -> None:
    async with running(fake_config(limits={"max_viewers": 1})) as server:
        session = await live_session(server)
        path = "/" + str(session["urls"]["whep"])  # type: ignore[index]
        assert "H264" in check_problem(await post(server, path, await make_offer(h264=False)), 422, "bad_sdp")
        assert "video" in check_problem(await post(server, path, await make_offer(video=False)), 422, "bad_sdp")
        check_problem(await post(server, "/whep/nobody", await make_offer()), 404, "not_found")
        answer = await post(server, path, await make_offer(channel=False))
        assert answer.status_code == 201
        assert "a=sendonly" in answer.text
        assert "a=sendrecv" not in answer.text
        refused = await post(server, path, await make_offer(channel=False))
        check_problem(refused, 503, "capacity")
        assert "retry-after" in refused.headers


async def test_a_player_without_if_match_may_trickle_by_the_offers_user_name(server: Running) -> None:
    session = await live_session(server)
    offer = await make_offer(channel=False)
    answer = await post(server, "/" + str(session["urls"]["whep"]), offer)  # type: ignore[index]
    user = re.search(r"a=ice-ufrag:(\S+)", offer)
    assert user is not None

    async def patch(name: str, **headers: str) -> httpx.Response:
        content = f"a=ice-ufrag:{name}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=end-of-candidates\r\n"
        kind = {"Content-Type": "application/trickle-ice-sdpfrag"}
        return await server.http.patch(answer.headers["location"], content=content, headers=kind | headers)

    assert (await patch(user[1])).status_code == 204
    check_problem(await patch("another"), 428, "precondition_required")
    check_problem(await patch(user[1], **{"If-Match": '"stale"'}), 412, "precondition_failed")

"""WHIP in: RFC 9725's status codes and headers, and a voice that really arrives."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest

from server.config import Secrets
from server.http import SDP_LIMIT
from tests.unit.server.caller import calling, judge
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.sdp import make_offer, mutations
from tests.unit.server.test_app import check_problem
from tests.unit.server.test_calls import voice
from tests.unit.server.whip_client import as_obs, connection, local_offer, post, publishing, until

KEY = "an admin key of enough length"
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


async def publication(*, video: bool = True) -> str:
    """An offer that sends a microphone and, perhaps, a camera."""
    client = connection()
    try:
        client.addTransceiver("audio", direction="sendonly")
        if video:
            client.addTransceiver("video", direction="sendonly")
        return await local_offer(client)
    finally:
        await client.close()


def media(sdp: str) -> list[str]:
    """`kind direction port` of each section."""
    found = []
    for section in sdp.split("\r\nm=")[1:]:
        way = re.search(r"a=(sendrecv|sendonly|recvonly|inactive)", section)
        kind, port = section.split()[:2]
        found.append(f"{kind} {way and way[1]} {'refused' if port == '0' else 'taken'}")
    return found


async def test_the_answer_has_what_the_rfc_asks(server: Running) -> None:
    session = await server.open()
    offer = await publication()
    answer = await post(server, "/" + session["urls"]["whip"], offer)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/sdp"
    assert re.fullmatch(r'"[^"]+"', answer.headers["etag"]), "strong, so without W/"
    assert answer.headers["accept-patch"] == "application/trickle-ice-sdpfrag"
    location = answer.headers["location"]
    assert re.fullmatch(rf"/whip/{session['id']}/[\w-]{{32}}", location)
    assert media(answer.text) == ["audio recvonly taken", "video recvonly taken"]
    assert "a=candidate" in answer.text
    assert "a=setup:passive" in answer.text
    assert "link" not in answer.headers, "no ICE server is configured"
    assert (await server.http.delete(location)).status_code == 200
    check_problem(await server.http.delete(location), 404, "not_found")
    check_problem(await server.http.patch(location, headers=FRAGMENT, content="a=ice-ufrag:x"), 404, "not_found")


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"v=0", "application/json", 415, "unsupported_media"),
        (b"v=0", "", 415, "unsupported_media"),
        (b"", "application/sdp", 400, "bad_sdp"),
        (b"hello", "application/sdp", 400, "bad_sdp"),
        (b"\xff\xfe", "application/sdp", 400, "bad_sdp"),
        (b"v=0\r\n" + b"a" * SDP_LIMIT, "application/sdp", 413, "too_large"),
    ],
)
@pytest.mark.parametrize("door", ["whip", "whep"])
async def test_what_is_no_offer_is_refused(
    server: Running, door: str, content: bytes, kind: str, status: int, code: str
) -> None:
    session = await server.open()
    headers = {"Content-Type": kind} if kind else {}
    check_problem(await server.http.post(f"/{door}/{session['id']}", content=content, headers=headers), status, code)


async def test_an_offer_that_cannot_be_taken_is_refused_whole(server: Running) -> None:
    session = await server.open()
    path = "/" + session["urls"]["whip"]
    offer = await publication()
    for broken, hint in (
        (offer.replace("opus/48000", "speex/48000"), "Opus"),
        (offer.replace("a=sendonly", "a=recvonly"), "WHEP"),
        (offer.replace("H264/90000", "H265/90000").replace("VP8/90000", "AV1/90000"), "H264"),
        (offer + "a=simulcast:send 0;1\r\n", "Total layers 1"),
    ):
        assert hint in check_problem(await post(server, path, broken), 422, "bad_sdp")
    live = server.hub.find(session["id"])
    assert live is not None
    assert not live._peers()


async def test_broken_offers_get_4xx_and_leave_nothing(server: Running) -> None:
    session = await server.open()
    for sdp in mutations(await publication(), 60):
        answer = await post(server, "/" + session["urls"]["whip"], sdp)
        assert answer.status_code in (201, 400, 422), answer.text
    live = server.hub.find(session["id"])
    assert live is not None
    assert len(live._peers()) <= 1


async def test_candidates_by_patch(server: Running) -> None:
    session = await server.open()
    offer = await publication()
    answer = await post(server, "/" + session["urls"]["whip"], offer)
    location, tag = answer.headers["location"], answer.headers["etag"]
    user = re.search(r"a=ice-ufrag:(\S+)", offer)
    assert user is not None
    candidate = "a=candidate:1 1 udp 2130706431 192.0.2.5 50000 typ host"
    hidden = "a=candidate:2 1 udp 2130706431 8a2d4f3e-1111.local 50000 typ host"
    fragment = f"a=ice-ufrag:{user[1]}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{candidate}\r\n{hidden}\r\n"

    async def patch(content: str = fragment, kind: str = FRAGMENT["Content-Type"], **headers: str) -> httpx.Response:
        return await server.http.patch(location, content=content, headers={"Content-Type": kind, **headers})

    for match in (tag, f'"other", {tag}', "*"):
        accepted = await patch(**{"If-Match": match})
        assert (accepted.status_code, accepted.content) == (204, b"")
    ended = await patch(fragment + "a=end-of-candidates\r\n", **{"If-Match": tag})
    assert ended.status_code == 204
    check_problem(await patch(), 428, "precondition_required")
    check_problem(await patch(**{"If-Match": '"stale"'}), 412, "precondition_failed")
    check_problem(await patch(**{"If-Match": f"W/{tag}"}), 412, "precondition_failed")
    check_problem(await patch(kind="application/sdp", **{"If-Match": tag}), 415, "unsupported_media")
    for broken in ("", "hello", "a=mid:0\r\n", "a=candidate:nonsense\r\n"):
        check_problem(await patch(broken, **{"If-Match": tag}), 400, "bad_request")
    restart = "a=ice-ufrag:fresh\r\na=ice-pwd:0123456789012345678901\r\n"
    assert "restart" in check_problem(await patch(restart, **{"If-Match": "*"}), 422, "bad_request")


async def test_an_older_connections_tag_is_stale(server: Running) -> None:
    session = await server.open()
    old = await post(server, "/" + session["urls"]["whip"], await publication())
    new = await post(server, "/" + session["urls"]["whip"], await publication())
    check_problem(await server.http.delete(old.headers["location"]), 404, "not_found")
    headers = {**FRAGMENT, "If-Match": old.headers["etag"]}
    stale = await server.http.patch(new.headers["location"], content="a=end-of-candidates", headers=headers)
    check_problem(stale, 412, "precondition_failed")


async def test_other_methods(server: Running) -> None:
    session = await server.open()
    path = "/" + session["urls"]["whip"]
    options = await server.http.options(path)
    assert (options.status_code, options.headers["accept-post"]) == (204, "application/sdp")
    for answer in (await server.http.get(path), await server.http.head(path)):
        assert (answer.status_code, answer.content) == (204, b"")
    check_problem(await server.http.put(path), 405, "bad_request")
    check_problem(await post(server, "/whip/nobody", await publication()), 404, "not_found")


async def test_who_may_publish_and_watch() -> None:
    config = fake_config(auth={"required": "always"})
    async with running(config, Secrets(api_key=KEY)) as server:
        server.http.headers["Authorization"] = f"Bearer {KEY}"
        session = await server.open()
        del server.http.headers["Authorization"]
        whip, whep = "/" + session["urls"]["whip"], "/" + session["urls"]["whep"]
        offer, watch = await publication(), await make_offer(channel=False)

        def bearer(token: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {token}"}

        for path, sdp in ((whip, offer), (whep, watch)):
            nobody = await post(server, path, sdp)
            check_problem(nobody, 401, "unauthorized")
            assert nobody.headers["www-authenticate"] == "Bearer"
            check_problem(await post(server, path, sdp, **bearer("wrong")), 401, "unauthorized")
        check_problem(await post(server, "/whip/nobody", offer), 401, "unauthorized")
        assert "control token" in check_problem(
            await post(server, whip, offer, **bearer(session["view_token"])), 403, "forbidden"
        )
        for token in (session["token"], KEY):
            made = await post(server, whip, offer, **bearer(token))
            assert made.status_code == 201
        location = made.headers["location"]
        check_problem(await server.http.delete(location), 401, "unauthorized")
        check_problem(await server.http.delete(location, headers=bearer(session["view_token"])), 403, "forbidden")
        assert (await server.http.delete(location, headers=bearer(session["token"]))).status_code == 200
        assert (await post(server, whep, watch, **bearer(session["view_token"]))).status_code == 201


async def test_ice_servers_are_named_in_links_but_not_to_strangers() -> None:
    servers = [
        {"urls": ["stun:192.0.2.1:3478"]},
        {"urls": ["turn:192.0.2.1:3478?transport=udp"], "username": 'a"b'},
    ]
    config = fake_config(auth={"required": "always"}, ice={"servers": servers})
    async with running(config, Secrets(api_key=KEY, ice_credential="pass")) as server:
        strangers = await server.http.options("/whip/x")
        assert "link" not in strangers.headers
        server.http.headers["Authorization"] = f"Bearer {KEY}"
        session = await server.open()
        options = await server.http.options("/" + session["urls"]["whip"])
        assert options.headers.get_list("link") == [
            '<stun:192.0.2.1:3478>; rel="ice-server"',
            '<turn:192.0.2.1:3478?transport=udp>; rel="ice-server"; username="a\\"b"; credential="pass";'
            ' credential-type="password"',
        ]


async def test_pages_of_listed_origins_can_read_what_they_need() -> None:
    origin = {"Origin": "https://studio.example"}
    async with running(fake_config(server={"cors_origins": ["https://studio.example"]})) as server:
        session = await server.open()
        path = "/" + session["urls"]["whip"]
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert (await server.http.options(path, headers=asked)).status_code == 200
        answer = await post(server, path, await publication(), **origin)
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"location", "etag", "link", "accept-patch"} <= exposed


async def spoken(server: Running, session: dict[str, object], within_s: float = 8.0) -> None:
    """Wait until the session heard speech and the avatar began to speak it."""
    live = server.hub.find(str(session["id"]))
    assert live is not None
    await until(lambda: live.session.state == "speaking", within_s)


async def test_a_published_voice_is_spoken_and_pages_hear_it(server: Running) -> None:
    session = await server.open()
    async with calling(server, session) as page, publishing(server, session, voice(8)) as (client, answer):
        await page.until("speech_started", 6)
        await page.until("playback_started", 6)
        loud = 0
        for _ in range(100):
            loud = sum(abs(piece.astype(int)).max() > 1000 for piece in page.audio.content)
            if loud > 10:
                break
            await asyncio.sleep(0.05)
        assert loud > 10, "the page does not hear what was published"
        assert (await server.http.delete(answer.headers["location"])).status_code == 200
        await until(lambda: client.connectionState == "closed", 5)
        assert page.connection.connectionState == "connected"


async def test_an_offer_of_obs_is_taken_heard_and_shown_in_step() -> None:
    config = fake_config(model={"fake": {"width": 128, "height": 128}})
    async with running(config) as server:
        session = await server.open()
        began_s = time.monotonic()
        async with publishing(server, session, voice(14), camera=True, obs=True) as (_, answer):
            check_obs_answer(answer.text)
            await spoken(server, session)
            spoken_s = time.monotonic() - began_s
            async with calling(server, session) as page:
                await asyncio.sleep(9)
        shown = judge(page)
        print(f"OBS-shaped: speaking {spoken_s:.2f} s after the offer; a page: {shown}")
        assert shown.agreement > 0.6 and abs(shown.offset_ms) <= 40


def check_obs_answer(answer: str) -> None:
    assert media(answer) == ["audio recvonly taken", "video recvonly taken"]
    assert "a=rtpmap:111 opus/48000/2" in answer
    assert "a=rtpmap:96 H264/90000" in answer
    assert "a=candidate" in answer, "OBS does not trickle, so every address must be in the answer"


async def test_the_shape_of_obs_has_no_candidates() -> None:
    sdp = as_obs(await publication())
    assert "a=candidate" not in sdp
    assert "a=setup:actpass" in sdp
    assert "m=audio 9 UDP/TLS/RTP/SAVPF 111" in sdp


async def test_a_camera_costs_no_memory(server: Running) -> None:
    """Its packets are dropped as they come: an unread aiortc track would keep every decoded picture."""
    session = await server.open()
    async with publishing(server, session, voice(12), camera=True):
        await spoken(server, session)
        live = server.hub.find(session["id"])
        assert live is not None
        publisher = live._publisher
        assert publisher is not None
        camera = next(t for t in publisher._connection.getTransceivers() if t.kind == "video")
        before = psutil.Process().memory_info().rss
        await asyncio.sleep(4)
        assert camera.receiver.track._queue.empty()
        assert psutil.Process().memory_info().rss - before < 10e6, "100 pictures of 320x240 would be 11.5 MB"


async def test_a_second_publisher_replaces_the_first_once_it_is_valid(server: Running) -> None:
    session = await server.open()
    live = server.hub.find(session["id"])
    assert live is not None
    async with publishing(server, session, voice(10)) as (first, _):
        await spoken(server, session)
        check_problem(await post(server, "/" + session["urls"]["whip"], "v=0\r\n"), 400, "bad_sdp")
        await asyncio.sleep(0.3)
        assert first.connectionState == "connected", "a bad offer must not cost the live connection"
        async with publishing(server, session, voice(4)) as (second, _):
            await until(lambda: (first.connectionState, second.connectionState) == ("closed", "connected"), 5)
            assert len(live._peers()) == 1


async def test_while_a_publisher_is_connected_the_pages_microphone_is_not_heard(server: Running) -> None:
    session = await server.open()
    silence = voice(1) * 0
    async with publishing(server, session, silence) as (client, _):
        await until(lambda: client.connectionState == "connected", 5)
        async with calling(server, session, voice(20)) as page:
            await page.until("hello")
            await asyncio.sleep(3)
            assert not [m for m in page.messages if m["type"] == "speech_started"]
            await client.close()
            await page.until("speech_started", 12)

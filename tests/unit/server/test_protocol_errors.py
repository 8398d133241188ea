"""Every refusal of the protocol in one table: what is asked, by whom, and the code and status that answer it.

One server for all rows, with credentials. Errors of messages inside a socket stand in `SPOKEN`; those that need another
server (full, leaving, failed, still starting, rates) are tested beside their part and named in `ELSEWHERE`, so that the
last test can demand that no code of the contract is without a test.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from server.config import Secrets
from server.errors import STATUS_OF_CODE
from server.http import JSON_LIMIT, SDP_LIMIT
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.sdp import make_offer
from tests.unit.server.test_app import check_problem
from tests.unit.server.test_events_socket import KEY, refused, take
from tests.unit.server.whip_client import until

TYPES = {"json": "application/json", "sdp": "application/sdp"}
FRAGMENT = "application/trickle-ice-sdpfrag"
OFFER = "OFFER"
"""In a row's body: a real offer."""

# method, path ({id}: the session), who asks, content type, body, more headers, status, code
ASKED: list[tuple[str, str, str, str, Any, dict[str, str], int, str]] = [
    # who may
    ("POST", "/v1/sessions", "", "json", {}, {}, 401, "unauthorized"),
    ("POST", "/v1/sessions", "wrong", "json", {}, {}, 401, "unauthorized"),
    ("GET", "/v1/sessions", "control", "", None, {}, 401, "unauthorized"),
    ("GET", "/v1/sessions/{id}", "", "", None, {}, 401, "unauthorized"),
    ("GET", "/v1/sessions/none", "view", "", None, {}, 401, "unauthorized"),
    ("PATCH", "/v1/sessions/{id}", "view", "json", {"prompt": "x"}, {}, 403, "forbidden"),
    ("DELETE", "/v1/sessions/{id}", "view", "", None, {}, 403, "forbidden"),
    ("POST", "/v1/sessions/{id}/interrupt", "view", "", None, {}, 403, "forbidden"),
    ("POST", "/v1/sessions/{id}/say", "view", "json", {"text": "x"}, {}, 403, "forbidden"),
    ("POST", "/v1/sessions/{id}/outputs", "control", "json", {"url": "file:a.mp4"}, {}, 403, "forbidden"),
    ("GET", "/v1/sessions/{id}/outputs", "view", "", None, {}, 403, "forbidden"),
    ("POST", "/whip/{id}", "view", "sdp", OFFER, {}, 403, "forbidden"),
    ("POST", "/whep/{id}", "", "sdp", OFFER, {}, 401, "unauthorized"),
    ("GET", "/v1/ice", "", "", None, {}, 401, "unauthorized"),
    ("GET", "/metrics", "", "", None, {}, 401, "unauthorized"),
    ("GET", "/v1/queue/none", "", "", None, {}, 401, "unauthorized"),
    # what there is
    ("GET", "/nothing", "admin", "", None, {}, 404, "not_found"),
    ("GET", "/v1/sessions/none", "admin", "", None, {}, 404, "not_found"),
    ("PATCH", "/v1/sessions/none", "admin", "json", {"prompt": "x"}, {}, 404, "not_found"),
    ("DELETE", "/v1/sessions/none", "admin", "", None, {}, 404, "not_found"),
    ("POST", "/v1/sessions/none/offer", "admin", "json", {}, {}, 404, "not_found"),
    ("POST", "/v1/sessions/none/interrupt", "admin", "", None, {}, 404, "not_found"),
    ("POST", "/v1/sessions/none/say", "admin", "json", {"text": "x"}, {}, 404, "not_found"),
    ("POST", "/whip/none", "admin", "sdp", OFFER, {}, 404, "not_found"),
    ("POST", "/whep/none", "admin", "sdp", OFFER, {}, 404, "not_found"),
    ("DELETE", "/whip/{id}/none", "control", "", None, {}, 404, "not_found"),
    ("GET", "/v1/sessions/{id}/outputs/none", "admin", "", None, {}, 404, "not_found"),
    ("GET", "/v1/queue/none", "admin", "", None, {}, 404, "not_found"),
    ("DELETE", "/v1/queue/none", "admin", "", None, {}, 404, "not_found"),
    ("POST", "/v1/sessions", "admin", "json", {"avatar": "nobody"}, {}, 404, "not_found"),
    ("PATCH", "/v1/sessions/{id}", "control", "json", {"avatar": "nobody"}, {}, 404, "not_found"),
    ("PUT", "/v1/sessions", "admin", "", None, {}, 405, "bad_request"),
    # what can be read
    ("POST", "/v1/sessions", "admin", "text/plain", b"{}", {}, 415, "unsupported_media"),
    ("POST", "/v1/sessions", "admin", "json", b"{", {}, 400, "bad_request"),
    ("POST", "/v1/sessions", "admin", "json", {"mood": "x"}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions", "admin", "json", {"mode": "agent"}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions", "admin", "json", {"image": "%"}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions", "admin", "json", {"image": "aGVsbG8="}, {}, 415, "unsupported_media"),
    ("POST", "/v1/sessions?queue=perhaps", "admin", "json", {}, {}, 400, "bad_request"),
    ("PATCH", "/v1/sessions/{id}", "control", "json", {}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions/{id}/say", "control", "json", {"text": 5}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions/{id}/say", "control", "json", b" " * (JSON_LIMIT + 1), {}, 413, "too_large"),
    ("POST", "/v1/sessions/{id}/outputs", "admin", "json", {"url": "ftp://x"}, {}, 400, "bad_request"),
    ("POST", "/v1/sessions/{id}/outputs", "admin", "json", {"url": "rtmp://10.0.0.1/a"}, {}, 403, "forbidden"),
    ("POST", "/v1/sessions/{id}/outputs", "admin", "json", {"url": "file:a.mp4"}, {}, 403, "forbidden"),
    # offers and candidates
    ("POST", "/v1/sessions/{id}/offer", "control", "json", {"type": "offer", "sdp": "x"}, {}, 400, "bad_sdp"),
    ("POST", "/v1/sessions/{id}/offer", "control", "sdp", OFFER, {}, 415, "unsupported_media"),
    ("PATCH", "/v1/sessions/{id}/offer", "control", "json", {"candidates": []}, {}, 409, "conflict"),
    ("PATCH", "/v1/sessions/{id}/offer", "control", "json", {"candidates": 5}, {}, 400, "bad_request"),
    ("POST", "/whip/{id}", "control", "json", {}, {}, 415, "unsupported_media"),
    ("POST", "/whip/{id}", "control", "sdp", b"hello", {}, 400, "bad_sdp"),
    ("POST", "/whip/{id}", "control", "sdp", b"", {}, 400, "bad_sdp"),
    ("POST", "/whip/{id}", "control", "sdp", b"v" * (SDP_LIMIT + 1), {}, 413, "too_large"),
    ("POST", "/whep/{id}", "view", "sdp", b"hello", {}, 400, "bad_sdp"),
    ("PATCH", "{whep}", "view", "json", {}, {}, 415, "unsupported_media"),
    ("PATCH", "{whep}", "view", FRAGMENT, b"hello", {}, 400, "bad_request"),
    ("PATCH", "{whep}", "view", FRAGMENT, b"a=ice-ufrag:x\r\n", {}, 428, "precondition_required"),
    ("PATCH", "{whep}", "view", FRAGMENT, b"a=ice-ufrag:x\r\n", {"If-Match": '"stale"'}, 412, "precondition_failed"),
    ("PATCH", "{whep}", "view", FRAGMENT, b"a=ice-ufrag:x\r\n", {"If-Match": "*"}, 422, "bad_request"),
]

START = '{"type":"start","sample_rate":16000}'
# socket, who, what is sent before, the message, code
SPOKEN: list[tuple[str, str, list[str | bytes], str | bytes, str]] = [
    ("events", "control", [], "nonsense", "bad_request"),
    ("events", "control", [], '{"type":"sing"}', "bad_request"),
    ("events", "control", [], '{"type":"prompt"}', "bad_request"),
    ("events", "control", [], '{"type":"avatar","id":"nobody"}', "not_found"),
    ("events", "control", [], "x" * 70_000, "too_large"),
    ("events", "view", [], '{"type":"interrupt"}', "forbidden"),
    ("events", "view", [], '{"type":"say","text":"x"}', "forbidden"),
    ("audio", "control", [], b"\0\0", "bad_request"),
    ("audio", "control", [], '{"type":"start","sample_rate":96000}', "unsupported_rate"),
    ("audio", "control", [], '{"type":"start"}', "unsupported_rate"),
    ("audio", "control", [START], b"\0\0\0", "bad_request"),
    ("audio", "control", [START, '{"type":"end"}'], b"\0\0", "bad_request"),
    ("audio", "control", [], '{"type":"end"}', "bad_request"),
]

# a socket that is not opened at all: path, who, status, code
DENIED = [
    ("v1/sessions/{id}/events", "", 401, "unauthorized"),
    ("v1/sessions/{id}/events", "wrong", 401, "unauthorized"),
    ("v1/sessions/none/events", "admin", 404, "not_found"),
    ("v1/sessions/{id}/audio", "view", 403, "forbidden"),
    ("v1/realtime?session={id}", "view", 403, "forbidden"),
    ("v1/realtime?session=none", "admin", 404, "not_found"),
    ("v1/queue/none", "admin", 404, "not_found"),
    ("v1/queue/none", "view", 401, "unauthorized"),
    ("nothing", "admin", 404, "not_found"),
]

ELSEWHERE = {
    "capacity": "test_queue.test_the_queue_over_http_and_websocket",
    "rate_limited": "test_rates.test_requests_and_changes_are_limited_with_429_and_reading_is_not",
    "not_live": "test_whep.test_a_session_that_still_starts_is_not_live",
    "engine_down": "test_app.test_sessions_may_be_opened_while_the_model_starts",
    "internal": "test_protocol_errors.test_a_mistake_of_our_own_is_told_without_a_traceback",
}
UNUSED = {"out_of_domain"}
"""A warning, not a refusal: such a portrait is shown as well as the model can."""


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    config = fake_config(auth={"required": "always"}, limits={"failed_logins_per_minute": 1000})
    async with running(config, Secrets(api_key=KEY)) as made:
        yield made


async def opened(server: Running) -> tuple[dict[str, Any], dict[str, str]]:
    """A live session, and the secret of each who may ask."""
    made = (await server.http.post("/v1/sessions", json={}, headers=bearer(KEY))).json()
    live = server.hub.find(made["id"])
    assert live is not None
    await until(lambda: live.live)
    return made, {"admin": KEY, "control": made["token"], "view": made["view_token"], "wrong": "a guess", "": ""}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"} if secret else {}


async def test_every_refusal_has_its_status_and_code(server: Running) -> None:
    session, secrets = await opened(server)
    offer, viewer = await make_offer(channel=False), ""
    for method, path, who, kind, body, more, status, code in ASKED:
        if "{whep}" in path and not viewer:
            headers = {"Content-Type": "application/sdp", **bearer(secrets["view"])}
            answer = await server.http.post(f"/whep/{session['id']}", content=offer, headers=headers)
            assert answer.status_code == 201, answer.text
            viewer = answer.headers["location"]
        content = offer if body == OFFER else json.dumps(body) if isinstance(body, dict) else body
        headers = {"Content-Type": TYPES.get(kind, kind)} if kind else {}
        answer = await server.http.request(
            method,
            path.format(id=session["id"], whep=viewer),
            content=content,
            headers=headers | more | bearer(secrets[who]),
        )
        assert answer.status_code == status, f"{method} {path} by {who or 'nobody'}: {answer.status_code} {answer.text}"
        check_problem(answer, status, code)
    assert server.hub.admission.taken == 1, "no refusal has cost a place"


async def test_every_refused_message_has_its_code_and_the_socket_lives(server: Running) -> None:
    session, secrets = await opened(server)
    for door, who, before, message, code in SPOKEN:
        async with connect(f"{server.ws}/{session['urls'][door]}?token={secrets[who]}") as socket:
            for text in before:
                await socket.send(text)
            await socket.send(message)
            assert (await take(socket, "error"))["code"] == code, message[:60]
            await socket.send("ping")
            await take(socket, "pong")
    for path, who, status, code in DENIED:
        url = f"{server.ws}/{path.format(id=session['id'])}"
        await refused(url, status, code, additional_headers=bearer(secrets[who]))


async def test_a_mistake_of_our_own_is_told_without_a_traceback(server: Running, monkeypatch: Any) -> None:
    monkeypatch.setattr(server.hub, "capacity", lambda: 1 / 0)
    answer = await server.http.get("/v1/capacity")
    assert "ZeroDivision" not in check_problem(answer, 500, "internal")


def test_no_code_of_the_contract_is_without_a_test() -> None:
    here = {row[-1] for row in ASKED} | {row[-1] for row in SPOKEN}
    assert here | set(ELSEWHERE) | UNUSED == set(STATUS_OF_CODE)
    for place in ELSEWHERE.values():
        module, _, name = place.partition(".")
        assert hasattr(importlib.import_module(f"tests.unit.server.{module}"), name), place

"""The HTTP surface over the fake model: documents, codes, caps, life and death of sessions."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from model.portrait import MAX_BYTES
from server.config import Secrets
from server.http import IMAGE_JSON_LIMIT, JSON_LIMIT, OFFER_LIMIT
from server.metrics import Metrics
from tests.unit.server.running import Running, fake_config, running
from tests.unit.server.sdp import make_offer, mutations
from tests.unit.server.whip_client import until

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as made:
        yield made


def png(width: int = 80, height: int = 100, *, noise: bool = False) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = (90, 140, 200)
    if noise:
        pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def check_problem(answer: httpx.Response, status: int, code: str) -> str:
    """Every refusal is a problem document with one sentence and no traceback."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["title"]
    assert "Traceback" not in answer.text
    assert "\n" not in body["detail"]
    return body["detail"]


async def test_a_session_is_opened_described_changed_and_ended(server: Running) -> None:
    made = await server.open(prompt="calm", avatar="mei")
    assert made["mode"] == "echo"
    assert made["media"]["width"] == made["media"]["height"] == 64
    assert (made["media"]["fps"], made["media"]["block_ms"]) == (25, 480)
    assert 500 < made["media"]["latency_ms"] <= 1200
    assert set(made["urls"]) == {"offer", "whip", "whep", "events", "audio", "realtime", "page", "obs"}
    assert made["token"] != made["view_token"]

    path = f"/v1/sessions/{made['id']}"
    status = (await server.http.get(path)).json()
    assert (status["id"], status["avatar"], status["prompt"], status["viewers"]) == (made["id"], "mei", "calm", 0)
    assert status["state"] == "idle"
    assert {"fps", "block_ms_p50", "block_ms_p95", "latency_ms", "queue_ms", "av_drift_ms", "rtf"} <= set(
        status["stats"]
    )
    assert [s["id"] for s in (await server.http.get("/v1/sessions")).json()] == [made["id"]]

    planned = await server.http.patch(path, json={"prompt": "smile", "avatar": "ravi"})
    assert planned.status_code == 200
    assert planned.json()["frame"] == 12 * planned.json()["block"]
    status = (await server.http.get(path)).json()
    assert (status["avatar"], status["prompt"]) == ("ravi", "smile")

    answer = (await server.http.post(f"{path}/interrupt")).json()
    assert answer == {"segment": None, "position_ms": 0, "interrupted": False}

    assert (await server.http.delete(path)).status_code == 204
    check_problem(await server.http.get(path), 404, "not_found")
    check_problem(await server.http.delete(path), 404, "not_found")
    assert server.hub.admission.taken == 0


async def test_a_portrait_may_come_as_base64_or_as_a_file(server: Running) -> None:
    coded = base64.b64encode(png()).decode()
    for image in (coded, f"data:image/png;base64,{coded}"):
        made = await server.open(image=image)
        status = (await server.http.get(f"/v1/sessions/{made['id']}")).json()
        assert status["avatar"] is None
    answer = await server.http.post(
        "/v1/sessions", files={"image": ("me.png", png(), "image/png")}, data={"json": '{"prompt": "smile"}'}
    )
    assert answer.status_code == 201
    assert (await server.http.get(f"/v1/sessions/{answer.json()['id']}")).json()["prompt"] == "smile"


@pytest.mark.parametrize(
    ("body", "status", "code", "part"),
    [
        ({"promt": "x"}, 400, "bad_request", "did you mean prompt"),
        ({"prompt": 5}, 400, "bad_request", "prompt is 5"),
        ({"prompt": "x" * 2001}, 400, "bad_request", "2000"),
        ({"mode": "sing"}, 400, "bad_request", "mode is 'sing'"),
        ({"mode": "agent"}, 400, "bad_request", "agent.url"),
        ({"seed": -1}, 400, "bad_request", "seed is -1"),
        ({"avatar": "nobody"}, 404, "not_found", "'nobody'"),
        ({"image": "%%%"}, 400, "bad_request", "base64"),
        ({"image": base64.b64encode(b"hello").decode()}, 415, "unsupported_media", "not a picture"),
        ({"image": base64.b64encode(png(5000, 70)).decode()}, 415, "unsupported_media", "5000x70"),
        ({"image": base64.b64encode(png(20, 20)).decode()}, 415, "unsupported_media", "20x20"),
        ({"image": base64.b64encode(png()).decode(), "avatar": "mei"}, 201, "", ""),
        ([], 400, "bad_request", "not a JSON object"),
        ("text", 400, "bad_request", "not a JSON object"),
    ],
)
async def test_a_bad_wish_is_refused_and_takes_no_slot(
    server: Running, body: object, status: int, code: str, part: str
) -> None:
    answer = await server.http.post("/v1/sessions", json=body)
    if status == 201:
        assert answer.status_code == 201, "an own picture wins over the gallery"
        return
    assert part in check_problem(answer, status, code)
    assert server.hub.admission.taken == 0


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 20_000, b'{"prompt": NaN}', b"null"])
async def test_what_is_no_json_is_refused(server: Running, content: bytes) -> None:
    answer = await server.http.post("/v1/sessions", content=content, headers={"Content-Type": "application/json"})
    check_problem(answer, 400, "bad_request")


async def test_other_content_types_are_refused(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await server.http.post("/v1/sessions", content=b"{}", headers={"Content-Type": kind})
        check_problem(answer, 415, "unsupported_media")
    answer = await server.http.post(
        "/v1/sessions", content=b"junk", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    check_problem(answer, 400, "bad_request")
    for files, data in (({"other": b"x"}, {}), ({"image": b"x", "json": b"{}"}, {}), ({}, {"json": "{"})):
        answer = await server.http.post("/v1/sessions", files={**files} or None, data=data or None)
        assert answer.status_code in (400, 415)


async def test_caps_hold_at_the_cap_and_one_above(server: Running) -> None:
    made = await server.open()
    path = f"/v1/sessions/{made['id']}"
    headers = {"Content-Type": "application/json"}

    def padded(size: int, head: bytes = b"{}") -> bytes:
        return head + b" " * (size - len(head))

    at_cap = await server.http.patch(f"{path}/offer", content=padded(JSON_LIMIT), headers=headers)
    check_problem(at_cap, 400, "bad_request")
    over = await server.http.patch(f"{path}/offer", content=padded(JSON_LIMIT + 1), headers=headers)
    check_problem(over, 413, "too_large")
    over = await server.http.post(f"{path}/offer", content=padded(OFFER_LIMIT + 1), headers=headers)
    check_problem(over, 413, "too_large")
    over = await server.http.post("/v1/sessions", content=padded(IMAGE_JSON_LIMIT + 1), headers=headers)
    check_problem(over, 413, "too_large")
    plain = await server.http.post("/v1/sessions", content=padded(JSON_LIMIT + 1), headers=headers)
    check_problem(plain, 413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(JSON_LIMIT // 1000 + 2):
            yield b" " * 1000

    undeclared = await server.http.patch(f"{path}/offer", content=chunks(), headers=headers)
    check_problem(undeclared, 413, "too_large")
    picture = base64.b64encode(b"x" * (MAX_BYTES + 1)).decode()
    check_problem(await server.http.post("/v1/sessions", json={"image": picture}), 413, "too_large")
    whole = await server.http.post("/v1/sessions", json={"image": base64.b64encode(b"x" * MAX_BYTES).decode()})
    check_problem(whole, 415, "unsupported_media")


async def test_a_full_server_says_why_and_when_to_come_back() -> None:
    async with running(fake_config(limits={"max_sessions": 1})) as server:
        made = await server.open()
        answer = await server.http.post("/v1/sessions", json={})
        detail = check_problem(answer, 503, "capacity")
        assert int(answer.headers["retry-after"]) > 0
        assert "limits.max_sessions is 1" in detail
        assert (await server.http.get("/v1/capacity")).json() == {
            "sessions": 1, "max_sessions": 1, "rtf_p95": 0.0, "queue": 0,
        }  # fmt: skip
        await server.http.delete(f"/v1/sessions/{made['id']}")
        await server.open()


async def test_measured_capacity_admits_what_fits() -> None:
    config = fake_config(limits={"max_sessions": 0}, model={"fake": {"block_s": 0.3}})
    async with running(config) as server:
        assert (await server.http.get("/v1/capacity")).json()["max_sessions"] == 1
        await server.open()
        detail = check_problem(await server.http.post("/v1/sessions", json={}), 503, "capacity")
        assert "480 ms takes 300 ms" in detail


async def test_sessions_nobody_uses_end_by_themselves() -> None:
    async with running(fake_config(limits={"idle_s": 1.0})) as server:
        made = await server.open()
        for _ in range(50):
            if (await server.http.get(f"/v1/sessions/{made['id']}")).status_code == 404:
                break
            await asyncio.sleep(0.1)
        check_problem(await server.http.get(f"/v1/sessions/{made['id']}"), 404, "not_found")
        for _ in range(50):  # the name is gone at once, the place once everything of the session has ended
            if server.hub.admission.taken == 0:
                break
            await asyncio.sleep(0.1)
        assert server.hub.admission.taken == 0


async def test_sessions_may_be_opened_while_the_model_starts() -> None:
    async with running(fake_config(model={"fake": {"load_s": 1.5}}), wait=False) as server:
        check_problem(await server.http.get("/readyz"), 503, "engine_down")
        assert (await server.http.get("/healthz")).json()["engine"]["state"] == "starting"
        made = await server.open()
        assert made["media"]["latency_ms"] > 500
        await asyncio.wait_for(server.hub.wait_started(), 10)
        assert (await server.http.get("/readyz")).json() == {"ready": True}


async def test_operations_answer(server: Running) -> None:
    health = (await server.http.get("/healthz")).json()
    assert health["status"] == "ok"
    assert health["engine"]["state"] == "ready"
    assert (await server.http.get("/readyz")).status_code == 200
    assert (await server.http.get("/v1/ice")).json() == {"iceServers": []}
    avatars = (await server.http.get("/v1/avatars")).json()
    assert len(avatars) >= 8
    assert {"id", "name", "thumbnail", "in_domain"} == set(avatars[0])
    picture = await server.http.get("/" + avatars[0]["thumbnail"])
    assert picture.headers["content-type"] == "image/png"
    paths = (await server.http.get("/openapi.json")).json()["paths"]
    assert {"/v1/sessions", "/v1/sessions/{id}/offer", "/v1/avatars", "/healthz"} <= set(paths)


async def test_every_metric_of_the_contract_is_there(server: Running) -> None:
    await server.open()
    text = (await server.http.get("/metrics")).text
    names = """sessions session_seconds_total blocks_total frames_sent_total underruns_total deadline_misses_total
        block_seconds mouth_latency_seconds ttff_seconds av_drift_seconds rtf queue_seconds interrupt_seconds
        engine_restarts_total gpu_memory_bytes rejected_total""".split()
    for name in names:
        assert f"# TYPE avatarcast_{name.removesuffix('_total')}" in text or f"# TYPE avatarcast_{name} " in text, name
    assert "avatarcast_sessions 1.0" in text
    await server.http.get("/nothing")
    assert 'avatarcast_rejected_total{code="not_found"} 1.0' in (await server.http.get("/metrics")).text


def test_every_metric_is_in_the_protocol() -> None:
    text = (ROOT / "docs/protocol.md").read_text(encoding="utf-8").partition("## Metrics")[2]
    named = set(re.findall(r"[a-z_]+", text))
    for metric in Metrics().registry.collect():
        name = metric.name.removeprefix("avatarcast_")
        assert name in named or f"{name}_total" in named, f"docs/protocol.md does not name {name}"


async def test_memory_of_cards_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.hub.memory_used", lambda: {"cuda:0": 5e9, "cuda:1": 1e9})
    async with running() as server:
        await until(lambda: b'{device="cuda:1"} 1e+09' in server.hub.metrics.render(), 5)
        assert 'avatarcast_gpu_memory_bytes{device="cuda:0"} 5e+09' in (await server.http.get("/metrics")).text


async def test_pages_are_served_and_nothing_else(server: Running) -> None:
    page = await server.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'id="avatar"' in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    script = await server.http.get("/static/presenter.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for path in ("/static/__init__.py", "/static/gallery", "/static/..%2Fpyproject.toml", "/gallery/index.json",
                 "/static/%2e%2e/configs/tiny.yaml", "/gallery/..%2Fstyle.css"):  # fmt: skip
        check_problem(await server.http.get(path), 404, "not_found")


async def test_a_session_that_is_gone_is_resumed_under_its_old_name(server: Running) -> None:
    made = await server.open(avatar="mei")
    old = {key: made[key] for key in ("id", "token", "view_token")}
    assert made["urls"]["obs"] == f"obs/{made['id']}?token={made['view_token']}"
    refused = await server.http.post("/v1/sessions", json={"resume": old})
    assert "still lives" in check_problem(refused, 409, "conflict")
    assert (await server.http.delete(f"/v1/sessions/{made['id']}")).status_code == 204
    again = await server.open(avatar="jonas", resume=old)
    assert {key: again[key] for key in old} == old
    assert again["urls"] == made["urls"]
    short = await server.http.post("/v1/sessions", json={"resume": {**old, "token": "guessable"}})
    assert "token" in check_problem(short, 400, "bad_request")


async def test_whoever_asks_to_watch_does_not_become_the_speaker(server: Running) -> None:
    made = await server.open()
    path = f"/v1/sessions/{made['id']}/offer"
    body = {"sdp": await make_offer(), "type": "offer"}
    assert (await server.http.post(path, params={"watch": "1"}, json=body)).status_code == 200
    late = await server.http.patch(path, json={"candidates": []})
    check_problem(late, 409, "conflict")  # no speaker yet
    assert (await server.http.patch(path, params={"watch": "1"}, json={"candidates": []})).status_code == 204


@pytest.mark.parametrize("path", ["/kiosk", "/dashboard", "/obs/live"])
async def test_every_page_is_served(server: Running, path: str) -> None:
    page = await server.http.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "static/style.css" in page.text


async def test_unknown_paths_and_methods(server: Running) -> None:
    assert "/openapi.json" in check_problem(await server.http.get("/nope"), 404, "not_found")
    check_problem(await server.http.put("/v1/sessions"), 405, "bad_request")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:5", "Origin": "http://localhost:5"}, 201),
        ({"Host": "[::1]:5"}, 201),
        ({"Host": "127.0.0.1"}, 201),
    ],
)
async def test_other_sites_pages_cannot_drive_an_open_server(server: Running, headers: dict, status: int) -> None:
    answer = await server.http.post("/v1/sessions", json={}, headers=headers)
    assert answer.status_code == status
    if status == 403:
        check_problem(answer, 403, "forbidden")


async def test_an_allowed_origin_may_call() -> None:
    config = fake_config(server={"cors_origins": ["https://good.example"]})
    async with running(config) as server:
        answer = await server.http.post("/v1/sessions", json={}, headers={"Origin": "https://good.example"})
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://good.example"


async def test_pages_of_listed_origins_can_read_why_they_are_refused() -> None:
    good = {"Origin": "https://good.example"}
    config = fake_config(
        server={"cors_origins": ["https://good.example"]},
        auth={"required": "always"},
        limits={"requests_per_minute": 3},
    )
    async with running(config, Secrets(api_key="k" * 24)) as server:
        refused = [
            (await server.http.post("/v1/sessions", json={}, headers=good), 401, "unauthorized"),
            (await server.http.post("/v1/sessions", content=b"x" * 20_000_000, headers=good), 413, "too_large"),
            (await server.http.get("/nothing", headers=good), 404, "not_found"),
            (await server.http.post("/v1/sessions", json={}, headers=good), 401, "unauthorized"),
            (await server.http.post("/v1/sessions", json={}, headers=good), 429, "rate_limited"),
        ]
        for answer, status, code in refused:
            check_problem(answer, status, code)
            assert answer.headers["access-control-allow-origin"] == "https://good.example", code
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        stranger = await server.http.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, status in (("https://good.example", 200), ("https://evil.example", 400)):
            answer = await server.http.options("/v1/sessions", headers={"Origin": origin, **asked})
            assert answer.status_code == status
        admin = {"Authorization": "Bearer " + "k" * 24}
        text = (await server.http.get("/metrics", headers=admin)).text
        assert 'avatarcast_rejected_total{code="too_large"} 1.0' in text
        assert 'avatarcast_rejected_total{code="rate_limited"} 1.0' in text


async def test_offers_that_cannot_be_answered_are_4xx(server: Running) -> None:
    made = await server.open()
    path = f"/v1/sessions/{made['id']}/offer"
    check_problem(await server.http.patch(path, json={"candidates": []}), 409, "conflict")
    check_problem(await server.http.post(path, json={"type": "offer", "sdp": "junk"}), 400, "bad_sdp")
    without = await make_offer(h264=False)
    detail = check_problem(await server.http.post(path, json={"type": "offer", "sdp": without}), 422, "bad_sdp")
    assert "H264" in detail
    check_problem(await server.http.post("/v1/sessions/none/offer", json={}), 404, "not_found")


async def test_mutated_offers_never_break_the_server(server: Running) -> None:
    made = await server.open()
    path = f"/v1/sessions/{made['id']}/offer"
    statuses: dict[int, int] = {}
    for text in mutations(await make_offer(), 120, seed=11):
        answer = await server.http.post(path, json={"type": "offer", "sdp": text})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
        if answer.status_code != 200:
            check_problem(answer, answer.status_code, answer.json()["code"])
    assert statuses.get(200, 0) > 0
    assert statuses.get(400, 0) > 0
    good = await server.http.post(path, json={"type": "offer", "sdp": await make_offer()})
    assert good.status_code == 200


async def test_a_bad_second_offer_leaves_the_first_connection(server: Running) -> None:
    made = await server.open()
    path = f"/v1/sessions/{made['id']}/offer"
    assert (await server.http.post(path, json={"type": "offer", "sdp": await make_offer()})).status_code == 200
    first = server.hub.find(made["id"])._speaker  # type: ignore[union-attr]
    broken = (await make_offer()).replace("a=fingerprint:sha-256", "a=fingerprint:md9")
    answer = await server.http.post(path, json={"type": "offer", "sdp": broken})
    if answer.status_code != 200:
        assert server.hub.find(made["id"])._speaker is first  # type: ignore[union-attr]
        assert not first.closed  # type: ignore[union-attr]
    check_problem(await server.http.post(path, json={"type": "offer", "sdp": "v=0"}), 400, "bad_sdp")
    assert not server.hub.find(made["id"])._speaker.closed  # type: ignore[union-attr]


async def test_logs_carry_no_secrets(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="server")
    made = await server.open()
    offer = await make_offer()
    await server.http.post(f"/v1/sessions/{made['id']}/offer", json={"type": "offer", "sdp": offer})
    await server.http.delete(f"/v1/sessions/{made['id']}")
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("server"))
    assert made["id"] in text
    for secret in (made["token"], made["view_token"], "ice-pwd", json.dumps(offer)[20:80]):
        assert secret not in text

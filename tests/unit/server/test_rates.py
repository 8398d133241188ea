"""Limits a minute: requests by client, changes by session, wrong credentials by address."""

from __future__ import annotations

import pytest

from server.config import AuthConfig, LimitsConfig, Secrets, ServerConfig
from server.errors import ApiError
from server.rates import RateByName, Rates
from tests.unit.server.running import fake_config, running
from tests.unit.server.test_app import check_problem
from tests.unit.server.test_auth import KEY, Authority, Clock, Role, request


def test_each_name_has_a_minute_of_its_own() -> None:
    clock = Clock()
    rate = RateByName(2, now=clock)
    assert [rate.wait_s("a"), rate.wait_s("a"), rate.wait_s("a"), rate.wait_s("b")] == [0, 0, 60, 0]
    clock.now_s = 45.2
    assert rate.full_s("a") == 15
    clock.now_s = 60.0
    assert rate.wait_s("a") == 0


def test_names_that_were_quiet_are_forgotten() -> None:
    clock = Clock()
    rate = RateByName(2, now=clock)
    for number in range(5000):
        rate.wait_s(str(number))
        clock.now_s += 0.1
    assert len(rate._times) <= 4097


def test_wrong_credentials_close_the_door_for_their_address_for_a_minute() -> None:
    clock = Clock()
    rates = Rates(LimitsConfig(failed_logins_per_minute=3), now=clock)
    authority = Authority(ServerConfig(host="0.0.0.0"), AuthConfig(), Secrets(api_key=KEY), rates=rates, now=clock)
    for _ in range(3):
        with pytest.raises(ApiError, match="unknown or expired"):
            authority.demand(request(bearer="guess"), Role.ADMIN)
    for bearer in ("guess", KEY):
        with pytest.raises(ApiError) as caught:
            authority.demand(request(bearer=bearer), Role.ADMIN)
        assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("rate_limited", 429, 60)
    clock.now_s = 60.0
    assert authority.demand(request(bearer=KEY), Role.ADMIN) == Role.ADMIN


async def test_requests_and_changes_are_limited_with_429_and_reading_is_not() -> None:
    limits = {"requests_per_minute": 6, "changes_per_minute": 2}
    async with running(fake_config(limits=limits)) as server:
        session = await server.open()
        path = f"/v1/sessions/{session['id']}"
        for _ in range(2):
            assert (await server.http.patch(path, json={"prompt": "smile"})).status_code == 200
        answer = await server.http.patch(path, json={"prompt": "smile"})
        assert "limits.changes_per_minute" in check_problem(answer, 429, "rate_limited")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        for _ in range(2):
            assert (await server.http.post(f"{path}/interrupt")).status_code == 200
        answer = await server.http.post(f"{path}/interrupt")
        assert "limits.requests_per_minute" in check_problem(answer, 429, "rate_limited")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        for _ in range(10):
            assert (await server.http.get(path)).status_code == 200
        assert 'rejected_total{code="rate_limited"} 2.0' in (await server.http.get("/metrics")).text


async def test_a_token_that_expired_opens_nothing() -> None:
    config = fake_config(auth={"required": "always", "token_ttl_s": 60})
    async with running(config, Secrets(api_key=KEY)) as server:
        admin = {"Authorization": f"Bearer {KEY}"}
        session = (await server.http.post("/v1/sessions", json={}, headers=admin)).json()
        path = f"/v1/sessions/{session['id']}"
        now_s = server.hub.authority._now()
        for token in (session["token"], session["view_token"]):
            holder = {"Authorization": f"Bearer {token}"}
            assert (await server.http.get(path, headers=holder)).status_code == 200
            server.hub.authority._now = lambda: now_s + 61
            check_problem(await server.http.get(path, headers=holder), 401, "unauthorized")
            server.hub.authority._now = lambda: now_s
        server.hub.authority._now = lambda: now_s + 61
        assert (await server.http.get(path, headers=admin)).status_code == 200

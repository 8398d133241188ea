"""Credentials: who may do what, and the server that refuses to start without a key."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from server.auth import Authority, Role, chosen_protocol, credentials
from server.config import AuthConfig, Secrets, ServerConfig
from server.errors import ApiError, ConfigError, StartError

KEY = "an admin key of enough length"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def request(kind: str = "http", *, bearer: str = "", query: str = "", protocols: str = "") -> HTTPConnection:
    headers = [(b"authorization", f"Bearer {bearer}".encode())] if bearer else []
    if protocols:
        headers.append((b"sec-websocket-protocol", protocols.encode()))
    return HTTPConnection({"type": kind, "headers": headers, "query_string": query.encode(), "path": "/"})


def guarded(clock: Clock | None = None) -> Authority:
    return Authority(
        ServerConfig(host="0.0.0.0"), AuthConfig(token_ttl_s=100), Secrets(api_key=KEY), now=clock or Clock()
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_a_reachable_server_refuses_to_start_without_a_key(host: str) -> None:
    with pytest.raises(StartError) as caught:
        Authority(ServerConfig(host=host), AuthConfig(), Secrets())
    assert host in str(caught.value)
    assert "AVATARCAST_API_KEY" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "localhost", "::1", "[::1]"])
def test_on_loopback_credentials_are_off(host: str) -> None:
    authority = Authority(ServerConfig(host=host), AuthConfig(), Secrets())
    assert not authority.required
    assert authority.role(request()) == Role.ADMIN
    with pytest.raises(StartError, match="auth.required is always"):
        Authority(ServerConfig(host=host), AuthConfig(required="always"), Secrets())


def test_a_view_token_cannot_control_even_where_credentials_are_off() -> None:
    authority = Authority(ServerConfig(), AuthConfig(), Secrets())
    tokens = authority.issue()
    assert authority.role(request(bearer=tokens.view), tokens) == Role.VIEW
    assert authority.role(request(bearer="anything else"), tokens) == Role.ADMIN


def test_each_secret_opens_its_own_doors() -> None:
    authority = guarded()
    tokens, others = authority.issue(), authority.issue()
    assert authority.role(request(bearer=KEY)) == Role.ADMIN
    assert authority.role(request(bearer=KEY), tokens) == Role.ADMIN
    assert authority.role(request(bearer=tokens.control), tokens) == Role.CONTROL
    assert authority.role(request(bearer=tokens.view), tokens) == Role.VIEW
    for wrong in (others.control, others.view, "", KEY[:-1], KEY + "x", "\udcff"):
        assert authority.role(request(bearer=wrong.encode("utf-8", "replace").decode()), tokens) == Role.NOBODY
    assert authority.role(request(bearer=tokens.control)) == Role.NOBODY, "no session, no token"


def test_refusals_say_what_is_needed() -> None:
    authority = guarded()
    tokens = authority.issue()
    with pytest.raises(ApiError) as caught:
        authority.demand(request(), Role.VIEW, tokens)
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    with pytest.raises(ApiError) as caught:
        authority.demand(request(bearer=tokens.view), Role.CONTROL, tokens)
    assert (caught.value.code, caught.value.status) == ("forbidden", 403)
    assert "control token" in caught.value.detail
    with pytest.raises(ApiError, match="admin key"):
        authority.demand(request(bearer=tokens.control), Role.ADMIN, tokens)


def test_tokens_expire() -> None:
    clock = Clock()
    authority = guarded(clock)
    tokens = authority.issue()
    clock.now_s = 99.9
    assert authority.role(request(bearer=tokens.control), tokens) == Role.CONTROL
    clock.now_s = 100.0
    assert authority.role(request(bearer=tokens.control), tokens) == Role.NOBODY
    assert authority.role(request(bearer=KEY), tokens) == Role.ADMIN


def test_secrets_do_not_show_in_logs() -> None:
    authority = guarded()
    tokens = authority.issue()
    assert tokens.control not in repr(tokens)
    assert tokens.view not in repr(tokens)
    assert KEY not in repr(Secrets(api_key=KEY))
    assert len({authority.issue().control for _ in range(50)}) == 50


def test_websockets_take_credentials_from_query_or_subprotocol() -> None:
    assert credentials(request("websocket", query="token=abc")) == "abc"
    assert credentials(request("websocket", protocols="avatarcast, bearer.xyz")) == "xyz"
    assert credentials(request("websocket", bearer="one", query="token=two")) == "one"
    assert credentials(request("http", query="token=abc")) is None, "addresses of HTTP requests stand in logs"
    assert chosen_protocol(request("websocket", protocols="bearer.xyz, avatarcast")) == "avatarcast"
    assert chosen_protocol(request("websocket", protocols="bearer.xyz")) == "bearer.xyz"
    assert chosen_protocol(request("websocket")) is None


def test_the_environment_carries_the_secrets() -> None:
    assert Secrets.from_environment({}) == Secrets()
    assert Secrets.from_environment({"AVATARCAST_API_KEY": ""}).api_key is None
    assert Secrets.from_environment({"AVATARCAST_API_KEY": KEY, "AVATARCAST_ICE_CREDENTIAL": "p"}).api_key == KEY
    with pytest.raises(ConfigError, match="has 5 characters"):
        Secrets.from_environment({"AVATARCAST_API_KEY": "short"})

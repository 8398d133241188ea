"""Who may do what: the admin key, and a session's control and view tokens.

Off on a loopback address (unless `auth.required: always`), where the origin check of `server.http` keeps other sites'
pages out; bound elsewhere the server refuses to start without a key. Credentials come as `Authorization: Bearer`, for
WebSockets also as the query parameter `token` or the subprotocol `bearer.TOKEN`. All comparisons take constant time.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from starlette.requests import HTTPConnection

from server.config import API_KEY_VARIABLE, AuthConfig, Secrets, ServerConfig
from server.errors import ApiError, StartError
from server.rates import Rates

SUBPROTOCOL = "avatarcast"
_TOKEN_PROTOCOLS = ("bearer.", "openai-insecure-api-key.")  # the second is what Realtime clients in browsers send


class Role(IntEnum):
    """What credentials allow; each includes those before it."""

    NOBODY = 0
    VIEW = 1
    CONTROL = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One session's credentials. Unguessable, and worthless after `expires_s`."""

    control: str = field(repr=False)
    view: str = field(repr=False)
    expires_s: float
    """On the monotonic clock."""


class Authority:
    """Decides about every request.

    Args:
        rates: counts wrong credentials; None counts nothing.

    Raises:
        StartError: the server would be reachable from outside without a key.
    """

    def __init__(
        self,
        server: ServerConfig,
        auth: AuthConfig,
        known: Secrets,
        *,
        rates: Rates | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = known.api_key
        self._rates = rates
        self._ttl_s = auth.token_ttl_s
        self._now = now
        self.required = auth.required == "always" or not server.is_loopback
        """Whether credentials are asked for at all."""
        if self.required and not self._key:
            reason = f"host is {server.host}" if not server.is_loopback else "auth.required is always"
            raise StartError(
                f"{reason}, so an admin key is needed: set {API_KEY_VARIABLE} (for example to the output of"
                " 'openssl rand -hex 24'), or listen on 127.0.0.1."
            )

    def issue(self, control: str | None = None, view: str | None = None) -> Tokens:
        """Tokens for a new session, fresh ones unless it takes over those of another."""
        return Tokens(
            control=control or secrets.token_urlsafe(24),
            view=view or secrets.token_urlsafe(24),
            expires_s=self._now() + self._ttl_s,
        )

    def role(self, request: HTTPConnection, tokens: Tokens | None = None) -> Role:
        """What this request may do, to one session (`tokens`) or in general."""
        if not self.required:
            return self._open_role(request, tokens)
        given = credentials(request)
        if not given:
            return Role.NOBODY
        if self._key and _same(given, self._key):
            return Role.ADMIN
        return self._token_role(given, tokens)

    def shows_key(self, request: HTTPConnection) -> bool:
        """Whether the admin key came with the request."""
        given = credentials(request)
        return bool(given and self._key and _same(given, self._key))

    def demand(self, request: HTTPConnection, least: Role, tokens: Tokens | None = None) -> Role:
        """`role`, but at least `least`.

        Raises:
            ApiError: `unauthorized` (401) without or with unknown credentials, `forbidden` (403) with lesser ones,
                `rate_limited` (429) after too many wrong ones from this address.
        """
        if self.required and self._rates is not None:
            self._rates.check_failures(request)
        role = self.role(request, tokens)
        if role == Role.NOBODY:
            if self._rates is not None and credentials(request):
                self._rates.failed(request)
            raise ApiError("unauthorized", "Credentials are missing, unknown or expired; send Authorization: Bearer.")
        if role < least:
            need = {Role.CONTROL: "the session's control token", Role.ADMIN: "the admin key"}[least]
            raise ApiError("forbidden", f"These credentials may not do that; it needs {need}.")
        return role

    def _open_role(self, request: HTTPConnection, tokens: Tokens | None) -> Role:
        """Without the need for credentials everybody is admin, except who shows a view token: it cannot control."""
        given = credentials(request)
        return Role.VIEW if given and tokens and _same(given, tokens.view) else Role.ADMIN

    def _token_role(self, given: str, tokens: Tokens | None) -> Role:
        if tokens is None or self._now() >= tokens.expires_s:
            return Role.NOBODY
        control, view = _same(given, tokens.control), _same(given, tokens.view)
        return Role.CONTROL if control else Role.VIEW if view else Role.NOBODY


def credentials(request: HTTPConnection) -> str | None:
    """The secret that a request carries, if any."""
    header = request.headers.get("authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if request.scope["type"] != "websocket":
        return None
    for protocol in offered_protocols(request):
        for prefix in _TOKEN_PROTOCOLS:
            if protocol.startswith(prefix):
                return protocol.removeprefix(prefix)
    return request.query_params.get("token") or None


def offered_protocols(request: HTTPConnection) -> list[str]:
    """The subprotocols that a WebSocket client offers."""
    return [p.strip() for p in request.headers.get("sec-websocket-protocol", "").split(",") if p.strip()]


def chosen_protocol(request: HTTPConnection) -> str | None:
    """The subprotocol to answer with: a browser that offered any hangs up unless one of them comes back."""
    offered = offered_protocols(request)
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return offered[0] if offered else None


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())

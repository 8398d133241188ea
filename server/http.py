"""What every HTTP answer has in common: problem documents, caps on bodies, and who may call from a browser.

Errors are `application/problem+json` (RFC 9457) with the contract's stable `code`; never 200, never a traceback.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from server.errors import ApiError
from server.metrics import Metrics

log = logging.getLogger(__name__)

JSON_LIMIT = 64 * 1024
IMAGE_JSON_LIMIT = 14 * 1024 * 1024
SDP_LIMIT = 128 * 1024
OFFER_LIMIT = 2 * SDP_LIMIT + 1024
"""An SDP of 128 KiB, every line end escaped, and the braces around it."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def problem(error: ApiError) -> Response:
    """The problem document of a refused request."""
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    return JSONResponse(body, error.status, headers=headers, media_type="application/problem+json")


def install_problem_documents(app: FastAPI, metrics: Metrics) -> None:
    """Turn every exception that leaves a route into a problem document, and count it."""

    def answer(error: ApiError) -> Response:
        metrics.rejected.labels(error.code).inc()
        return problem(error)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return answer(_from_framework(request, error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(ApiError("bad_request", f"{where}: {first['msg']}."))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(ApiError("internal", "The server failed on this request; its log says why."))


def _from_framework(request: Request, error: HTTPException) -> ApiError:
    path = request.url.path
    if error.status_code == 404:
        return not_there(path)
    if error.status_code == 405:
        return ApiError("bad_request", f"{request.method} is not possible on {path}.", status=405)
    return ApiError("bad_request", str(error.detail) or "The request cannot be read.", status=error.status_code)


def not_there(path: str) -> ApiError:
    """A path that leads nowhere."""
    return ApiError("not_found", f"There is nothing at {path[:100]}; /openapi.json lists what there is.")


class BodyLimit:
    """Refuses bodies over their cap, by declared length at once and otherwise while they arrive.

    Args:
        metrics: where refusals are counted.
    """

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = limit_of(scope["method"], scope["path"])
        too_large = ApiError("too_large", f"The body is over its limit of {limit} bytes; send less.")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            self._metrics.rejected.labels(too_large.code).inc()
            await problem(too_large)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        await self._app(scope, counted, send)


def limit_of(method: str, path: str) -> int:
    """Most bytes that a request may carry."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["v1", "sessions"]:
        if len(parts) == 4 and parts[3] == "offer" and method == "POST":
            return OFFER_LIMIT
        if (len(parts) == 2 and method == "POST") or (len(parts) == 3 and method == "PATCH"):
            return IMAGE_JSON_LIMIT
    if parts[0] in ("whip", "whep") and method == "POST":
        return SDP_LIMIT
    return JSON_LIMIT


class RateGuard:
    """Counts requests that change something, by client, before anything is read; reading and sockets pass.

    Args:
        count: counts one request; raises `ApiError` for one too many.
        metrics: where refusals are counted.
    """

    def __init__(self, app: App, *, count: Callable[[HTTPConnection], None], metrics: Metrics) -> None:
        self._app = app
        self._count = count
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            try:
                self._count(HTTPConnection(scope))
            except ApiError as error:
                self._metrics.rejected.labels(error.code).inc()
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class OriginGuard:
    """Keeps other sites' pages from driving a server that asks for no credentials.

    A page of another site can send requests to 127.0.0.1, or point its own name there (DNS rebinding). So without
    credentials the `Host` must be a loopback name, and an `Origin` must be this server's own or on the allow-list.
    With credentials a foreign page has none, and only `cors_origins` decides what it may read.

    Args:
        open_server: whether no credentials are asked for.
        origins: those that are listed.
        metrics: where refusals are counted.
    """

    def __init__(self, app: App, *, open_server: bool, origins: tuple[str, ...], metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._open = open_server
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._open:
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        reason = None
        if not is_loopback_host(host):
            reason = (
                f"This server answers only to its loopback names, not to {host[:80]!r}; use 127.0.0.1 or localhost."
            )
        elif origin and origin not in self._origins and urlsplit(origin).netloc != host:
            reason = f"Pages of {origin[:80]} may not use this server; list the origin in server.cors_origins."
        if reason is None:
            await self._app(scope, receive, send)
            return
        self._metrics.rejected.labels("forbidden").inc()
        if scope["type"] == "http":
            await problem(ApiError("forbidden", reason))(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})


def is_loopback_host(host: str) -> bool:
    """Whether a `Host` header names this machine's loopback."""
    name = urlsplit(f"//{host}").hostname if host else None
    if name is None:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False

"""WHIP in (RFC 9725) and WHEP out: standard tools speak to a session, or watch it, with one POST.

Both doors have one shape: an offer is posted, the answer comes back with the address of a resource that stands for
the connection, candidates follow by PATCH, DELETE ends it. They differ in who may come and what the session does with
the connection, which is all that a `Door` says. WHIP takes the offer whole: its video is accepted and dropped.

Entity tags are strong and stand for the ICE session. An ICE restart would change it; aiortc has none, so a restart is
refused with 422 as the RFC asks, and the client posts a new offer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders

from server.auth import Role
from server.errors import ApiError
from server.hub import Hub
from server.live import LiveSession, Part
from server.peer import Peer
from server.signaling import Offer, inspect_offer, inspect_publication, let_client_begin_dtls, read_fragment

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
NOT_LIVE_RETRY_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What sets WHIP and WHEP apart."""

    name: str
    """First part of the path."""
    least: Role
    """What a client must be allowed to do."""
    part: Part
    """What the connection is to the session."""
    inspect: Callable[[str], Offer]
    """Check of the offer's text; raises ApiError."""
    needs_live: bool
    """Whether the model must have taken the session before."""


WHIP = Door(name="whip", least=Role.CONTROL, part="publisher", inspect=inspect_publication, needs_live=False)
WHEP = Door(name="whep", least=Role.VIEW, part="viewer", inspect=inspect_offer, needs_live=True)


def install_whip_and_whep(app: FastAPI, hub: Hub) -> None:
    """Add the routes of both doors."""
    for door in (WHIP, WHEP):
        _install(app, hub, door)


def _install(app: FastAPI, hub: Hub, door: Door) -> None:
    kind, endpoint = door.name.upper(), f"/{door.name}/{{id}}"

    @app.post(endpoint, status_code=201, summary=f"{kind}: connect", openapi_extra=_text_body(SDP))
    async def connect(request: Request, id: str) -> Response:
        session, _ = hub.session_for(request, id, door.least)
        offer = door.inspect(let_client_begin_dtls(await _text(request, SDP, "bad_sdp")))
        if door.needs_live and not session.live:
            raise ApiError("not_live", "The session is still starting.", retry_after_s=NOT_LIVE_RETRY_S)
        peer = await session.connect(offer, door.part)
        location = f"{request.scope.get('root_path', '')}/{door.name}/{id}/{peer.id}"
        headers = {"Location": location, "ETag": _tag(peer), "Accept-Patch": FRAGMENT, "Cache-Control": "no-store"}
        response = Response(peer.answered, 201, headers=headers, media_type=SDP)
        _add_links(response.headers, hub)
        return response

    @app.options(endpoint, status_code=204, summary=f"{kind}: what can be posted, and ICE servers")
    async def options(request: Request, id: str) -> Response:
        headers = {"Allow": "GET, HEAD, OPTIONS, POST", "Accept-Post": SDP}
        response = Response(status_code=204, headers=headers)
        session = hub.find(id)
        if hub.authority.role(request, session.tokens if session else None) >= door.least:
            _add_links(response.headers, hub)
        return response

    @app.api_route(endpoint, methods=["GET", "HEAD"], status_code=204, include_in_schema=False)
    async def nothing(request: Request, id: str) -> Response:
        hub.session_for(request, id, door.least)
        return Response(status_code=204)

    @app.patch(
        endpoint + "/{name}", status_code=204, summary=f"{kind}: ICE candidates", openapi_extra=_text_body(FRAGMENT)
    )
    async def trickle(request: Request, id: str, name: str) -> Response:
        session, _ = hub.session_for(request, id, door.least)
        peer = _peer(session, door, name)
        fragment = read_fragment(await _text(request, FRAGMENT, "bad_request"))
        # Players of WHEP, a draft, leave If-Match out; the fragment's own user name tells as well which ICE session it
        # is for. RFC 9725 does not let WHIP clients off.
        names_session = door is WHEP and fragment.user in peer.ice_users
        if not names_session or "if-match" in request.headers:
            _demand_match(request, _tag(peer))
        if fragment.user is not None and fragment.user not in peer.ice_users:
            raise ApiError("bad_request", "ICE restart is not supported; post a new offer.", status=422)
        await peer.add_candidates(fragment.candidates)
        return Response(status_code=204)

    @app.delete(endpoint + "/{name}", status_code=200, summary=f"{kind}: disconnect")
    async def disconnect(request: Request, id: str, name: str) -> Response:
        session, _ = hub.session_for(request, id, door.least)
        await _peer(session, door, name).close()
        return Response(status_code=200)


def _peer(session: LiveSession, door: Door, name: str) -> Peer:
    """The connection of this address.

    Raises:
        ApiError: `not_found`.
    """
    peer = session.peer_named(name, door.part)
    if peer is None:
        raise ApiError("not_found", "There is no such connection; it may have ended. Post a new offer.")
    return peer


def _tag(peer: Peer) -> str:
    """The strong entity tag of a connection's ICE session; a hash, so that it does not give the address away."""
    return f'"{hashlib.sha256(peer.id.encode()).hexdigest()[:16]}"'


def _text_body(kind: str) -> dict[str, object]:
    """How a route that reads text itself describes it."""
    return {"requestBody": {"required": True, "content": {kind: {"schema": {"type": "string"}}}}}


async def _text(request: Request, wanted: str, code: str) -> str:
    """The body as text.

    Raises:
        ApiError: `unsupported_media` for another content type, `code` for what is no text.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError("unsupported_media", f"Content-Type is {kind[:60] or 'missing'}; send {wanted}.")
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise ApiError(code, "The body is not UTF-8 text; send what the WebRTC library gave.") from error
    if not text.strip():
        raise ApiError(code, "The body is empty; send what the WebRTC library gave.")
    return text


def _demand_match(request: Request, tag: str) -> None:
    """Check `If-Match` by strong comparison (RFC 9110, 13.1.1).

    Raises:
        ApiError: `precondition_required` without one, `precondition_failed` for another connection's.
    """
    given = request.headers.get("if-match")
    if given is None:
        raise ApiError("precondition_required", "If-Match is missing; send the ETag that came with the answer.")
    tags = [entry.strip() for entry in given.split(",")]
    if tag not in tags and "*" not in tags and '"*"' not in tags:
        raise ApiError("precondition_failed", "If-Match names another connection; send the ETag of this one.")


def _add_links(headers: MutableHeaders, hub: Hub) -> None:
    """One `Link` for each STUN or TURN server (RFC 9725, 4.6)."""
    for server in hub.ice_servers_for_clients():
        urls = server["urls"]
        assert isinstance(urls, list)
        for url in urls:
            link = f'<{url}>; rel="ice-server"'
            if "username" in server and url.startswith("turn"):
                user, credential = _quoted(str(server["username"])), _quoted(str(server["credential"]))
                link += f'; username="{user}"; credential="{credential}"; credential-type="password"'
            headers.append("Link", link)


def _quoted(text: str) -> str:
    """Inside a quoted string of a header."""
    return text.replace("\\", "\\\\").replace('"', '\\"')

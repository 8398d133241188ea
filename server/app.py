"""The HTTP and WebSocket surface: thin routes over the hub, each a check of who asks, of what was sent, and one call.

The hub is handed in, so tests run the same routes over the fake model. Documents, status codes and names are those of
`docs/protocol.md`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.middleware.cors import CORSMiddleware

from server import schemas
from server.auth import Role, chosen_protocol
from server.errors import ApiError
from server.http import BodyLimit, OriginGuard, RateGuard, install_problem_documents, not_there, problem
from server.hub import Hub
from server.live import LiveSession
from server.mailbox import Mailbox
from server.outputs import install_outputs
from server.pages import Pages
from server.push_audio import PushDoor
from server.rates import address_of
from server.realtime import RealtimeDoor, wants_beta
from server.signaling import read_candidates, read_offer
from server.sockets import converse
from server.whip import install_whip_and_whep

log = logging.getLogger(__name__)

POLL_S = 2
"""How often a client that waits should ask."""


def create_app(hub: Hub) -> FastAPI:
    """The application over a hub; starts and stops the hub with itself."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        try:
            yield
        finally:
            await hub.stop()

    app = FastAPI(title="avatarcast", version=hub.version, lifespan=life, docs_url=None, redoc_url=None)
    install_problem_documents(app, hub.metrics)
    _operations(app, hub)
    _sessions(app, hub)
    _queue(app, hub)
    _webrtc(app, hub)
    install_whip_and_whep(app, hub)
    install_outputs(app, hub)
    _events(app, hub)
    _pages(app, hub)
    _guards(app, hub)
    return app


def _guards(app: FastAPI, hub: Hub) -> None:
    """What every request passes, the last added first. Refusals of caps and rates pass out through CORS, so that pages
    of listed origins can read why."""
    origins = hub.config.server.cors_origins
    app.add_middleware(BodyLimit, metrics=hub.metrics)
    app.add_middleware(RateGuard, count=hub.count_request, metrics=hub.metrics)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-Match"],
            expose_headers=["Accept-Patch", "ETag", "Location", "Link", "Retry-After"],
        )
    guarded = not hub.authority.required
    app.add_middleware(OriginGuard, open_server=guarded, origins=origins, metrics=hub.metrics)


def _watching(request: Request, session: LiveSession, role: Role) -> tuple[LiveSession, Role]:
    """With `?watch=1` a client that may control is one more viewer: an open server knows no lesser credentials."""
    return session, Role.VIEW if request.query_params.get("watch") == "1" else role


def _in_turn(found: schemas.SessionCreated | schemas.QueueTicket) -> Response:
    """201 with the session, or 202 with the ticket and when to ask for it again."""
    if isinstance(found, schemas.SessionCreated):
        return JSONResponse(found.model_dump(), 201)
    return JSONResponse(found.model_dump(), 202, headers={"Retry-After": str(POLL_S), "Location": f"/{found.url}"})


def _operations(app: FastAPI, hub: Hub) -> None:
    @app.get("/healthz", summary="Whether the process lives, and what the engine is")
    async def healthz() -> Response:
        return JSONResponse(hub.health())

    @app.get("/readyz", summary="Whether a session can start")
    async def readyz() -> Response:
        reason = hub.unready_reason()
        if reason:
            raise ApiError("engine_down", reason, retry_after_s=2)
        return JSONResponse({"ready": True})

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics(request: Request) -> Response:
        hub.authority.demand(request, Role.ADMIN)
        hub.refresh_metrics()
        return Response(hub.metrics.render(), media_type=hub.metrics.content_type)

    @app.get("/v1/avatars", response_model=list[schemas.AvatarEntry])
    async def avatars() -> list[schemas.AvatarEntry]:
        return hub.gallery.entries()

    @app.get("/v1/capacity", response_model=schemas.Capacity)
    async def capacity() -> schemas.Capacity:
        return hub.capacity()

    @app.get("/v1/ice", summary="STUN and TURN servers for RTCPeerConnection")
    async def ice(request: Request) -> dict[str, object]:
        if hub.authority.required:
            hub.demand_any(request)
        return {"iceServers": hub.ice_servers_for_clients()}


def _sessions(app: FastAPI, hub: Hub) -> None:
    @app.post(
        "/v1/sessions",
        status_code=201,
        response_model=schemas.SessionCreated,
        responses={202: {"model": schemas.QueueTicket, "description": "With ?queue=1, when every place is taken"}},
        openapi_extra=schemas.body_of(schemas.NewSession),
    )
    async def create(request: Request, queue: bool = False) -> Response:
        hub.authority.demand(request, Role.ADMIN)
        body, image = await schemas.read_body(request, schemas.NewSession)
        if queue:
            return _in_turn(await hub.open_or_queue(body, image, client=address_of(request)))
        session = await hub.open_session(body, image, client=address_of(request))
        return _in_turn(session.created())

    @app.get("/v1/sessions")
    async def listing(request: Request) -> list[dict[str, object]]:
        hub.authority.demand(request, Role.ADMIN)
        return [session.status() for session in hub.sessions()]

    @app.get("/v1/sessions/{id}")
    async def status(request: Request, id: str) -> dict[str, object]:
        session, _ = hub.session_for(request, id, Role.VIEW)
        return session.status()

    @app.patch(
        "/v1/sessions/{id}",
        response_model=schemas.Planned,
        openapi_extra=schemas.body_of(schemas.SessionChange),
    )
    async def change(request: Request, id: str) -> schemas.Planned:
        session, _ = hub.session_for(request, id, Role.CONTROL)
        hub.rates.change(id)
        body, image = await schemas.read_body(request, schemas.SessionChange)
        return await hub.change_session(session, body, image)

    @app.delete("/v1/sessions/{id}", status_code=204)
    async def delete(request: Request, id: str) -> Response:
        session, _ = hub.session_for(request, id, Role.CONTROL)
        await hub.close_session(session, "deleted")
        return Response(status_code=204)

    @app.post("/v1/sessions/{id}/interrupt", response_model=schemas.Interrupted)
    async def interrupt(request: Request, id: str) -> dict[str, object]:
        session, _ = hub.session_for(request, id, Role.CONTROL)
        return (await session.interrupt()).as_json()

    @app.post(
        "/v1/sessions/{id}/say",
        status_code=202,
        response_model=schemas.Said,
        openapi_extra=schemas.body_of(schemas.Say),
    )
    async def say(request: Request, id: str) -> schemas.Said:
        session, _ = hub.session_for(request, id, Role.CONTROL)
        wanted = schemas.check(schemas.Say, await schemas.read_json(request))
        return schemas.Said(segment=session.say(wanted.text, wanted.voice))


def _queue(app: FastAPI, hub: Hub) -> None:
    @app.get(
        "/v1/queue/{ticket}",
        status_code=201,
        response_model=schemas.SessionCreated,
        responses={202: {"model": schemas.QueueTicket, "description": "Still waiting"}},
    )
    async def poll(request: Request, ticket: str) -> Response:
        hub.authority.demand(request, Role.ADMIN)
        return _in_turn(await hub.waiting.poll(ticket))

    @app.delete("/v1/queue/{ticket}", status_code=204)
    async def give_up(request: Request, ticket: str) -> Response:
        hub.authority.demand(request, Role.ADMIN)
        hub.waiting.give_up(ticket)
        return Response(status_code=204)

    @app.websocket("/v1/queue/{ticket}")
    async def listen(socket: WebSocket, ticket: str) -> None:
        try:
            hub.authority.demand(socket, Role.ADMIN)
            hub.waiting.find(ticket)
        except ApiError as error:
            await _deny(hub, socket, error)
            return
        await socket.accept(subprotocol=chosen_protocol(socket))
        try:
            mailbox = hub.waiting.listen(ticket)
        except ApiError:  # it expired while the socket opened
            await socket.close(1001, "the ticket has expired")
            return
        await converse(socket, mailbox, mailbox.receive, "queue")


async def _deny(hub: Hub, socket: WebSocket, error: ApiError) -> None:
    hub.metrics.rejected.labels(error.code).inc()
    await socket.send_denial_response(problem(error))


def _webrtc(app: FastAPI, hub: Hub) -> None:
    @app.post(
        "/v1/sessions/{id}/offer",
        response_model=schemas.Description,
        openapi_extra=schemas.body_of(schemas.Description),
    )
    async def offer(request: Request, id: str) -> schemas.Description:
        session, role = _watching(request, *hub.session_for(request, id, Role.VIEW))
        checked = read_offer(await schemas.read_json(request))
        return schemas.Description(sdp=await session.answer(checked, role), type="answer")

    @app.patch("/v1/sessions/{id}/offer", status_code=204, openapi_extra=schemas.body_of(schemas.Candidates))
    async def candidates(request: Request, id: str) -> Response:
        session, role = _watching(request, *hub.session_for(request, id, Role.VIEW))
        hub.rates.change(id)
        await session.add_candidates(read_candidates(await schemas.read_json(request)), role)
        return Response(status_code=204)


def _events(app: FastAPI, hub: Hub) -> None:
    @app.websocket("/v1/sessions/{id}/events")
    async def events(socket: WebSocket, id: str) -> None:
        try:
            session, role = hub.session_for(socket, id, Role.VIEW)
        except ApiError as error:
            await _deny(hub, socket, error)
            return
        await socket.accept(subprotocol=chosen_protocol(socket))
        mailbox = session.open_mailbox(may_control=role >= Role.CONTROL)
        await converse(socket, mailbox, mailbox.receive, f"events {session.id}")

    @app.websocket("/v1/sessions/{id}/audio")
    async def audio(socket: WebSocket, id: str) -> None:
        session = await _speaking_socket(hub, socket, id)
        if session is not None:
            mailbox = session.open_mailbox(may_control=True)
            await _serve_door(socket, session, mailbox, PushDoor(session, mailbox))

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket, session: str = "") -> None:
        live = await _speaking_socket(hub, socket, session)
        if live is not None:
            mailbox = Mailbox(lambda _: None)
            door = RealtimeDoor(
                live,
                mailbox,
                hub.config.streaming.vad,
                is_beta=wants_beta(socket),
                per_second=hub.config.limits.messages_per_second,
            )
            await _serve_door(socket, live, mailbox, door)

    @app.websocket("/{path:path}")
    async def no_such_socket(socket: WebSocket, path: str) -> None:
        await socket.send_denial_response(problem(not_there(f"/{path}")))


async def _speaking_socket(hub: Hub, socket: WebSocket, id: str) -> LiveSession | None:
    """Accept a client that wants to push speech; None if it was refused."""
    try:
        session, _ = hub.session_for(socket, id, Role.CONTROL)
    except ApiError as error:
        await _deny(hub, socket, error)
        return None
    await socket.accept(subprotocol=chosen_protocol(socket))
    return session


async def _serve_door(socket: WebSocket, session: LiveSession, mailbox: Mailbox, door: PushDoor | RealtimeDoor) -> None:
    try:
        with session.speaking_door():
            await converse(socket, mailbox, door.receive, f"pushed speech {session.id}")
    finally:
        door.close()


def _pages(app: FastAPI, hub: Hub) -> None:
    pages = Pages()

    @app.get("/", include_in_schema=False)
    async def presenter() -> Response:
        return pages.file("presenter.html")

    @app.get("/kiosk", include_in_schema=False)
    async def kiosk() -> Response:
        return pages.file("kiosk.html")

    @app.get("/dashboard", include_in_schema=False)
    async def dashboard() -> Response:
        return pages.file("dashboard.html")

    @app.get("/obs/{id}", include_in_schema=False)
    async def obs(id: str) -> Response:
        return pages.file("obs.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return pages.file(name)

    @app.get("/gallery/{name}", include_in_schema=False)
    async def portrait(name: str) -> Response:
        return pages.file(name, under="gallery")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return RedirectResponse("static/icon.svg", 307)

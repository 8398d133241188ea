"""Outputs: a session's pictures and sound pushed to media servers or recorded.

An output is one more viewer of the session's one encoder and one more listener of its sound; a thread of its own writes
them, behind a bounded queue that drops. So a dead target costs nobody else anything; it is tried again with growing
pauses, and its state can be read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import queue
import re
import shutil
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from aiortc import RTCIceServer
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field

from server import schemas
from server.auth import Role
from server.config import OutputsConfig
from server.encoder import EncodedPicture
from server.errors import ApiError
from server.hub import Hub
from server.live import LiveSession
from server.output_report import OutputReport, OutputState, retry_delay_s
from server.output_sinks import FileSink, ProcessSink, SinkError, Target, open_sink
from server.tracks import Broadcast
from server.whip_push import WhipOutput
from streaming.playout import Sound

log = logging.getLogger(__name__)

MAX_WAITING = 150
"""Pictures and pieces of sound (two seconds) that may wait for one output; beyond, all are dropped."""
SCHEMES = ("rtmp", "rtmps", "rtsp", "srt", "whip", "whips", "file")
WHIP = ("whip", "whips")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(mp4|mkv)")
_SRT_KEYS = {"streamid", "passphrase", "pbkeylen", "latency"}


class NewOutput(BaseModel):
    """Where to push or record."""

    model_config = schemas.NewSession.model_config
    url: str = Field(max_length=1000, description="rtmp(s)://, rtsp://, srt://, whip(s):// or file:NAME.mp4 (or .mkv)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A picture or a piece of sound; neither where some were dropped, so that pictures begin again at a key frame."""

    picture: EncodedPicture | None = None
    sound: Sound | None = None


def read_target(url: str, config: OutputsConfig) -> Target:
    """Check an address against the configuration.

    Raises:
        ApiError: `bad_request` for what is no target, `forbidden` for one that is not allowed, `conflict` for a file
            that exists.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in SCHEMES:
        raise ApiError("bad_request", f"url begins with {scheme[:20]!r}; it must be one of {', '.join(SCHEMES)}.")
    if scheme == "file":
        return _read_file(url.partition(":")[2], config)
    if not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        raise ApiError("bad_request", "url holds spaces or characters beyond ASCII; percent-encode them.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ApiError("bad_request", "url is not an address; write for example rtmp://HOST/APP/KEY.") from error
    if not host or (scheme == "srt" and port is None):
        raise ApiError("bad_request", "url names no host, or no port, which srt needs; write srt://HOST:PORT.")
    extra = {key for key, _ in parse_qsl(parts.query, keep_blank_values=True)} - _SRT_KEYS
    if scheme == "srt" and extra:
        raise ApiError("bad_request", f"url has the option {min(extra)[:30]!r}; srt takes {', '.join(_SRT_KEYS)}.")
    if not _listed(host, config.allow):
        raise ApiError("forbidden", f"The host {host[:80]} is not on the list outputs.allow; the operator can add it.")
    if scheme not in WHIP and shutil.which("ffmpeg") is None:
        raise ApiError("conflict", "This server has no ffmpeg program; install the package ffmpeg.")
    return Target(scheme=scheme, url=url, shown=f"{scheme}://{host}" + (f":{port}" if port else ""), host=host)


def _read_file(name: str, config: OutputsConfig) -> Target:
    if not config.recordings:
        raise ApiError("forbidden", "Recording is off; the operator can name a folder in outputs.recordings.")
    if not _FILE_NAME.fullmatch(name):
        raise ApiError("bad_request", "The file name may hold letters, digits, . _ - and must end in .mp4 or .mkv.")
    path = Path(config.recordings).expanduser() / name
    if not path.parent.is_dir():
        raise ApiError("conflict", "The folder outputs.recordings does not exist; the operator must create it.")
    if path.exists() or path.is_symlink():
        raise ApiError("conflict", f"The recording {name} exists already; choose another name.")
    return Target(scheme="file", url=str(path), shown=f"file:{name}")


def _listed(host: str, allow: tuple[str, ...]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return any(name == entry.lower() for entry in allow)
    return _in_networks(address, allow)


def _in_networks(address: ipaddress.IPv4Address | ipaddress.IPv6Address, allow: tuple[str, ...]) -> bool:
    for entry in allow:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def check_addresses(host: str, allow: tuple[str, ...]) -> None:
    """Look a listed host up and refuse private addresses that are not listed themselves; asked before every attempt.

    Raises:
        SinkError: not allowed (lasting), or not found.
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise SinkError("The target's name cannot be looked up.") from error
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        if (not address.is_global or address.is_multicast) and not _in_networks(address, allow):
            raise SinkError("The target is in a private range, which outputs.allow does not list.", lasting=True)


class Output(OutputReport):
    """One output that a thread writes. `start` and `close` belong to the event loop.

    Args:
        target: where it goes.
        broadcast: the session's outgoing media.
        keyframe: asks the session's encoder for a key frame.
        allow: hosts and networks that may be reached.
    """

    def __init__(
        self, target: Target, broadcast: Broadcast, *, keyframe: Callable[[], None], allow: tuple[str, ...]
    ) -> None:
        super().__init__(target)
        self._broadcast, self._keyframe, self._allow = broadcast, keyframe, allow
        self._waiting: queue.Queue[_Item | None] = queue.Queue(MAX_WAITING)
        self._stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"output-{self.id}", daemon=True)
        self._viewer, self._listener = broadcast.watch(), broadcast.listen()
        self._pumps = [
            asyncio.create_task(self._pump_pictures(), name=f"output pictures {self.id}"),
            asyncio.create_task(self._pump_sound(), name=f"output sound {self.id}"),
        ]
        self._thread.start()

    async def close(self) -> None:
        """Finish the file or the connection and free everything."""
        self._stop_pumps()
        self._stop.set()
        self._put(None)
        await asyncio.gather(*self._pumps, return_exceptions=True)
        while self._thread.is_alive():
            await self._loop.run_in_executor(None, self._thread.join, 1.0)

    def _stop_pumps(self) -> None:
        self._viewer.close()
        self._listener.close()

    async def _pump_pictures(self) -> None:
        while (picture := await self._viewer.next()) is not None:
            self._put(_Item(picture=picture))
        self._put(None)

    async def _pump_sound(self) -> None:
        while (timed := await self._listener.next()) is not None:
            self._put(_Item(sound=timed.sound))

    def _put(self, item: _Item | None) -> None:
        """Hand over without waiting; a full queue is emptied, and the thread goes on at the next key frame."""
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._drop()
            self._waiting.put_nowait(_Item())
            self._waiting.put_nowait(item)
            self._keyframe()

    def _drop(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
                self.dropped += 1
            except queue.Empty:
                return

    # The thread

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                if self._attempt():
                    break
            except SinkError as error:
                failures = 1 if self.state == "live" else failures + 1
                self.reason = str(error)
                if error.lasting:
                    self._end("failed")
                    return
                self.state = "retrying"
                log.info("output %s to %s: %s", self.id, self._target.shown, error)
                self._stop.wait(retry_delay_s(failures))
            except Exception:
                log.exception("output %s failed", self.id)
                self.reason = "An error of this server; its log says more."
                self._end("failed")
                return
        self._end("ended")

    def _end(self, state: OutputState) -> None:
        self.state = state
        try:
            self._loop.call_soon_threadsafe(self._stop_pumps)
        except RuntimeError:  # the loop is closed, and with it the pumps
            return

    def _attempt(self) -> bool:
        """Connect and write until the session ends (True) or the target fails (SinkError)."""
        self.attempts += 1
        if self._target.host:
            check_addresses(self._target.host, self._allow)
        self._drop()
        first = self._next_keyframe()
        if first is None:
            return True
        sink = open_sink(self._target, first)
        try:
            return self._write(sink, first)
        finally:
            try:
                sink.close()
            except OSError as error:
                self.reason = str(sink.explain(error))

    def _next_keyframe(self) -> EncodedPicture | None:
        self._loop.call_soon_threadsafe(self._keyframe)
        while (item := self._waiting.get()) is not None:
            if item.picture is not None and item.picture.keyframe:
                return item.picture
        return None

    def _write(self, sink: FileSink | ProcessSink, first: EncodedPicture) -> bool:
        item: _Item | None = _Item(picture=first)
        whole = True
        while item is not None:
            try:
                if item.picture is not None:
                    whole = whole or item.picture.keyframe
                    if whole:
                        sink.muxer.picture(item.picture)
                elif item.sound is None:
                    whole = False
                else:
                    sink.muxer.sound(item.sound)
            except OSError as error:
                raise sink.explain(error) from error
            if sink.failed is not None:
                raise sink.explain(sink.failed)
            if sink.live and self.state != "live":
                self.state, self.reason = "live", None
            item = self._waiting.get()
        return True


def begin_output(
    target: Target,
    broadcast: Broadcast,
    keyframe: Callable[[], None],
    allow: tuple[str, ...],
    ice_servers: list[RTCIceServer],
) -> Output | WhipOutput:
    """The output that goes with a target's scheme, at work."""
    if target.scheme not in WHIP:
        return Output(target, broadcast, keyframe=keyframe, allow=allow)

    def check() -> None:
        check_addresses(target.host, allow)

    return WhipOutput(target, broadcast, keyframe=keyframe, check=check, ice_servers=ice_servers)


def install_outputs(app: FastAPI, hub: Hub) -> None:
    """The routes of outputs; all need the admin key."""

    def session_for(request: Request, id: str) -> LiveSession:
        return hub.session_for(request, id, Role.ADMIN)[0]

    def output_of(session: LiveSession, id: str) -> Output | WhipOutput:
        if id not in session.outputs:
            raise ApiError("not_found", f"There is no output {id[:40]!r} in this session.")
        return session.outputs[id]

    @app.post("/v1/sessions/{id}/outputs", status_code=201, openapi_extra=schemas.body_of(NewOutput))
    async def create(request: Request, id: str) -> dict[str, object]:
        session = session_for(request, id)
        wanted = schemas.check(NewOutput, await schemas.read_json(request))
        config = hub.config.outputs
        if sum(output.active for output in session.outputs.values()) >= config.max_per_session:
            raise ApiError("capacity", "This session has as many outputs as it may; delete one.", retry_after_s=10)
        target = read_target(wanted.url, config)
        if target.host:
            await _refuse_private(target.host, config.allow)
        if hub.find(id) is not session:
            raise ApiError("not_found", "The session has ended.")
        for old in [key for key, output in session.outputs.items() if not output.active][: -config.max_per_session]:
            await session.outputs.pop(old).close()
        output = begin_output(target, session.broadcast, session.request_keyframe, config.allow, hub.ice_servers)
        session.outputs[output.id] = output
        log.info("session %s: output %s to %s", session.id, output.id, target.shown)
        return output.as_json()

    @app.get("/v1/sessions/{id}/outputs")
    async def listing(request: Request, id: str) -> list[dict[str, object]]:
        return [output.as_json() for output in session_for(request, id).outputs.values()]

    @app.get("/v1/sessions/{id}/outputs/{output}")
    async def one(request: Request, id: str, output: str) -> dict[str, object]:
        return output_of(session_for(request, id), output).as_json()

    @app.delete("/v1/sessions/{id}/outputs/{output}", status_code=204)
    async def delete(request: Request, id: str, output: str) -> Response:
        session = session_for(request, id)
        await output_of(session, output).close()
        session.outputs.pop(output, None)
        return Response(status_code=204)


async def _refuse_private(host: str, allow: tuple[str, ...]) -> None:
    """A name that leads into a private range is refused at once; one that cannot be looked up now is tried later."""
    try:
        await asyncio.to_thread(check_addresses, host, allow)
    except SinkError as error:
        if error.lasting:
            raise ApiError("forbidden", str(error)) from error

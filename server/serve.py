"""From a configuration to a running server, and out again.

The address is bound first, so that a port in use is one sentence instead of a traceback. `ready http://HOST:PORT` is
printed when a session can start. SIGTERM drains: not ready, new sessions refused, live ones told how long they have,
then everything is closed and the process leaves with 0. A second signal leaves at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
import uvloop

from server.aiortc_adapters import use_loopback_when_alone
from server.app import create_app
from server.config import Config, Secrets, ServerConfig
from server.errors import StartError
from server.hub import Hub

log = logging.getLogger(__name__)

WS_MESSAGE_LIMIT = 1024 * 1024
EXECUTOR_THREADS = 8
HURRY_S = 2.0
"""Drain time after Ctrl-C: somebody waits at a terminal."""
CONNECTIONS_S = 3
"""Time that open connections get once every session has ended; a second signal makes it short."""


def bind(server: ServerConfig) -> socket.socket:
    """Take the address.

    Raises:
        StartError: port in use, address not of this machine, no permission; with the remedy.
    """
    host = server.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"host {server.host} cannot be found ({error.strerror}); check its spelling") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise StartError(_bind_sentence(server, error)) from error
    return listening


def _bind_sentence(server: ServerConfig, error: OSError) -> str:
    where = f"{server.host}:{server.port}"
    if isinstance(error, PermissionError):
        return f"port {server.port} may not be used by this user; choose one above 1023 with --port"
    if error.errno == 98 or "in use" in str(error):
        return f"{where} is in use by another program; stop it, or choose another port with --port"
    return f"{where} cannot be listened on ({error.strerror}); name an address of this machine with --host"


class _Server(uvicorn.Server):
    """uvicorn, but signals are ours: it would stop accepting before live sessions were told."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: Config, secrets: Secrets) -> int:
    """Run until a signal.

    Returns:
        Exit code: 0 after SIGTERM, 130 after Ctrl-C, 1 if the engine failed at start.

    Raises:
        StartError: the server cannot start here; one sentence with the remedy.
    """
    configure_logging(config.server.log_level)
    use_loopback_when_alone()
    hub = Hub(config, secrets)
    listening = bind(config.server)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(hub, listening))
    finally:
        listening.close()


async def _run(hub: Hub, listening: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="server"))
    loop.set_exception_handler(log_loop_exception)
    server = _Server(
        uvicorn.Config(
            create_app(hub),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws_max_size=WS_MESSAGE_LIMIT,
            timeout_graceful_shutdown=CONNECTIONS_S,
        )
    )
    ending = _Ending(hub, server)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.signalled, number)
    announcing = loop.create_task(_announce(hub, server, listening), name="announce")
    try:
        await server.serve(sockets=[listening])
    finally:
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
        await ending.finish()
    if hub.start_error is not None:
        raise StartError(hub.start_error)
    return ending.code


class _Ending:
    """What signals do."""

    def __init__(self, hub: Hub, server: uvicorn.Server) -> None:
        self._hub = hub
        self._server = server
        self._task: asyncio.Task[None] | None = None
        self.code = 0

    def signalled(self, number: int) -> None:
        if self._task is not None:
            self._hub.hurry()
            self._server.config.timeout_graceful_shutdown = 1
            return
        interrupted = number == signal.SIGINT
        self.code = 130 if interrupted else 0
        drain_s = min(HURRY_S, self._hub.config.server.drain_s) if interrupted else self._hub.config.server.drain_s
        self._task = asyncio.get_running_loop().create_task(self._leave(drain_s), name="drain")

    async def _leave(self, drain_s: float) -> None:
        try:
            await self._hub.drain(drain_s)
        finally:
            self._server.should_exit = True

    async def finish(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


async def _announce(hub: Hub, server: uvicorn.Server, listening: socket.socket) -> None:
    """Say that a session can start, or end the server if the engine could not."""
    await hub.wait_started()
    if hub.start_error is not None:
        server.should_exit = True
        return
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process; collections need not look at it
    host, port = hub.config.server.host, listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    print(f"ready http://{shown}:{port}", flush=True)


def configure_logging(level: str) -> None:
    """One line a record on stderr. Libraries that write addresses or descriptions stay below."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True)
    for name in ("aioice", "aiortc", "uvicorn", "multipart", "python_multipart", "PIL", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def log_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tasks inside aiortc may die of a broken peer; that ends the peer, not the server."""
    error = context.get("exception")
    log.warning("%s: %s", context.get("message", "unhandled"), type(error).__name__ if error else "", exc_info=error)

"""One WebSocket client: its mailbox is sent while its messages are received, until either side ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from server.mailbox import Mailbox

Receive = Callable[[str | bytes], Awaitable[None]]


async def converse(socket: WebSocket, mailbox: Mailbox, receive: Receive, name: str) -> None:
    """Serve an accepted socket until the client leaves or the mailbox is closed.

    Args:
        socket: accepted.
        mailbox: what the client is sent; closed at the end.
        receive: takes each message, text or bytes.
        name: of the sending task.
    """
    sending = asyncio.create_task(_send(socket, mailbox), name=name)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("text")
            await receive(data if data is not None else message.get("bytes") or b"")
    finally:
        mailbox.close()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(socket: WebSocket, mailbox: Mailbox) -> None:
    """Pass the messages on until the session ends or the client does not take them."""
    try:
        while (text := await mailbox.next()) is not None:
            await socket.send_text(text)
        if socket.application_state == WebSocketState.CONNECTED:
            await socket.close(1000, "the session has ended")
    except (WebSocketDisconnect, RuntimeError):
        return  # the client left while we were sending

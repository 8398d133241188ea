"""STUN and TURN servers of the configuration, as the server's own connections and as browsers take them."""

from __future__ import annotations

from aiortc import RTCIceServer

from server.config import IceConfig


def own_servers(config: IceConfig, credential: str | None) -> list[RTCIceServer]:
    """For the server's own connections.

    Args:
        config: names the servers.
        credential: of those with a user name; an environment variable's.
    """
    return [
        RTCIceServer(
            urls=list(server.urls),
            username=server.username,
            credential=credential if server.username else None,
        )
        for server in config.servers
    ]


def servers_for_clients(config: IceConfig, credential: str | None) -> list[dict[str, object]]:
    """What a browser passes to RTCPeerConnection; arguments as for `own_servers`."""
    found: list[dict[str, object]] = []
    for server in config.servers:
        entry: dict[str, object] = {"urls": list(server.urls)}
        if server.username is not None:
            entry |= {"username": server.username, "credential": credential or ""}
        found.append(entry)
    return found

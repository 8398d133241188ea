"""`avatarcast livekit-worker`: the avatar of a LiveKit agent, spoken to through a running server."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from server.config import API_KEY_VARIABLE
from server.errors import ConfigError


def run_livekit_worker(
    *,
    url: str,
    room: str | None,
    agent: str | None,
    identity: str,
    server: str,
    avatar: str | None,
    image: Path | None,
    prompt: str,
) -> int:
    """Join the room and work until it ends; the arguments are those of `RoomConfig` and `RemoteConfig`.

    Returns:
        Exit code: 0 when the room is over, 1 if the server or the room could not be had.

    Raises:
        ConfigError: the extra is not installed, or an argument or a credential is unusable.
    """
    if importlib.util.find_spec("livekit.agents" if importlib.util.find_spec("livekit") else "livekit") is None:
        raise ConfigError("livekit-worker needs its extra; install it with: pip install 'avatarcast[livekit]'")
    from client_demo.livekit_worker import RoomConfig, run_worker
    from client_demo.microphone import ClientError, InputError
    from client_demo.remote_avatar import RemoteConfig

    key = os.environ.get(API_KEY_VARIABLE)
    try:
        joined = RoomConfig(url=url, room=room, agent=agent, identity=identity)
        remote = RemoteConfig(server=server, avatar=avatar, image=image, prompt=prompt, api_key=key)
        return run_worker(joined, remote)
    except InputError as error:
        raise ConfigError(str(error)) from error
    except ClientError as error:
        print(f"avatarcast: {error}", file=sys.stderr)
        return 1

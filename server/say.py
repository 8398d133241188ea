"""`avatarcast say`: a client that has a session speak a text.

Credentials come from the environment: the session's control token in AVATARCAST_TOKEN, or the admin key.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from urllib.parse import quote

import httpx

from server.config import API_KEY_VARIABLE
from server.errors import ConfigError

TOKEN_VARIABLE = "AVATARCAST_TOKEN"
_TIMEOUT_S = 20.0


def run_say(
    text: str,
    *,
    server: str,
    session: str,
    voice: str | None = None,
    as_json: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Ask the server; prints the segment's name.

    Args:
        text: what is to be said.
        server: root of the server.
        session: the session's id.
        voice: a voice of the server's speech synthesis.
        as_json: print one JSON object.
        environment: holds the credentials.

    Returns:
        Exit code: 0 if the text will be spoken, 2 if the server refused what was asked, 1 otherwise.

    Raises:
        ConfigError: `--server` is no address.
    """
    if not server.startswith(("http://", "https://")):
        raise ConfigError(f"--server is {server!r}; it must begin with http:// or https://")
    key = environment.get(TOKEN_VARIABLE) or environment.get(API_KEY_VARIABLE)
    try:
        answer = httpx.post(
            f"{server.rstrip('/')}/v1/sessions/{quote(session, safe='')}/say",
            json={"text": text, **({"voice": voice} if voice else {})},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_S,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _fail(f"{server} does not answer ({type(error).__name__}); check --server", 1)
    if answer.status_code != 202:
        return _fail(_reason(answer), 2 if 400 <= answer.status_code < 500 else 1)
    segment = answer.json()["segment"]
    print(json.dumps({"segment": segment}) if as_json else f"speaking as {segment}")
    return 0


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}; is it an avatarcast server?"


def _fail(sentence: str, code: int) -> int:
    print(f"avatarcast: {sentence}", file=sys.stderr)
    return code

"""The JSON bodies of the HTTP surface, and how a request becomes one of them.

Unknown fields are refused with the nearest known name, wrong ones with field, value and remedy. A session is made from
JSON with a base64 `image`, or from multipart with a file `image` and a field `json`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from model.portrait import MAX_BYTES
from server.errors import ApiError
from server.http import JSON_LIMIT
from server.messages import MAX_PROMPT_CHARACTERS

B = TypeVar("B", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Resumed(_Body):
    """A session that ended with its server: the new one takes over its name, so that every address stays good."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{16,64}$", description="The old session's id")
    token: str = Field(pattern=r"^[A-Za-z0-9_-]{32,128}$", description="The old session's control token")
    view_token: str = Field(pattern=r"^[A-Za-z0-9_-]{32,128}$", description="The old session's view token")


class NewSession(_Body):
    """What a session is made of."""

    avatar: str | None = Field(None, max_length=100, description="Name of a portrait from /v1/avatars")
    prompt: str = Field("", max_length=MAX_PROMPT_CHARACTERS, description="Expression and manner")
    image: str | None = Field(None, description="A portrait of one's own, base64; PNG, JPEG or WebP")
    mode: Literal["echo", "push", "agent"] = Field(
        "echo",
        description="What is spoken: the microphone, only pushed speech, or the answers of agent.url",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of noise and idle motion")
    resume: Resumed | None = Field(None, description="Take over id and tokens of a session that is gone")


class SessionChange(_Body):
    """What may change while a session lives; each takes effect at a block boundary."""

    avatar: str | None = Field(None, max_length=100)
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    image: str | None = None
    idle_prompt: str | None = Field(
        None, max_length=MAX_PROMPT_CHARACTERS, description="In blocks without speech; an empty text ends it"
    )


class Urls(BaseModel):
    """Relative to the server's root."""

    offer: str
    whip: str
    whep: str
    events: str
    audio: str
    realtime: str
    page: str
    obs: str


class Media(BaseModel):
    """The stream's sizes."""

    width: int
    height: int
    fps: int
    block_ms: int
    latency_ms: int


class SessionCreated(BaseModel):
    """A new session and its credentials."""

    id: str
    token: str
    view_token: str
    mode: str
    urls: Urls
    media: Media


class QueueTicket(BaseModel):
    """A place in the queue of those who wait for a session."""

    ticket: str
    position: int
    eta_s: float
    url: str


class Planned(BaseModel):
    """Where on the stream a change will show."""

    block: int
    frame: int


class Description(BaseModel):
    """A WebRTC session description."""

    sdp: str
    type: Literal["offer", "answer"]


class Candidates(BaseModel):
    """ICE candidates found after the offer."""

    candidates: list[dict[str, Any]]


class AvatarEntry(BaseModel):
    """One portrait of the gallery."""

    id: str
    name: str
    thumbnail: str
    in_domain: bool


class Capacity(BaseModel):
    """How full the server is."""

    sessions: int
    max_sessions: int
    rtf_p95: float
    queue: int


class Say(_Body):
    """A text to speak."""

    text: str = Field(max_length=MAX_PROMPT_CHARACTERS, description="What is to be said")
    voice: str | None = Field(None, max_length=64, description="A voice of the configured speech synthesis")


class Said(BaseModel):
    """The segment that a text became."""

    segment: str


class Interrupted(BaseModel):
    """How far the interrupted speech was heard."""

    segment: str | None
    position_ms: int
    interrupted: bool


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a JSON body that a route reads by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


async def read_json(request: Request) -> object:
    """The request's JSON.

    Raises:
        ApiError: `unsupported_media` for another content type, `bad_request` for text that is no JSON.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("unsupported_media", f"Content-Type is {kind[:60] or 'missing'}; send application/json.")
    return _parse(await request.body())


def _parse(data: bytes | str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError("bad_request", "The body is not JSON; send one JSON object.") from error


def check(model: type[B], data: object) -> B:
    """Make one body of parsed JSON.

    Raises:
        ApiError: `bad_request`, naming the first wrong field.
    """
    if not isinstance(data, dict):
        raise ApiError("bad_request", "The body is not a JSON object.")
    for key in data:
        if key not in model.model_fields:
            raise ApiError("bad_request", _unknown(str(key), list(model.model_fields)))
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        shown = repr(first["input"])
        raise ApiError("bad_request", f"{where} is {shown[:60]}: {first['msg']}.") from error


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
    return f"{key[:60]!r} is not a known field; {hint}"


async def read_body(request: Request, model: type[B]) -> tuple[B, bytes | None]:
    """A body that may carry a portrait: JSON, or multipart.

    Returns:
        The body and the portrait file's bytes, if there is one.

    Raises:
        ApiError: `bad_request`, `unsupported_media` or `too_large`, naming field and remedy.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        data = await read_json(request)
        body = check(model, data)
        text = getattr(body, "image", None)
        if text is None and len(await request.body()) > JSON_LIMIT:
            raise ApiError("too_large", f"The body is over its limit of {JSON_LIMIT} bytes; send less.")
        return body, None if text is None else decode_base64(text)
    async with request.form(max_files=1, max_fields=1, max_part_size=JSON_LIMIT) as form:
        for name in form:
            if name not in ("image", "json"):
                raise ApiError("bad_request", f"{name[:60]!r} is not a known part; send a file image and a field json.")
        field, file = form.get("json", "{}"), form.get("image")
        if not isinstance(field, str):
            raise ApiError("bad_request", "json is a file; send it as a field.")
        if file is not None and not isinstance(file, UploadFile):
            raise ApiError("bad_request", "image is a field; send it as a file.")
        body = check(model, _parse(field))
        if getattr(body, "image", None) is not None and file is not None:
            raise ApiError("bad_request", "image was sent twice, as a file and in json; send one.")
        return body, None if file is None else _capped(await file.read())


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 image; a `data:` prefix, as browsers make it, is allowed.

    Raises:
        ApiError: `bad_request` or `too_large`.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return _capped(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ApiError("bad_request", "image is not base64; encode the picture file's bytes.") from error


def _capped(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ApiError("too_large", f"The image has {len(data)} bytes; at most {MAX_BYTES} are taken.")
    return data

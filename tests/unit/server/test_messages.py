"""Messages of the data channel and the events WebSocket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import messages
from server.errors import ApiError


def test_outbound_messages_carry_type_session_and_time() -> None:
    text = messages.encode("speech_started", session="s1", pts_ms=480, block=3)
    assert json.loads(text) == {"type": "speech_started", "session": "s1", "pts_ms": 480, "block": 3}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"type": "interrupt"}, messages.Interrupt()),
        ({"type": "say", "text": "hello"}, messages.Say("hello")),
        ({"type": "prompt", "text": "smile"}, messages.Prompt("smile")),
        ({"type": "avatar", "id": "ada"}, messages.Avatar("ada")),
        ({"type": "mute", "on": True}, messages.Mute(True)),
        ({"type": "state", "state": "thinking"}, messages.Posture("thinking")),
        ({"type": "keyframe"}, messages.Keyframe()),
        ({"type": "ping", "t": 12}, messages.Ping(12.0)),
        ({"type": "ping"}, messages.Ping(None)),
    ],
)
def test_inbound_messages_are_understood(sent: dict, expected: messages.Inbound) -> None:
    assert messages.decode(json.dumps(sent)) == expected
    assert messages.decode(json.dumps(sent).encode()) == expected


def test_a_bare_ping_is_a_ping() -> None:
    assert messages.decode("ping") == messages.Ping(None)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "type is None"),
        ('{"type": "sing"}', "'sing'"),
        ('{"type": ["ping"]}', "type is"),
        ('{"type": "prompt"}', "text is missing"),
        ('{"type": "prompt", "text": 5}', "text is not text"),
        ('{"type": "mute"}', "on is None"),
        ('{"type": "mute", "on": 1}', "true or false"),
        ('{"type": "state", "state": "dancing"}', "'dancing'"),
        ("[" * 5000, "not JSON"),
        (b"\xff\xfe\xfd\xfc", "not JSON"),
    ],
)
def test_a_bad_message_is_one_sentence(text: str | bytes, part: str) -> None:
    with pytest.raises(ApiError) as caught:
        messages.decode(text)
    assert caught.value.code == "bad_request"
    assert part in caught.value.detail


def test_caps_are_exact() -> None:
    limit = messages.MAX_PROMPT_CHARACTERS
    assert messages.decode(json.dumps({"type": "prompt", "text": "x" * limit})) == messages.Prompt("x" * limit)
    with pytest.raises(ApiError, match=str(limit)):
        messages.decode(json.dumps({"type": "prompt", "text": "x" * (limit + 1)}))
    with pytest.raises(ApiError) as caught:
        messages.decode(" " * (messages.MAX_MESSAGE_BYTES + 1))
    assert caught.value.code == "too_large"


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200), st.builds(json.dumps, st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(messages.TYPES),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "text", "on", "t", "id", "state"]), inner, max_size=4),
    max_leaves=8,
))))  # fmt: skip
def test_anything_else_is_understood_or_refused_with_a_code(text: str | bytes) -> None:
    try:
        messages.decode(text)
    except ApiError as error:
        assert error.code in ("bad_request", "too_large")

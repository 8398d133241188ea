"""Events to one client, and its messages: bounded, limited, answered."""

from __future__ import annotations

import json

import pytest

from server import messages
from server.errors import ApiError
from server.mailbox import MAX_WAITING, Inbox, Mailbox, RateLimit


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """Records what an inbox hands on and answers."""

    def __init__(self, **settings: object) -> None:
        self.handled: list[messages.Inbound] = []
        self.answers: list[tuple[str, dict[str, object]]] = []
        self.inbox = Inbox(
            **{"may_control": True, "per_second": 100, **settings},  # type: ignore[arg-type]
            handle=self.handle,
            answer=lambda kind, **fields: self.answers.append((kind, fields)),
        )

    async def handle(self, message: messages.Inbound) -> None:
        if message == messages.Say("no"):
            raise ApiError("not_found", "Speech is not built into this version.")
        self.handled.append(message)


def test_the_rate_limit_counts_within_any_second() -> None:
    clock = Clock()
    limit = RateLimit(3, now=clock)
    assert [limit.allows() for _ in range(5)] == [True, True, True, False, False]
    clock.now_s = 0.999
    assert not limit.allows()
    clock.now_s = 1.0
    assert limit.allows()


async def test_messages_are_handed_on_and_pings_answered() -> None:
    desk = Desk()
    for text in ('{"type":"prompt","text":"smile"}', "ping", '{"type":"ping","t":5}'):
        await desk.inbox.receive(text)
    assert desk.handled == [messages.Prompt("smile")]
    assert desk.answers == [("pong", {}), ("pong", {"t": 5.0})]


async def test_what_is_wrong_is_answered_with_error() -> None:
    desk = Desk()
    for text in ("{", '{"type":"sing"}', '{"type":"say","text":"no"}', b"\xff", "x" * 70_000):
        await desk.inbox.receive(text)
    assert [kind for kind, _ in desk.answers] == ["error"] * 5
    codes = [fields["code"] for _, fields in desk.answers]
    assert codes == ["bad_request", "bad_request", "not_found", "bad_request", "too_large"]
    assert all(str(fields["message"]).endswith(".") for _, fields in desk.answers)


async def test_a_viewer_may_only_ping_and_ask_for_key_frames() -> None:
    desk = Desk(may_control=False)
    for text in ("ping", '{"type":"keyframe"}', '{"type":"interrupt"}', '{"type":"mute","on":true}'):
        await desk.inbox.receive(text)
    assert desk.handled == [messages.Keyframe()]
    assert [fields.get("code") for _, fields in desk.answers] == [None, "forbidden", "forbidden"]


async def test_too_many_messages_are_refused() -> None:
    desk = Desk(per_second=5)
    for _ in range(8):
        await desk.inbox.receive('{"type":"interrupt"}')
    assert len(desk.handled) == 5
    assert [fields["code"] for _, fields in desk.answers] == ["rate_limited"], "said once, not once a message"


async def test_a_mailbox_keeps_order_and_ends() -> None:
    closed: list[Mailbox] = []
    mailbox = Mailbox(closed.append)
    for number in range(3):
        mailbox.put(json.dumps(number))
    mailbox.close()
    mailbox.close()
    mailbox.put("late")
    assert [await mailbox.next() for _ in range(4)] == ["0", "1", "2", None]
    assert closed == [mailbox]


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    closed: list[Mailbox] = []
    mailbox = Mailbox(closed.append)
    for _ in range(MAX_WAITING):
        mailbox.put("x")
    assert not closed
    mailbox.put("one too many")
    assert closed == [mailbox]
    assert await mailbox.next() is None
    assert not mailbox._waiting


@pytest.mark.parametrize("text", ['{"type":"ping","t":"x"}', '{"type":"ping","t":null}', '{"type":"ping","t":1e400}'])
async def test_odd_pings_are_still_answered(text: str) -> None:
    desk = Desk()
    await desk.inbox.receive(text)
    assert [kind for kind, _ in desk.answers] == ["pong"]

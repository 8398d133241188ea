"""Slots, measured capacity, and the rate of new sessions."""

from __future__ import annotations

import pytest

from server.admission import Admission, Load, Slot
from server.config import LimitsConfig
from server.errors import ApiError


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reserve(admission: Admission, client: str) -> Slot:
    """A slot for a client that does not wait for one."""
    admission.enter(client)
    slot = admission.take()
    if slot is None:
        raise admission.refusal()
    return slot


def load(block_s: float, encode_s: float = 0.02) -> Load:
    return Load(block_s=block_s, encode_s=encode_s, period_s=0.48, cores=2)


@pytest.mark.parametrize(
    ("block_s", "sessions"),
    [(0.05, 7), (0.10, 3), (0.20, 2), (0.206, 2), (0.21, 1), (0.30, 1), (0.47, 1), (0.9, 1)],
)
def test_capacity_is_what_fits_into_a_blocks_time(block_s: float, sessions: int) -> None:
    assert load(block_s).sessions(0.9) == sessions


def test_a_full_machine_says_so_with_the_measured_reason() -> None:
    admission = Admission(LimitsConfig())
    admission.measured(load(0.30))
    slot = reserve(admission, "a")
    with pytest.raises(ApiError) as caught:
        reserve(admission, "b")
    error = caught.value
    assert (error.code, error.status, error.retry_after_s) == ("capacity", 503, 15)
    assert "480 ms takes 300 ms" in error.detail
    assert "no more than 1 fit" in error.detail
    slot.release()
    reserve(admission, "b")


@pytest.mark.parametrize("limits", [LimitsConfig(), LimitsConfig(max_sessions=4)])
def test_memory_bounds_sessions_too(limits: LimitsConfig) -> None:
    admission = Admission(limits, 2)
    admission.measured(load(0.05))
    assert load(0.05).sessions(0.9) > 2
    reserve(admission, "a"), reserve(admission, "b")
    with pytest.raises(ApiError, match="memory for 2 sessions") as caught:
        reserve(admission, "c")
    assert caught.value.code == "capacity"
    assert Admission(LimitsConfig(max_sessions=1), 2).max_sessions == 1


def test_a_slot_is_given_back_once() -> None:
    admission = Admission(LimitsConfig(max_sessions=2))
    first, _ = reserve(admission, "a"), reserve(admission, "a")
    first.release()
    first.release()
    assert admission.taken == 1
    reserve(admission, "a")
    with pytest.raises(ApiError, match="limits.max_sessions is 2"):
        reserve(admission, "a")


def test_before_the_engine_is_measured_one_session_may_wait() -> None:
    admission = Admission(LimitsConfig())
    reserve(admission, "a")
    with pytest.raises(ApiError, match="still starting"):
        reserve(admission, "b")
    admission.measured(load(0.1))
    reserve(admission, "b")


def test_real_blocks_move_the_capacity() -> None:
    admission = Admission(LimitsConfig())
    admission.measured(load(0.1))
    assert admission.max_sessions == 3
    for _ in range(19):
        admission.observe_block(0.3)
    assert admission.max_sessions == 3, "a few slow blocks say little"
    for _ in range(81):
        admission.observe_block(0.3)
    assert admission.max_sessions == 1
    assert admission.rtf_p95 == pytest.approx(0.3 / 0.48)


def test_new_sessions_are_limited_by_minute_and_client() -> None:
    clock = Clock()
    admission = Admission(LimitsConfig(sessions_per_minute=3, max_sessions=100), now=clock)
    for _ in range(3):
        reserve(admission, "a")
    with pytest.raises(ApiError) as caught:
        reserve(admission, "a")
    assert (caught.value.code, caught.value.status, caught.value.retry_after_s) == ("rate_limited", 429, 60)
    reserve(admission, "b")
    clock.now_s = 60.0
    reserve(admission, "a")


def test_a_leaving_server_takes_nobody() -> None:
    admission = Admission(LimitsConfig())
    admission.close("The server is shutting down; try again in half a minute.")
    with pytest.raises(ApiError, match="shutting down") as caught:
        reserve(admission, "a")
    assert caught.value.retry_after_s

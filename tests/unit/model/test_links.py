"""Processes that cannot be joined say so in one sentence with the remedy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist

from model import links
from model.config import RunConfig
from model.errors import LinkError, UnsupportedError
from model.parallel import Plan
from model.rank import load_rank, place_of

FOUR = Plan(kind="layers", pipeline=4)


def test_a_taken_port() -> None:
    store = links.open_store(2, 5.0)
    assert store.port > 0
    with pytest.raises(LinkError, match=f"port {store.port} .* is in use; free it"):
        links.open_store(2, 5.0, store.port)


def test_nobody_at_the_meeting_point() -> None:
    store = links.open_store(1, 5.0)
    port = store.port
    del store
    with pytest.raises(LinkError, match="not at port"):
        links.find_store(port, 2, 1.0)


def test_the_transports_own_words_come_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("NCCL error in: init.cpp, unhandled system error\nmore lines")

    monkeypatch.setattr(dist, "init_process_group", refuse)
    with pytest.raises(LinkError) as caught:
        links.join(dist.HashStore(), 0, 4, torch.device("cpu"), 1.0, few_cores=True)
    text = str(caught.value)
    assert "the 4 processes of the plan" in text and "unhandled system error" in text and "NCCL_DEBUG=INFO" in text
    assert "\n" not in text and "more lines" not in text


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="needs 4 GPUs but this machine has 2; lower parallel.pipeline"):
        place_of(RunConfig(device="cuda"), FOUR, 0)
    with pytest.raises(ValueError, match="set device to cuda or auto"):
        place_of(RunConfig(device="cuda:1"), FOUR, 0)
    two = dataclasses.replace(FOUR, pipeline=2)
    assert [place_of(RunConfig(), two, rank).device for rank in range(2)] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("run", "plan", "words"),
    [
        ({"steps": "light"}, FOUR, "runs full"),
        ({"solver": "unipc"}, Plan(kind="timestep", pipeline=2), "use euler"),
        ({"checkpoint": "tiny"}, Plan(kind="sequence", sequence=3), "does not divide 4 heads"),
    ],
)
def test_a_run_that_a_plan_cannot_do(run: dict, plan: Plan, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        load_rank(RunConfig(device="cpu", **run), plan, 0)


def test_tiles_are_for_the_published_decoder() -> None:
    with pytest.raises(UnsupportedError, match="decoder of tiny is a small one; use auto or shared"):
        load_rank(RunConfig(device="cpu", checkpoint="tiny"), Plan(kind="layers", pipeline=2, vae="tiled"), 1)

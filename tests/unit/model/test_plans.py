"""Every plan gives the numbers of one process: real ranks over gloo, two sessions, new prompt, portrait and sink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.parallel import Plan
from tests.unit.model.plan_ranks import BLOCKS, Case, Ranks, single, write_checkpoint

PLANS = [
    Plan(kind="layers", pipeline=2),
    Plan(kind="timestep", pipeline=2),
    Plan(kind="sequence", sequence=2),
]
LARGER_PLANS = [
    Plan(kind="layers", pipeline=4, vae="own"),
    Plan(kind="timestep", pipeline=4, vae="own"),
    Plan(kind="layers", pipeline=2, sequence=2),
    Plan(kind="timestep", pipeline=2, sequence=2),
]
ALL_PLANS = [*PLANS, *(pytest.param(plan, marks=pytest.mark.soak) for plan in LARGER_PLANS)]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(5) as group:
        yield group


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("plans") / "small.safetensors")


@pytest.fixture(scope="module")
def alone(checkpoint: str) -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
    return single(Case(Plan(), checkpoint))


@pytest.mark.parametrize("plan", ALL_PLANS, ids=lambda plan: plan.name)
def test_a_plan_gives_the_numbers_of_one_process(plan: Plan, checkpoint: str, ranks: Ranks, alone) -> None:
    latents, pictures = ranks.run(Case(plan, checkpoint))
    assert len(latents) == len(pictures) == 2 * BLOCKS
    for got, wanted in zip(latents, alone[0], strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
    for (session, block, got), (*key, wanted) in zip(pictures, alone[1], strict=True):
        assert [session, block] == key
        assert np.abs(got.astype(int) - wanted).max() <= 1


@pytest.mark.soak
@pytest.mark.parametrize(
    ("run", "stream"),
    [
        ({"guidance": 3.0}, {}),
        ({"solver": "unipc"}, {}),
        ({}, {"history": "clean", "replace_sink": False}),
    ],
    ids=["guidance", "a solver with memory", "a clean history"],
)
def test_what_steps_carry_crosses_the_stages(run: dict, stream: dict, ranks: Ranks, tmp_path: Path) -> None:
    case = Case(Plan(kind="layers", pipeline=2), write_checkpoint(tmp_path / "small.safetensors", **stream), run)
    latents, _ = ranks.run(case)
    wanted, _ = single(case)
    assert np.linalg.norm(np.stack(latents) - np.stack(wanted)) <= 1e-5 * np.linalg.norm(np.stack(wanted))

"""Every plan gives the numbers of one process: real ranks over gloo, two sessions, new prompt, portrait and sink."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from model.parallel import Plan
from tests.unit.model.plan_ranks import BLOCKS, Case, Ranks, single

PLANS = {
    "layers 2": Case(Plan(kind="layers", pipeline=2)),
    "layers 3 and a decoder": Case(Plan(kind="layers", pipeline=3, vae="own")),
    "timestep 4 and a decoder": Case(Plan(kind="timestep", pipeline=4, vae="own")),
    "sequence 2": Case(Plan(kind="sequence", sequence=2)),
    "layers 2 x sequence 2": Case(Plan(kind="layers", pipeline=2, sequence=2)),
    "timestep 2 x sequence 2": Case(Plan(kind="timestep", pipeline=2, sequence=2)),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(5) as group:
        yield group


@pytest.fixture(scope="module")
def alone() -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
    return single(Case(Plan()))


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_gives_the_numbers_of_one_process(name: str, ranks: Ranks, alone) -> None:
    latents, pictures = ranks.run(PLANS[name])
    assert len(latents) == len(pictures) == 2 * BLOCKS
    for got, wanted in zip(latents, alone[0], strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
    for (session, block, got), (*key, wanted) in zip(pictures, alone[1], strict=True):
        assert [session, block] == key
        assert np.abs(got.astype(int) - wanted).max() <= 1


VARIANTS = {
    "guidance": Case(Plan(kind="layers", pipeline=2), run={"guidance": 3.0}),
    "a solver with memory": Case(Plan(kind="layers", pipeline=2), run={"solver": "unipc"}),
    "a clean history": Case(Plan(kind="layers", pipeline=2), stream={"history": "clean", "replace_sink": False}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_step_carries_crosses_the_stages(name: str, ranks: Ranks) -> None:
    case = VARIANTS[name]
    latents, _ = ranks.run(case)
    wanted, _ = single(case)
    assert np.linalg.norm(np.stack(latents) - np.stack(wanted)) <= 1e-5 * np.linalg.norm(np.stack(wanted))

"""Layers that stream from host memory give the numbers of resident ones, and take two layers' room."""

from __future__ import annotations

import copy

import pytest
import torch

from model.compile import speed_up
from model.generator import load_model
from model.interface import BlockRequest
from model.offload import is_streamed, stream_weights
from model.parallel import Plan
from tests.unit.model.plan_ranks import RUN, write_checkpoint
from tests.unit.model.small_dit import build
from tests.unit.model.small_model import spec
from tests.unit.model.test_compile import rollout

CPU = torch.device("cpu")


@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("fp8", [False, True])
def test_streamed_layers_give_the_same_numbers(layers: int, fp8: bool) -> None:
    dit = build(num_layers=layers)
    speed_up(dit, fp8=fp8, backend=None)
    wanted = rollout(copy.deepcopy(dit))
    resident = sum(t.numel() * t.element_size() for b in dit.blocks for t in (*b.parameters(), *b.buffers()))
    streamed = stream_weights(dit, CPU)
    assert is_streamed(dit) and streamed.host_bytes >= resident
    on_device = {t.untyped_storage().data_ptr() for t in dit.blocks.parameters()}
    assert len(on_device) == 2 and 2 * streamed.layer_bytes < streamed.host_bytes
    assert torch.equal(rollout(dit), wanted)


def test_a_checkpoint_runs_with_its_layers_on_the_host(tmp_path) -> None:
    run = {**RUN, "checkpoint": write_checkpoint(tmp_path / "small.safetensors")}
    pictures = []
    for plan in (Plan(), Plan(kind="offload", offload="weights")):
        model = load_model(run, plan)
        assert is_streamed(model.dit) == (plan.kind == "offload")
        model.open(spec())
        window = torch.randn(model.info.window.samples, generator=torch.Generator().manual_seed(1)).numpy()
        blocks = [model.step(BlockRequest(session="a", block=n, epoch=0, window=0.1 * window)) for n in range(3)]
        pictures.append(torch.stack([torch.from_numpy(block.frames) for block in blocks]).int())
    assert (pictures[0] - pictures[1]).abs().max() <= 1

"""Layers that stream from host memory give the numbers of resident ones, and take two layers' room."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from model.bench_offload import main
from model.compile import speed_up
from model.errors import UnsupportedError
from model.generator import load_model
from model.host_rings import HostRing
from model.interface import BlockRequest
from model.offload import host_bytes, is_streamed, stream_weights
from model.parallel import Plan
from model.published import published
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


def test_a_checkpoint_runs_with_its_layers_and_rings_on_the_host(tmp_path) -> None:
    run = {**RUN, "checkpoint": write_checkpoint(tmp_path / "small.safetensors")}
    plans = [Plan(), *(Plan(kind="offload", offload=what) for what in ("weights", "weights+kv"))]
    pictures = []
    for plan in plans:
        model = load_model(run, plan)
        assert is_streamed(model.dit) == (plan.kind == "offload")
        for session in "ab":  # in turns, so that the rings of one push out those of the other
            model.open(replace(spec(), session=session))
        rings = model._sessions["a"].stream.rings
        assert all(isinstance(ring, HostRing) == (plan.offload == "weights+kv") for ring in rings)
        window = torch.randn(model.info.window.samples, generator=torch.Generator().manual_seed(1)).numpy()
        blocks = [
            model.step(BlockRequest(session=session, block=n, epoch=0, window=(0.1 + 0.1 * (session == "b")) * window))
            for n in range(4)
            for session in "ab"
        ]
        pictures.append(torch.stack([torch.from_numpy(block.frames) for block in blocks]).int())
    for other in pictures[1:]:
        assert (pictures[0] - other).abs().max() <= 1


def test_too_little_main_memory_is_one_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {**RUN, "checkpoint": write_checkpoint(tmp_path / "small.safetensors")}
    monkeypatch.setattr("model.offload.free_host_bytes", lambda: 1000)
    with pytest.raises(UnsupportedError, match=r"layers and rings in main memory, where 0.0 GB are free; use"):
        load_model(run, Plan(kind="offload", offload="weights+kv"))


def test_the_published_model_needs_this_much_main_memory() -> None:
    sizes = published()
    assert 28e9 < host_bytes(sizes, fp8=False, kv_fp8=False, keeps_rings=False) < 44e9
    rings = host_bytes(sizes, False, False, True) - host_bytes(sizes, False, False, False)
    assert 1 <= rings / (4 * 40 * 12672 * 5120 * 2 * 2) < 1.05  # pieces fit powers of two at 704x384


def test_the_bench_runs_at_mini_size(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mini", "--size", "64x64", "--blocks", "1", "--dtype", "bf16", "--vae", "tiled", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["block_s"]["p50"] > 0 and result["host_gb"] >= result["layers_gb"] > 0
    assert main(["--offload", "kv"]) == 2 and "choose weights or weights+kv" in capsys.readouterr().err

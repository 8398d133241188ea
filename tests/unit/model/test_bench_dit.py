"""The transformer's benchmark: its arithmetic, its figures at a small size, and bad arguments."""

from __future__ import annotations

import dataclasses

import pytest

import model.bench_dit as bench_dit
from model.bench_dit import BenchError, DiTBench, measure, pass_flops, table
from model.compile import speed_up
from model.component_config import WanVAEConfig
from model.config import DiTConfig
from tests.unit.model.small_dit import SMALL


def test_the_work_of_the_published_size_is_the_specification_s():
    work = pass_flops(DiTConfig(), 3168, 3 * 12672 // 3 + 2640)
    assert sum(work.values()) / 1e12 == pytest.approx(123.0 - 2.15 - 0.08, rel=0.005)  # text keys, embeddings: prepared
    assert work["attention"] / 1e12 == pytest.approx(39.7, abs=0.1)


def test_a_small_run_reports_every_figure(monkeypatch):
    monkeypatch.setattr(bench_dit, "speed_up", lambda dit, fp8: speed_up(dit, fp8=fp8, backend=None))
    config = dataclasses.replace(SMALL, in_dim=16, out_dim=16, enable_framepack=True)
    bench = DiTBench(width=64, height=64, blocks=1, quality=True, dtype="fp8", kv="fp8", pipeline=True)
    result = measure(bench, config, WanVAEConfig(base_width=4, width_multipliers=(1, 1, 1, 1), residual_blocks=1))
    assert result["passes"] == result["steps"] == 4 and result["tokens"] == 48
    assert result["forward_ms"]["p50"] > 0 and 0 < result["ceiling_share"]
    assert result["quality"]["bfloat16"]["cosine"] > 0.98
    assert result["pipeline"]["first_pictures_ms"] > 0 and result["pipeline"]["3 steps"]["fps"] > 0
    assert any(name == "share of the ceiling" for name, _ in table(result))


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"width": 700}, "width"),
        ({"dtype": "int4"}, "dtype"),
        ({"kv": "int8"}, "kv"),
        ({"blocks": 0}, "blocks"),
        ({"layers": 41}, "layers"),
        ({"plain": True}, "plain"),
    ],
)
def test_bad_arguments_are_named(wrong, word):
    with pytest.raises(BenchError, match=word):
        DiTBench(**wrong)

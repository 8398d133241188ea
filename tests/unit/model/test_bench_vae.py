"""The decoder's benchmark: its arithmetic, its figures at a small size, and bad arguments."""

from __future__ import annotations

import pytest

from model.bench_timing import BenchError, size_of
from model.bench_vae import VAEBench, block_flops, measure, table
from model.component_config import WanVAEConfig

SMALL = WanVAEConfig(base_width=4, width_multipliers=(1, 2, 2, 2), residual_blocks=1)


def test_the_work_of_a_block_is_the_specification_s():
    assert block_flops(WanVAEConfig(), 384, 704) / 1e12 == pytest.approx(27.5, rel=0.01)


def test_a_small_run_reports_every_figure():
    result = measure(VAEBench(width=64, height=64, blocks=1, quality=True, profile=True), SMALL)
    assert result["pictures"] == 12 and result["decode_ms"]["p50"] > 0 < result["ceiling_tflops"]
    assert 0 < result["quality"]["mean"] < 0.02
    assert result["kernels_ms"]["all kernels"] > 0
    assert {"decode p50 / p99", "ceiling, share", "against float32"} <= {name for name, _ in table(result)}


@pytest.mark.parametrize(
    "wrong, word", [({"width": 700}, "width"), ({"dtype": "fp8"}, "dtype"), ({"blocks": 0}, "blocks")]
)
def test_bad_arguments_are_named(wrong, word):
    with pytest.raises(BenchError, match=word):
        VAEBench(**wrong)
    with pytest.raises(BenchError, match="704x384"):
        size_of("704")

"""8-bit layers: rounding per row, what is left out, and the product."""

from __future__ import annotations

import torch
from torch import nn

from model.fp8 import EXCLUDED, Fp8Linear, quantise, to_fp8_rows
from tests.unit.model.small_dit import build


def test_rows_keep_their_own_scale():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    x[3] *= 1000
    x[4] = 0
    values, scale = to_fp8_rows(x)
    assert values.dtype == torch.float8_e4m3fn and scale.shape == (6, 1)
    back = values.float() * scale
    assert bool(((back - x).abs() <= x.abs() / 16 + scale * 2**-9).all())
    assert back[4].eq(0).all()


def test_a_layer_stays_within_three_per_cent_of_the_exact_product():
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 96), torch.randn(2, 7, 256)
    wanted = linear(x)
    got = Fp8Linear.of(linear)(x)
    assert got.shape == wanted.shape and got.dtype == x.dtype
    assert (got - wanted).norm() / wanted.norm() < 0.05


def test_embeddings_and_head_stay_as_they_are():
    dit = build()
    linears = {name for name, m in dit.named_modules() if type(m) is nn.Linear}
    kept = {name for name in linears if any(part in name for part in EXCLUDED)}
    assert quantise(dit) == len(linears) - len(kept)
    assert {name for name, m in dit.named_modules() if type(m) is nn.Linear} == kept
    assert {name.split(".")[0] for name in kept} == {
        "text_embedding",
        "time_embedding",
        "time_projection",
        "head",
        "casual_audio_encoder",
    }

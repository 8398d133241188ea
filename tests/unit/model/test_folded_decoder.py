"""The quicker form of the light decoder draws what the plain one draws, in any splitting of a stream."""

from __future__ import annotations

import pytest
import torch

from model import folded_decoder as subject
from model.folded_decoder import FoldedDecoder, fold
from model.vae import LightDecoder, LightVAE


def decoder(stride: int, blocks: tuple[int, int, int] = (2, 1, 2)) -> LightDecoder:
    torch.manual_seed(3)
    vae = LightVAE(8, stride, (8, 8, 8), (24, 16, 8), blocks)
    for name, value in vae.decoder.named_parameters():
        if name.endswith(("gain", "bias")):
            value.data += 0.3 * torch.randn_like(value)
    return vae.decoder.eval()


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("is_fused", [True, False])
@torch.inference_mode()
def test_it_equals_the_plain_form(monkeypatch: pytest.MonkeyPatch, stride: int, is_fused: bool) -> None:
    if not is_fused:
        monkeypatch.setattr(subject, "_has_fused", lambda dtype: False)
    plain = decoder(stride)
    folded = FoldedDecoder(plain)
    z = torch.randn(2, 5, 8, 3, 4)
    wanted, memory = plain(z, None)
    whole, after = folded(z, None)
    assert (whole - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert [tuple(m.shape) for m in after] == [tuple(m.shape) for m in memory]
    first, state = folded(z[:, :2], None)
    second, state = plain(z[:, 2:4], state)
    third, _ = folded(z[:, 4:], state)
    assert (torch.cat([first, second, third], 1) - wanted).abs().max() < 1e-4 * wanted.abs().max()


@torch.inference_mode()
def test_what_goes_in_stays_as_it_is() -> None:
    folded = FoldedDecoder(decoder(16))
    z = torch.randn(1, 2, 8, 2, 2)
    _, state = folded(z, None)
    before, copies = z.clone(), [m.clone() for m in state]
    folded(z, state)
    assert torch.equal(z, before) and all(map(torch.equal, state, copies))


def test_other_decoders_pass() -> None:
    other = torch.nn.Identity()
    assert fold(other) is other

"""Our encoder and decoder against the library's over the same weights, and what a call may and may not change."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from model.component_config import WanVAEConfig
from model.random_weights import fill_random
from model.tiles import tiles
from model.vae_kernels import add_norm_silu
from model.wan_decoder import WanDecoder
from model.wan_vae import WanVAE

CFG = WanVAEConfig(base_width=4, width_multipliers=(1, 2, 2, 2))


@pytest.fixture(scope="module")
def pair() -> tuple[AutoencoderKLWan, WanDecoder]:
    library = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=2)
    fill_random(library.decoder, 1)
    ours = WanDecoder(CFG)
    ours.load_state_dict(library.decoder.state_dict())
    return library.eval().requires_grad_(False), ours.eval().requires_grad_(False)


def test_same_weights_same_pictures(pair):
    library, ours = pair
    torch.manual_seed(0)
    memory, slots = [None] * 40, (None,) * ours.num_slots
    for call, frames in enumerate([1, 3, 3, 1, 2]):
        latents = torch.randn(2, 16, frames, 3, 4)
        wanted = library.decoder(latents, feat_cache=memory, feat_idx=[0], first_chunk=call == 0)
        got, slots = ours(latents, slots, is_first=call == 0)
        assert got.shape == wanted.shape == (2, 3, 1 if call == 0 else 4 * frames, 24, 32)
        torch.testing.assert_close(got, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


def test_a_call_leaves_its_slots_alone_and_their_shapes_are_fixed(pair):
    _, ours = pair
    latents = torch.randn(1, 16, 3, 2, 3)
    _, slots = ours(latents[:, :, :1], (None,) * ours.num_slots, is_first=True)
    once, after = ours(latents, slots, is_first=False)
    again, later = ours(latents, slots, is_first=False)
    assert torch.equal(once, again)
    _, much_later = ours(latents, after, is_first=False)
    assert [s.shape for s in after] == [s.shape for s in much_later] == [s.shape for s in later]
    assert all(s.untyped_storage().nbytes() == s.nbytes for s in after), "a slot must not hold a whole buffer"


@torch.inference_mode()
def test_same_weights_same_latents():
    library = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=2).eval()
    fill_random(library, 1)
    ours = WanVAE(CFG).eval()
    ours.load_state_dict(library.state_dict())
    torch.manual_seed(0)
    video = torch.rand(2, 3, 17, 16, 24) * 2 - 1
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (CFG.latents_mean, CFG.latents_std))
    wanted = (library.encode(video).latent_dist.mode() - mean) / std
    start, memory = ours.encode(video[:, :, :5])
    before = [slot.clone() for slot in memory.slots]
    rest, after = ours.encode(video[:, :, 5:], memory)
    torch.testing.assert_close(torch.cat([start, rest], 2), wanted, atol=2e-6, rtol=0)
    assert all(torch.equal(slot, kept) for slot, kept in zip(memory.slots, before, strict=True))
    assert [slot.shape for slot in after.slots] == [slot.shape for slot in memory.slots]
    assert all(slot.untyped_storage().nbytes() == slot.nbytes for slot in after.slots)


@pytest.mark.parametrize("with_delta", [False, True])
def test_sum_norm_and_activation(with_delta):
    torch.manual_seed(0)
    x, delta, bias, gamma = (
        torch.randn(2, 3, 4, 5, 8),
        torch.randn(2, 3, 4, 5, 8),
        torch.randn(8),
        torch.rand(8, 1, 1, 1),
    )
    wide = torch.full((2, 5, 4, 5, 8), float("nan"))
    total = add_norm_silu(x, delta if with_delta else None, bias if with_delta else None, gamma, wide[:, 2:])
    wanted = x + delta + bias if with_delta else x
    torch.testing.assert_close(total, wanted)
    root = wanted.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(wide[:, 2:], torch.nn.functional.silu(wanted / root * gamma.flatten()))
    assert wide[:, :2].isnan().all()


@pytest.mark.parametrize(("height", "width"), [(8, 10), (7, 9), (1, 1)])
def test_tiles_show_the_same_pictures(pair, height, width):
    ours = pair[1]
    tiled = copy.deepcopy(ours)
    tiled.is_tiled = True
    torch.manual_seed(0)
    slots = same = (None,) * ours.num_slots
    for call, frames in enumerate([1, 3, 2]):
        latents = torch.randn(1, 16, frames, height, width)
        wanted, slots = ours(latents, slots, is_first=call == 0)
        got, same = tiled(latents, same, is_first=call == 0)
        torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    assert [s.shape for s in same] == [s.shape for s in slots]
    assert all(s.untyped_storage().nbytes() == s.nbytes for s in same)


def test_a_tile_is_a_part_and_its_rim_is_needed(pair):
    grid = list(tiles(32, 40, CFG.tile_rim))
    assert len(grid) == 4 and all(
        t.rows.stop - t.rows.start < 32 and t.columns.stop - t.columns.start < 40 for t in grid
    )
    tiled = copy.deepcopy(pair[1])
    latents = torch.randn(1, 16, 1, 8, 10)
    wanted, _ = tiled(latents, (None,) * tiled.num_slots, is_first=True)
    tiled.is_tiled, tiled._rim = True, CFG.tile_rim - 1
    got, _ = tiled(latents, (None,) * tiled.num_slots, is_first=True)
    assert (got - wanted).abs().max() > 1e-5 * float(wanted.abs().max())

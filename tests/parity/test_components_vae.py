"""The streaming VAE against the published one: whole clips, every recorded splitting, and a session's protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.component_config import WanVAEConfig
from model.published_keys import wan_vae_key, wan_vae_sizes
from model.wan_vae import WanVAE
from tests.parity.golden import Component, close

LATENT_TOLERANCE, FRAME_TOLERANCE = 1e-5, 1e-4


def config_of(fixture: Component) -> WanVAEConfig:
    sizes, info = fixture.info["config"], fixture.info
    assert sizes["attn_scales"] == [], "attention inside the levels is not part of this VAE"
    return WanVAEConfig(
        z_dim=sizes["z_dim"],
        base_width=sizes["dim"],
        width_multipliers=tuple(sizes["dim_mult"]),
        residual_blocks=sizes["num_res_blocks"],
        temporal_downsample=tuple(sizes["temporal_downsample"]),
        latents_mean=tuple(info["latents_mean"]),
        latents_std=tuple(info["latents_std"]),
    )


@pytest.fixture(scope="module")
def fixture(component) -> Component:
    return component("vae")


@pytest.fixture(scope="module")
def vae(fixture: Component) -> WanVAE:
    cfg = config_of(fixture)
    vae = WanVAE(cfg).eval().requires_grad_(False)
    vae.load_state_dict({wan_vae_key(key, cfg.residual_blocks): value for key, value in fixture.weights.items()})
    return vae


def encode(vae: WanVAE, video: Tensor, calls: list[int]) -> Tensor:
    state, pieces = None, []
    for piece in video[None].split(calls, 2):
        latents, state = vae.encode(piece, state)
        pieces.append(latents)
    return torch.cat(pieces, 2)[0]


def decode(vae: WanVAE, latents: Tensor, calls: list[int]) -> Tensor:
    state, pieces = None, []
    for piece in latents[None].split(calls, 2):
        video, state = vae.decode(piece, state)
        pieces.append(video)
    return torch.cat(pieces, 2)[0]


def test_sizes_are_read_from_the_file(fixture: Component) -> None:
    cfg = config_of(fixture)
    read = wan_vae_sizes({key: value.shape for key, value in fixture.weights.items()})
    assert replace(read, latents_mean=cfg.latents_mean, latents_std=cfg.latents_std) == cfg


def test_still_pictures(fixture: Component, vae: WanVAE) -> None:
    image = fixture["image"]
    close(encode(vae, image, [1]), fixture["image_latent"], LATENT_TOLERANCE, 0)
    stills = fixture.numbered(r"still(\d+)_latent")
    assert stills
    for name, match in stills.items():
        frames = int(match[1])
        close(encode(vae, image.expand(-1, frames, -1, -1), [frames]), fixture[name], LATENT_TOLERANCE, 0)


def test_clip_whole_and_split(fixture: Component, vae: WanVAE) -> None:
    clip, wanted, info = fixture["clip"], fixture["clip_latent"], fixture.info["stream_encode"]
    stride, frames = vae.cfg.stride[0], clip.shape[1]
    steps = [1] + [stride] * ((frames - 1) // stride)
    for calls in ([frames], info["frames_per_call"], steps):
        close(encode(vae, clip, calls), wanted, LATENT_TOLERANCE, 0)
    state, counts = None, []
    for piece in clip[None].split(info["frames_per_call"], 2):
        latents, state = vae.encode(piece, state)
        counts.append(latents.shape[2])
    assert counts == info["latents_per_call"]


def test_decode_whole_and_split(fixture: Component, vae: WanVAE) -> None:
    latents, wanted, info = fixture["latents"], fixture["decoded_raw"], fixture.info["stream_decode"]
    count = latents.shape[1]
    ones, odd = [1] * count, [2] * (count // 2) + [1] * (count % 2)
    whole = decode(vae, latents, [count])
    close(whole, wanted, FRAME_TOLERANCE, 0)
    for calls in (info["latents_per_call"], ones, odd):
        close(decode(vae, latents, calls), whole, FRAME_TOLERANCE, 0)
    state, counts = None, []
    for piece in latents[None].split(info["latents_per_call"], 2):
        video, state = vae.decode(piece, state)
        counts.append(video.shape[2])
    assert counts == info["frames_per_call"]


def test_session_protocol(fixture: Component, vae: WanVAE) -> None:
    """Two sessions take turns, with encodes in between, and neither notices."""
    session = fixture.info["session"]
    source = fixture[session["warmup_source"].split("[")[0]][None]
    cfg = replace(vae.cfg, motion_latents=source.shape[2], warmup_latents=session["warmup_latents"])
    latents, wanted, own = fixture["latents"][None], fixture["session_frames"], vae.cfg
    vae.cfg = cfg
    try:
        still = vae.still(fixture["image"][None, :, 0])
        close(still.past, source, LATENT_TOLERANCE, 0)
        close(still.reference, source[:, :, 1:2], LATENT_TOLERANCE, 0)
        states, pieces = [still.state, still.state], ([], [])
        for block in range(session["blocks"]):
            for i in (0, 1):
                piece = latents.narrow(2, block * session["block_latents"], session["block_latents"])
                video, states[i] = vae.decode(piece, states[i])
                pieces[i].append(video[0])
                vae.encode(fixture["clip"][None])
    finally:
        vae.cfg = own
    for shown in pieces:
        shown[0] = shown[0][:, session["dropped_from_first_block"] :]
        assert [piece.shape[1] for piece in shown] == session["frames_per_block"]
        close(torch.cat(shown, 1).clamp(-1, 1), wanted, FRAME_TOLERANCE, 0)


def test_first_and_steady_reference(fixture: Component, vae: WanVAE) -> None:
    own, image = vae.cfg, fixture["image"][None, :, 0]
    shortest = min(fixture.numbered(r"still(\d+)_latent").values(), key=lambda match: int(match[1]))
    wanted = {"first": fixture["image_latent"][:, :1], "steady": fixture[shortest[0]][:, 1:2]}
    for which, latent in wanted.items():
        vae.cfg = replace(own, reference_latent=which, motion_latents=2)
        try:
            close(vae.still(image).reference[0], latent, LATENT_TOLERANCE, 0)
        finally:
            vae.cfg = own


def test_bfloat16_deviation(fixture: Component, vae: WanVAE) -> None:
    cfg = vae.cfg
    narrow = WanVAE(cfg).eval().requires_grad_(False)
    narrow.load_state_dict(vae.state_dict())
    narrow.decoder.to(torch.bfloat16)
    video = narrow.decode(fixture["latents"][None])[0][0].float()
    error = (video.clamp(-1, 1) - fixture["decoded_raw"].clamp(-1, 1)).abs()
    print(f"decoder in bfloat16: mean {error.mean():.4f}, largest {error.max():.4f} of a range of 2")
    assert error.mean() < 0.02


def test_remainders_are_refused(vae: WanVAE, fixture: Component) -> None:
    clip = fixture["clip"][None]
    with pytest.raises(ValueError, match="remainder"):
        vae.encode(clip[:, :, :2])
    _, state = vae.encode(clip[:, :, :1])
    with pytest.raises(ValueError, match="remainder"):
        vae.encode(clip[:, :, :3], state)

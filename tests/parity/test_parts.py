"""Frame packer, audio encoder and audio injector against the published implementation."""

from __future__ import annotations

import torch

from model import rope
from model.audio_tokens import AudioInjector, CausalAudioEncoder
from model.dit import FramePacker
from tests.parity.golden import close, config_of


def test_frame_packer(golden) -> None:
    fixture, weights = golden("b_framepack"), golden("weights")
    cfg = config_of(fixture.info, weights)
    packer = FramePacker(cfg)
    packer.load_state_dict(weights.under(fixture.info["weight_prefix"]))
    assert fixture.info["cases"]
    for case in fixture.info["cases"]:
        name = f"frames{case['frames']}"
        motion = fixture[f"{name}.motion_latents"]
        tokens = packer(motion)
        assert tokens.shape[1] == sum(case["token_counts"])
        close(tokens, fixture[f"{name}.tokens"])
        positions = rope.motion_positions(*motion.shape[-2:], cfg.patch)
        by = rope.rotation_of(positions, cfg.head_dim)
        close(by.cos, fixture[f"{name}.cos"], 1e-6, 0)
        close(by.sin, fixture[f"{name}.sin"], 1e-6, 0)


def test_audio_encoder(golden) -> None:
    fixture, weights = golden("c_audio_encoder"), golden("weights")
    encoder = CausalAudioEncoder(config_of(fixture.info, weights))
    encoder.load_state_dict(weights.under(fixture.info["weight_prefix"]))
    blocks = {case["name"]: case for case in fixture.info["block_cases"]}
    cases = {key.split(".")[0] for key in fixture.tensors}
    assert set(blocks) < cases
    for name in sorted(cases):
        features = fixture[f"{name}.features"]
        wanted = fixture[f"{name}.local"], fixture[f"{name}.global"]
        if name not in blocks:
            got = [encoder(features)]
        else:
            case = blocks[name]
            copies, dropped = case["prepended_copies_of_first_frame"], case["dropped_tokens"]
            front = features[..., :1].expand(-1, -1, -1, copies)
            long = encoder(torch.cat([front, features], -1))
            got = [encoder.block(features), tuple(t[:, dropped:] for t in long)]
            assert got[0][0].shape[1] == case["latent_frames_out"]
        for local, glob in got:
            close(local, wanted[0])
            close(glob, wanted[1])


def test_audio_injector(golden) -> None:
    fixture, weights = golden("d_audio_injector"), golden("weights")
    info = fixture.info
    cfg = config_of(info, weights)
    injector, index = AudioInjector(cfg), info["injector_index"]
    injector.load_state_dict(weights.under("audio_injector."))
    assert cfg.audio_inject_layers[index] == info["block_index"]
    frames, tokens = info["num_frames"], info["tokens_per_frame"]
    split = lambda x: x.unflatten(1, (frames, tokens))  # noqa: E731

    sound = injector.prepare(index, fixture["in.audio_local"], fixture["in.audio_global"], 1)
    for suffix in ("", "_small"):
        hidden = split(fixture[f"in.hidden{suffix}"])
        close(injector.modulated(hidden, sound)[0, 0], fixture[f"out.adain{suffix}"])
        close(injector(index, hidden, sound, None), split(fixture[f"out.hidden{suffix}"]))

    two = injector.prepare(index, fixture["in.audio_local_two"], fixture["in.audio_global_two"], 1)
    mask = fixture["in.mask"][None, :, :frames].flatten(3, 4)
    assert mask.shape[-2:] == (tokens, 1)
    close(injector(index, split(fixture["in.hidden"]), two, mask), split(fixture["out.hidden_two_actors"]))

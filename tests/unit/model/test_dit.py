"""The transformer: names and sizes of the released checkpoints, batches, switches, precision."""

from __future__ import annotations

import pytest
import torch

from model.config import DiTConfig, StreamConfig
from model.dit import DiT
from model.rope import rotate
from tests.unit.model.small_dit import FRAMES, HEIGHT, SMALL, WIDTH, Clip, Stream, build


def test_published_size_has_the_published_parameters() -> None:
    with torch.device("meta"):
        dit = DiT(DiTConfig())
    shapes = {name: tuple(p.shape) for name, p in dit.state_dict().items()}
    assert len(shapes) == 1260
    assert sum(p.numel() for p in dit.parameters()) == 16_295_755_609
    for name, shape in {
        "patch_embedding.weight": (5120, 16, 1, 2, 2),
        "frame_packer.proj_4x.weight": (5120, 16, 4, 8, 8),
        "trainable_cond_mask.weight": (3, 5120),
        "time_projection.1.weight": (30720, 5120),
        "head.modulation": (1, 2, 5120),
        "head.head.weight": (64, 5120),
        "casual_audio_encoder.weights": (1, 25, 1, 1),
        "casual_audio_encoder.encoder.padding_tokens": (1, 1, 1, 5120),
        "casual_audio_encoder.encoder.conv1_local.conv.weight": (5120, 1024, 3),
        "casual_audio_encoder.encoder.conv1_global.conv.bias": (1280,),
        "blocks.39.modulation": (1, 6, 5120),
        "blocks.0.self_attn.norm_q.weight": (5120,),
        "blocks.0.norm3.bias": (5120,),
        "blocks.0.ffn.2.weight": (5120, 13824),
        "audio_injector.injector.11.norm_k.weight": (5120,),
        "audio_injector.injector_adain_layers.11.linear.weight": (10240, 5120),
    }.items():
        assert shapes[name] == shape, name


def test_condition_tokens_count_as_published() -> None:
    for (height, width), count in {(704, 384): 2640, (640, 448): 2800, (512, 512): 2560, (384, 256): 960}.items():
        assert DiTConfig().condition_tokens(height // 8, width // 8) == count


@pytest.mark.parametrize("framepack", [False, True])
def test_streams_of_a_batch_do_not_mix(framepack: bool) -> None:
    dit = build(enable_framepack=framepack)
    clip = Clip.make(SMALL, 3, 3)
    with torch.no_grad():
        together, alone = Stream(dit, clip, StreamConfig(ring_blocks=2)), []
        for i in range(3):
            one = Clip(**{k: v[i : i + 1] for k, v in vars(clip).items()})
            alone.append(Stream(dit, one, StreamConfig(ring_blocks=2)))
        for b in range(3):
            for s in (together, *alone):
                s.begin(b, 8)
            got = together.run(b, clip.noisy[:, b], 0.7)
            wanted = torch.cat([s.run(b, s.clip.noisy[:, b], 0.7) for s in alone])
            torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
            for s in (together, *alone):
                s.advance()


def test_roll_outs_differentiate_through_the_streaming_path() -> None:
    dit, clip = build(), Clip.make(SMALL, 1, 3)
    stream = Stream(dit, clip, StreamConfig(ring_blocks=2))
    with torch.no_grad():
        plain = Stream(dit, clip, StreamConfig(ring_blocks=2))
        for b in range(2):
            for s in (stream, plain):
                s.begin(b, 8)
                s.run(b, clip.noisy[:, b], 0.7)
                s.advance()
    for s in (stream, plain):
        s.begin(2, 8)
    out = stream.run(2, clip.noisy[:, 2], 0.7)
    with torch.no_grad():
        torch.testing.assert_close(out, plain.run(2, clip.noisy[:, 2], 0.7))
    out.square().mean().backward()
    assert dit.blocks[0].self_attn.q.weight.grad.abs().sum() > 0
    assert dit.casual_audio_encoder.weights.grad.abs().sum() > 0


def test_a_pass_that_only_remembers_writes_the_same_keys() -> None:
    dit, clip = build(), Clip.make(SMALL, 1, 1)
    rings = []
    with torch.no_grad():
        for only in (False, True):
            s = Stream(dit, clip, StreamConfig())
            s.begin(0, 8)
            prepared = (
                dit.step_modulation(torch.tensor(10.0)),
                s.text,
                dit.audio_condition(clip.audio[:, None]),
                dit.pose(clip.pose, FRAMES, HEIGHT, WIDTH),
                dit.block_rotation(0, FRAMES, HEIGHT, WIDTH),
                s.rings[0],
            )
            out = dit(clip.noisy[:, 0], *prepared, only_remember=only)
            assert torch.equal(out, clip.noisy[:, 0]) == only
            rings.append(s.rings[0])
    assert torch.equal(rings[0].k, rings[1].k)
    assert torch.equal(rings[0].v, rings[1].v)


def test_frames_may_have_timesteps_of_their_own() -> None:
    dit = build()
    with torch.no_grad():
        one, many = dit.step_modulation(torch.tensor(300.0)), dit.step_modulation(torch.full((1, FRAMES), 300.0))
        x = torch.randn(1, FRAMES, 8, SMALL.dim)
        for a, b in zip(one.blocks, many.blocks, strict=True):
            for left, right in zip(dit.blocks[0].qkv(x, a), dit.blocks[0].qkv(x, b), strict=True):
                torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            dit.head(x, one.head_scale, one.head_shift, 2),
            dit.head(x, many.head_scale, many.head_shift, 2),
            atol=1e-5,
            rtol=1e-5,
        )


def test_bfloat16_stays_close() -> None:
    clip = Clip.make(SMALL, 1, 2)
    outs = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            dit = build().to(dtype)
            s = Stream(dit, clip, StreamConfig())
            for b in range(2):
                s.begin(b, 8)
                out = s.run(b, clip.noisy[:, b], 0.7)
                s.advance()
            assert out.dtype == torch.float32
            assert s.rings[0].k.dtype == dtype
            outs.append(out)
    error = (outs[0] - outs[1]).norm() / outs[0].norm()
    assert 1e-5 < error < 0.05


def test_real_and_complex_rotation_agree() -> None:
    dit = build()
    by = dit.block_rotation(1000, FRAMES, HEIGHT, WIDTH)
    x = torch.randn(2, len(by.cos), SMALL.num_heads, SMALL.head_dim)
    torch.testing.assert_close(rotate(x, by), rotate(x, by._replace(factor=None)))
    torch.testing.assert_close(rotate(x[:, 3:5], by.rows(3, 5)), rotate(x, by)[:, 3:5])
    torch.testing.assert_close(rotate(x, by).norm(dim=-1), x.norm(dim=-1))


def test_what_is_missing_or_too_long_is_named() -> None:
    dit, clip = build(enable_framepack=True), Clip.make(SMALL, 1, 1)
    with torch.no_grad():
        with pytest.raises(ValueError, match="text_len"):
            dit.text_kv(torch.zeros(1, SMALL.text_len + 1, SMALL.text_dim))
        with pytest.raises(ValueError, match="motion latents"):
            dit.prefill(clip.ref, dit.text_kv(clip.context))
        with pytest.raises(ValueError, match="mask"):
            dit.audio_condition(torch.zeros(1, 2, SMALL.audio_layers, SMALL.audio_dim, 12))

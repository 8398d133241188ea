"""The compiled pass equals the plain one, in every variant, over a ring that fills and wraps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from model.compile import _rotate, _wide, speed_up
from model.config import StreamConfig
from model.rope import block_positions, rotate, rotation_of
from tests.unit.model.small_dit import SMALL, Clip, Stream, build

STREAM = StreamConfig(frames_per_block=3, ring_blocks=2, sink_distance=7)


def rollout(dit, blocks: int = 4) -> torch.Tensor:
    """Velocities of some blocks, two passes each, the ring wrapping."""
    with torch.inference_mode():
        clip = Clip.make(SMALL, 1, blocks)
        stream = Stream(dit, clip, STREAM)
        out = []
        for block in range(blocks):
            stream.begin(block, 7)
            first = stream.run(block, clip.noisy[:, block], 1.0)
            out += [first, stream.run(block, clip.noisy[:, block] - 0.4 * first, 0.6)]
            stream.advance()
    return torch.stack(out)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def plain():
    dit = build()
    return dit, rollout(dit)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_the_compiled_pass_equals_the_plain_one(plain, backend):
    dit = copy.deepcopy(plain[0])
    speed_up(dit, backend=backend)
    assert error(rollout(dit), plain[1]) < 2e-5


def test_fp8_stays_within_its_tolerance_compiled_or_not(plain):
    runs = []
    for backend in (None, "aot_eager"):
        dit = copy.deepcopy(plain[0])
        speed_up(dit, fp8=True, backend=backend)
        runs.append(rollout(dit))
    cosine = torch.cosine_similarity(runs[0].flatten(), plain[1].flatten(), 0)
    assert error(runs[0], plain[1]) < 0.1 and cosine > 0.995
    assert error(runs[1], runs[0]) < 0.02  # rounding differs in a few values


def test_all_blocks_share_the_compiled_code(plain):
    torch._dynamo.reset()
    counter = CompileCounter()
    dit = copy.deepcopy(plain[0])
    speed_up(dit, backend=counter)
    rollout(dit)
    assert counter.frame_count == 4  # two halves of a block, the injection, and what sound is prepared to
    torch._dynamo.reset()


def test_the_real_rotation_equals_the_complex_one():
    by = rotation_of(block_positions(17, 3, 2, 4), 24)
    x = torch.randn(1, 24, 2, 24, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(_rotate(x, *_wide(by)), rotate(x, by), atol=1e-5)


def test_only_remembering_leaves_the_latents_alone(plain):
    dit = copy.deepcopy(plain[0])
    speed_up(dit, backend=None)
    clip = Clip.make(SMALL, 1, 1)
    caches = []
    with torch.inference_mode():
        for model in (plain[0], dit):
            stream, latents = Stream(model, clip, STREAM), clip.noisy[:, 0]
            stream.begin(0, 7)
            out = model(
                latents,
                model.step_modulation(torch.tensor(10.0)),
                stream.text,
                model.audio_condition(clip.audio[:, None, :, :, :12]),
                model.pose(None, 3, 4, 8),
                model.block_rotation(0, 3, 4, 8),
                stream.rings[0],
                only_remember=True,
            )
            assert out is latents
            caches.append(stream.rings[0])
    assert error(caches[1].k, caches[0].k) < 2e-5 and error(caches[1].v, caches[0].v) < 2e-5

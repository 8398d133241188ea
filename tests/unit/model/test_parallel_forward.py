"""Training sees exactly what streaming shows: the parallel pass equals the rings, for both history policies."""

from __future__ import annotations

import pytest
import torch

from model.config import StreamConfig
from model.training.parallel_forward import parallel_forward
from tests.unit.model.small_dit import FRAMES, HEIGHT, SMALL, WIDTH, Clip, Stream, build

BLOCKS, BATCH = 6, 2
DISTANCE = 8


def _times(stream: StreamConfig) -> torch.Tensor:
    return torch.tensor([[stream.reference_time(b * FRAMES, DISTANCE) for b in range(BLOCKS)]]).expand(BATCH, -1)


@pytest.mark.parametrize("ring", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("framepack", [False, True])
def test_same_step_history_equals_the_ring(ring: int, framepack: bool) -> None:
    dit = build(enable_framepack=framepack)
    clip = Clip.make(SMALL, BATCH, BLOCKS)
    stream = StreamConfig(ring_blocks=ring)
    motion = clip.motion if framepack else None
    sigma = torch.linspace(1, 0.2, BLOCKS).expand(BATCH, -1)
    with torch.no_grad():
        path = Stream(dit, clip, stream)
        wanted = []
        for b in range(BLOCKS):
            path.begin(b, DISTANCE)
            wanted.append(path.run(b, clip.noisy[:, b], sigma[0, b].item()))
            path.advance()
        got = parallel_forward(
            dit, clip.noisy, sigma, clip.ref, clip.audio, clip.pose, clip.context, _times(stream), ring, motion=motion
        )
    wanted = torch.stack(wanted, 1)
    assert wanted.std() > 0.3
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_clean_history_equals_the_ring(ring: int) -> None:
    dit, clip = build(), Clip.make(SMALL, BATCH, BLOCKS)
    stream = StreamConfig(ring_blocks=ring, history="clean", clean_sigma=0.01)
    clean = torch.randn(clip.noisy.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        path = Stream(dit, clip, stream)
        wanted = []
        for b in range(BLOCKS):
            path.begin(b, DISTANCE)
            path.run(b, clip.noisy[:, b], 1.0)
            wanted.append(path.run(b, clip.noisy[:, b], 0.5))
            path.run(b, clean[:, b], stream.clean_sigma)
            path.advance()
        got = parallel_forward(
            dit,
            clip.noisy,
            torch.full((BATCH, BLOCKS), 0.5),
            clip.ref,
            clip.audio,
            clip.pose,
            clip.context,
            _times(stream),
            ring,
            history=(clean, torch.full((BATCH, BLOCKS), stream.clean_sigma)),
        )
    torch.testing.assert_close(got, torch.stack(wanted, 1), atol=1e-4, rtol=1e-5)


def test_later_blocks_do_not_reach_earlier_ones() -> None:
    dit, clip = build(), Clip.make(SMALL, 1, BLOCKS)
    times = _times(StreamConfig())[:1]

    def run(noisy: torch.Tensor) -> torch.Tensor:
        sigma = torch.full((1, BLOCKS), 0.5)
        return parallel_forward(dit, noisy, sigma, clip.ref, clip.audio, clip.pose, clip.context, times, 3)

    with torch.no_grad():
        before = run(clip.noisy)
        changed = clip.noisy.clone()
        changed[:, 2] += 1
        after = run(changed)
    moved = (after - before).abs().amax((0, 2, 3, 4, 5)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True]


def test_gradients_reach_every_parameter_under_autocast() -> None:
    dit, clip = build(), Clip.make(SMALL, BATCH, BLOCKS)
    with torch.autocast("cpu", torch.bfloat16):
        out = parallel_forward(
            dit,
            clip.noisy,
            torch.full((BATCH, BLOCKS), 0.5),
            clip.ref,
            clip.audio,
            clip.pose.expand(-1, -1, -1, HEIGHT, WIDTH),
            clip.context,
            _times(StreamConfig()),
            3,
        )
    assert out.dtype == torch.float32
    out.square().mean().backward()
    # Row 2 of the mask embedding belongs to motion tokens; the last block's condition output is never used.
    missing = [n for n, p in dit.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_pass_compiles_to_one_graph() -> None:
    dit, clip = build(), Clip.make(SMALL, BATCH, 4)
    args = (
        clip.noisy,
        torch.full((BATCH, 4), 0.5),
        clip.ref,
        clip.audio,
        clip.pose,
        clip.context,
        torch.full((BATCH, 4), 30),
        3,
    )
    compiled = torch.compile(parallel_forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(dit, *args), parallel_forward(dit, *args), atol=1e-5, rtol=1e-5)

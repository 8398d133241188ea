"""Schedules, steps and seeded noise."""

from __future__ import annotations

import pytest
import torch

from model.sampler import NoiseSource, euler_step, published_sigmas, timestep

SHAPE = (4, 3, 8, 8)


def test_published_four_steps() -> None:
    assert published_sigmas(4) == pytest.approx((1, 0.85769230, 0.60215056, 0.00892857), abs=1e-7)
    assert timestep(published_sigmas(4)[1]).item() == pytest.approx(857.692322, abs=1e-4)
    with pytest.raises(ValueError, match="steps is 0"):
        published_sigmas(0)


def test_following_the_true_velocity_arrives_at_the_data() -> None:
    data, noise = torch.randn(2, 1, *SHAPE)
    levels, x = [1.0, 0.75, 0.5, 0.25, 0.0], noise
    for sigma, following in zip(levels, levels[1:], strict=False):
        x = euler_step(x, noise - data, sigma, following)
        torch.testing.assert_close(x, (1 - following) * data + following * noise)


def test_noise_depends_on_seed_and_block_only() -> None:
    a, b = NoiseSource(5, SHAPE), NoiseSource(5, SHAPE)
    late = b.block(1_000_000)
    assert torch.equal(a.block(3), b.block(3))
    assert torch.equal(a.block(1_000_000), late)
    for other in (a.block(4), NoiseSource(6, SHAPE).block(3), NoiseSource(-5, SHAPE).block(3)):
        assert not torch.equal(a.block(3), other)
    many = torch.cat([a.block(i) for i in range(40)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
    correlation = torch.corrcoef(many.flatten(1))
    assert correlation.fill_diagonal_(0).abs().max() < 0.2


def test_clips_are_drawn_as_published() -> None:
    """Channels, then time, seeded with seed + clip; blocks are slices along time, in any order."""
    noise = NoiseSource(5, SHAPE, "clip", clip_blocks=2)
    for block in (5, 4, 0):
        clip = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(5 + block // 2))
        first = 3 * (block % 2)
        assert torch.equal(noise.block(block), clip[None, :, first : first + 3])


def test_sink_distance_is_seeded_and_spans_its_range() -> None:
    draws = [NoiseSource(5, SHAPE).sink_distance(i, 4, 30) for i in range(600)]
    assert draws == [NoiseSource(5, SHAPE).sink_distance(i, 4, 30) for i in range(600)]
    assert (min(draws), max(draws)) == (4, 30)

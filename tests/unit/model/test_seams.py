"""The seam filter fades small residue, leaves motion, and does nothing where it has no past."""

import torch

from model.seams import soften_seam


def video(level: float = 0.0) -> torch.Tensor:
    return torch.full((1, 3, 12, 8, 8), level)


def test_without_a_past_or_switched_off_nothing_changes():
    x = torch.randn(1, 3, 12, 8, 8)
    assert torch.equal(soften_seam(x, None, 10, 0.06)[0], x)
    out, last = soften_seam(x, torch.zeros(1, 3, 1, 8, 8), 0, 0.06)
    assert torch.equal(out, x) and torch.equal(last, x[:, :, -1:])


def test_a_small_jump_fades_out_over_the_given_pictures():
    before = torch.full((1, 3, 1, 8, 8), 0.02)
    out, _ = soften_seam(video(), before, 10, 0.06)
    steps = out[0, 0, :, 0, 0]
    assert 0.01 < steps[0] < 0.02
    assert (steps.diff() <= 0).all() and steps[10:].abs().max() == 0


def test_a_large_jump_is_motion_and_stays():
    before = torch.full((1, 3, 1, 8, 8), 0.8)
    out, _ = soften_seam(video(), before, 10, 0.06)
    assert out.abs().max() < 1e-6

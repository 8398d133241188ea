"""Sizes and pixels of prepared portraits against the published rules."""

from __future__ import annotations

import torch

from model.picture_size import short_side_fit, size_within_area
from model.portrait import fit_portrait, fit_short_side
from tests.parity.golden import close

TWO_LEVELS = 2 / 127.5


def test_sizes(component) -> None:
    cases = component("image").info["size_cases"]
    assert cases
    for case in cases:
        a, b = map(int, case["area"].split("*"))
        out = size_within_area(case["in_h"], case["in_w"], a * b)
        assert out == (case["out_h"], case["out_w"]), case
        fit = short_side_fit(case["in_h"], case["in_w"], *out)
        assert (fit.height, fit.width) == (case["resized_h"], case["resized_w"]), case
        assert any(fit.pad) == case["black_bars"], case


def test_pixels(component) -> None:
    fixture = component("image")
    assert fixture.info["images"]
    for i, info in enumerate(fixture.info["images"]):
        image = fixture[f"image_{i}"]
        assert tuple(image.shape[:2]) == (info["in_h"], info["in_w"])
        height, width = size_within_area(info["in_h"], info["in_w"], fixture.info["target_area"])
        assert (height, width) == (info["out_h"], info["out_w"])
        wanted = fixture[f"pixels_{i}"]
        fitted = torch.from_numpy(fit_short_side(image.numpy(), width, height)).permute(2, 0, 1)
        close(fitted.float() / 127.5 - 1, wanted, TWO_LEVELS, 0)
        black = (wanted == -1).all(0)
        assert int(black.all(0).sum()) == info["black_columns"] and int(black.all(1).sum()) == info["black_rows"]
        covered = fit_portrait(image.numpy(), width, height)
        assert covered.shape == (height, width, 3)
        assert not (covered == 0).all(2).all(0).any() and not (covered == 0).all(2).all(1).any()

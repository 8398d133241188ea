"""Rotary factors and rotation against the published implementation."""

from __future__ import annotations

import numpy as np
import torch

from model.rope import grid, rotate, rotation_of
from tests.parity.golden import close


def test_factors_and_rotation(golden) -> None:
    fixture = golden("a_rope")
    assert fixture.info["cases"]
    for case in fixture.info["cases"]:
        name = case["name"]
        positions = np.concatenate([grid(g["start"], g["end"], g["target"]) for g in case["groups"]])
        assert len(positions) == case["tokens"], name
        exact = rotation_of(positions, case["head_dim"])
        rounded = rotation_of(positions, case["head_dim"], rounded=True)
        close(exact.cos, fixture[f"{name}.cos"], 1e-6, 0)
        close(exact.sin, fixture[f"{name}.sin"], 1e-6, 0)
        for part in ("cos", "sin"):
            if f"{name}.{part}_half" in fixture:
                wanted = fixture[f"{name}.{part}_half"]
                assert wanted.dtype == torch.float16
                step = 2.0**-11  # one float16 step below 1
                close(getattr(rounded, part), wanted.float(), step, 0)
                assert (getattr(rounded, part) == wanted.float()).float().mean() > 0.99
        if f"{name}.x" in fixture:
            x = fixture[f"{name}.x"]
            for by, wanted in ((exact, f"{name}.y"), (rounded, f"{name}.y_half")):
                close(rotate(x, by), fixture[wanted], 2e-6 if by is exact else 1e-5, 1e-5)
                close(rotate(x, by._replace(factor=None)), fixture[wanted], 2e-6 if by is exact else 1e-5, 1e-5)

"""The encoder's bench measures real packets."""

from __future__ import annotations

import pytest

from server.bench_encode import EncodeBench, measure, swaying
from server.config import EncodeConfig
from server.errors import ConfigError


def test_a_row_holds_what_the_encoder_really_did() -> None:
    pictures = swaying(128, 96, 10)
    assert pictures[0].shape == (96, 128, 3)
    assert (pictures[0] != pictures[3]).any(), "it moves"
    row = measure(pictures, EncodeConfig(bitrate_kbps=300, min_bitrate_kbps=100, gop_s=0.4), 30)
    assert row["size"] == "128x96"
    assert 0 < row["core_ms"] <= row["core_ms_p95"]  # type: ignore[operator]
    assert row["keyframe_bytes"] > row["picture_bytes"] > 0  # type: ignore[operator]
    assert 50 < row["kbps"] < 600  # type: ignore[operator]


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="--pictures is 1"):
        EncodeBench(pictures=1)

"""The figures that the tiny checkpoint must reach on two cores, by `avatarcast bench live` itself.

Not part of the default suite: times mean something only on a machine that does nothing else. `make soak` runs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_tiny_keeps_its_promises(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "server.cli", "bench", "live", "--config", "tiny", "--seconds", "60", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    with capsys.disabled():
        print("\n" + run.stdout)
    figures = json.loads(run.stdout.strip().splitlines()[-1])
    assert figures["rtf_with_encode"] <= 0.65
    assert figures["mouth_latency_ms"]["p95"] <= 1200
    assert figures["rss_mb"]["total"] <= 1500
    assert figures["underruns"] == 0
    assert figures["loop_lag_p99_ms"] < 20
    assert abs(figures["av_drift_ms"]) <= 40

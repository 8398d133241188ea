"""The parity tests read every size from their fixtures: a second golden folder of other sizes passes them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.second_set import write_second_set

HERE = Path(__file__).parent
WITHOUT_FIXTURES = ("test_live.py", "test_own.py", "test_second_set.py", "test_steps.py")


@pytest.mark.soak
def test_a_folder_of_other_sizes_passes(tmp_path: Path) -> None:
    """Recorded by a transformer that shares no code with ours, and by the library's own components."""
    write_second_set(tmp_path / "golden")
    command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider", "-rs"]
    command += [f"--ignore={HERE / name}" for name in WITHOUT_FIXTURES]
    run = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env=os.environ | {"GOLDEN_DIR": str(tmp_path / "golden"), "CI": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout[-2000:])
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout and "failed" not in run.stdout

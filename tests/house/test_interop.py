"""The table of counterparts says only what a test stands behind."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = ["counterpart", "version", "direction", "TTFF", "fps", "A/V offset", "besides", "date", "test"]


def rows() -> list[dict[str, str]]:
    lines = (ROOT / "docs/interop.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in table[2:]]


def test_every_row_has_its_figures_a_date_and_a_test() -> None:
    found = rows()
    assert len(found) >= 15
    for row in found:
        assert all(row.values()), f"{row['counterpart']}: say - where there is nothing to measure"
        date.fromisoformat(row["date"])
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row["test"])
        assert tests, row["counterpart"]
        for name in tests:
            assert (ROOT / name).is_file(), f"{row['counterpart']}: {name} does not exist"


def test_every_counterpart_that_is_tested_has_a_row() -> None:
    named = " ".join(row["test"] for row in rows())
    for path in (ROOT / "tests/interop").glob("test_*.py"):
        assert path.name in named, f"docs/interop.md has no row for {path.name}"

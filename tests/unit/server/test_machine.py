"""A machine that cannot keep up is told so in one sentence with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import StartError
from server.machine import Machine, check_machine, inspect_machine


def machine(**changes: object) -> Machine:
    values = {"python": (3, 12), "architecture": "x86_64", "cores": 4, "has_avx2": True} | changes
    return Machine(**values)  # type: ignore[arg-type]


def fake_root(folder: Path, *, flags: str = "fpu sse2 avx avx2 fma", quota: str = "max 100000") -> Path:
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")
    (folder / "sys/fs/cgroup").mkdir(parents=True)
    (folder / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    return folder


def test_a_good_machine_passes() -> None:
    check_machine(machine())
    check_machine(machine(cores=2))
    check_machine(machine(architecture="aarch64", has_avx2=None))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"has_avx2": False}, ["no AVX2", "--allow_slow"]),
        ({"cores": 1}, ["one processor core", "second one", "--allow_slow"]),
        ({"python": (3, 10)}, ["Python 3.10", "3.11"]),
    ],
)
def test_a_weak_machine_is_told_the_remedy(changes: dict, parts: list[str]) -> None:
    with pytest.raises(StartError) as caught:
        check_machine(machine(**changes))
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_avx2_is_read_from_the_processors_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert inspect_machine(fake_root(tmp_path)).has_avx2 is True
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu sse2 avx\n")
    assert inspect_machine(tmp_path).has_avx2 is False
    (tmp_path / "proc/cpuinfo").unlink()
    assert inspect_machine(tmp_path).has_avx2 is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert inspect_machine(tmp_path).has_avx2 is None


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("100000 100000", 1), ("250000 100000", 2), ("x", 8)])
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert inspect_machine(fake_root(tmp_path, quota=quota)).cores == cores


def test_this_machine_can_be_looked_at() -> None:
    found = inspect_machine()
    assert found.cores >= 1
    assert found.python >= (3, 11)

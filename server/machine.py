"""Whether this machine can run the embedded checkpoint in real time: its instructions and its cores."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from server.errors import StartError

MIN_PYTHON = (3, 11)
MIN_CORES = 2
_BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found."""

    python: tuple[int, int]
    architecture: str
    cores: int
    """Whole cores this process may use: affinity and the container's quota counted."""
    has_avx2: bool | None
    """None where the question does not apply (not x86) or cannot be answered."""


def inspect_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine.

    Args:
        root: where /proc and /sys lie; tests hand in another.
    """
    architecture = platform.machine().lower()
    return Machine(
        python=sys.version_info[:2],
        architecture=architecture,
        cores=_cores(root),
        has_avx2=_has_avx2(root) if architecture in ("x86_64", "amd64") else None,
    )


def check_machine(machine: Machine) -> None:
    """Refuse a machine that cannot keep up.

    Raises:
        StartError: one sentence with what is missing and the remedy.
    """
    if machine.python < MIN_PYTHON:
        found = ".".join(map(str, machine.python))
        raise StartError(f"this is Python {found}; avatarcast needs 3.11 or newer, install one and set up again")
    if machine.has_avx2 is False:
        raise StartError(
            "this processor has no AVX2, without which the model is many times too slow; use another machine (on a"
            " virtual one, pass the host's processor through), or try anyway with --allow_slow"
        )
    if machine.cores < MIN_CORES:
        raise StartError(
            "this machine gives one processor core, but model and server need two to keep up; give the container or"
            " virtual machine a second one, or try anyway with --allow_slow"
        )


def calm_numpy() -> None:
    """Keep numpy's own arithmetic on one thread in this process; call it before numpy is imported.

    The server's matrices are small. A pool of threads for them only costs start-up and makes the event loop wait for
    threads that the model has pushed aside. The setting is read on import and taken back, so children do not get it.
    """
    before = os.environ.get(_BLAS_VARIABLE)
    os.environ[_BLAS_VARIABLE] = "1"
    import numpy  # noqa: F401

    if before is None:
        del os.environ[_BLAS_VARIABLE]
    else:
        os.environ[_BLAS_VARIABLE] = before


def _cores(root: Path) -> int:
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        allowed = os.cpu_count() or 1
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, math.floor(int(quota) / int(period) + 0.25)))
    except (OSError, ValueError):
        pass
    return allowed


def _has_avx2(root: Path) -> bool | None:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = next((line for line in text.splitlines() if line.startswith("flags")), None)
    return None if flags is None else " avx2" in flags

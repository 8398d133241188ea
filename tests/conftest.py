"""Shared by all tests: what the program keeps on disk for its user goes to a folder of the run's own.

Tests of folders that judge real time are marked `alone`; `make test` runs them after the others, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ALONE = tuple(Path(__file__).parent / name for name in ("e2e", "interop"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield

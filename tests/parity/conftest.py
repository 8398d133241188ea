"""The golden folder as pytest fixtures; absent: skip, but fail in CI. Unread tensors fail the module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.parity.golden import Fixture, golden_dir


@pytest.fixture(scope="session")
def dit_folder() -> Path:
    folder = golden_dir() / "dit"
    if not folder.is_dir():
        message = f"no golden fixtures at {folder}: set GOLDEN_DIR to the folder that holds `dit`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest, dit_folder: Path) -> Iterator[Callable[[str], Fixture]]:
    """Load fixtures by name; after a whole module passed, all their tensors must have been read."""
    opened: dict[str, Fixture] = {}

    def load(name: str) -> Fixture:
        if name not in opened:
            opened[name] = Fixture(dit_folder, name)
        return opened[name]

    failed = request.session.testsfailed
    yield load
    selected = request.config.option.keyword or any("::" in a for a in request.config.args)
    if not selected and request.session.testsfailed == failed:
        unread = {name: sorted(f.unread) for name, f in opened.items() if f.unread and name != "weights"}
        assert not unread, f"recorded but never compared: {unread}"


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield

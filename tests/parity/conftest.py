"""The golden folder as pytest fixtures; absent: skip, but fail in CI. Unread tensors fail the module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.parity.golden import Component, Fixture, golden_dir


def _folder(name: str) -> Path:
    folder = golden_dir() / name
    if not folder.is_dir():
        message = f"no golden fixtures at {folder}: set GOLDEN_DIR to the folder that holds `{name}`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def dit_folder() -> Path:
    return _folder("dit")


@pytest.fixture(scope="session")
def components_folder() -> Path:
    return _folder("components")


def _opener(request: pytest.FixtureRequest, folder: Path, kind: type[Fixture]) -> Iterator[Callable[[str], Fixture]]:
    opened: dict[str, Fixture] = {}

    def load(name: str) -> Fixture:
        if name not in opened:
            opened[name] = kind(folder, name)
        return opened[name]

    failed = request.session.testsfailed
    yield load
    selected = request.config.option.keyword or any("::" in a for a in request.config.args)
    if not selected and request.session.testsfailed == failed:
        unread = {name: sorted(f.unread) for name, f in opened.items() if f.unread and name != "weights"}
        assert not unread, f"recorded but never compared: {unread}"


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest, dit_folder: Path) -> Iterator[Callable[[str], Fixture]]:
    """Load fixtures by name; after a whole module passed, all their tensors must have been read."""
    yield from _opener(request, dit_folder, Fixture)


@pytest.fixture(scope="module")
def component(request: pytest.FixtureRequest, components_folder: Path) -> Iterator[Callable[[str], Fixture]]:
    """The same for the parts of the `components` folder."""
    yield from _opener(request, components_folder, Component)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield

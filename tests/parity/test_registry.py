"""No recorded fixture goes unread."""

from __future__ import annotations

from pathlib import Path

from tests.parity.golden import COMPONENT_READERS, READERS


def test_every_recorded_fixture_has_a_reader(dit_folder: Path) -> None:
    recorded = {f.stem for f in dit_folder.iterdir() if f.suffix in (".json", ".safetensors")}
    assert recorded - set(READERS) == set()


def test_every_reader_exists_and_names_its_fixture() -> None:
    here = Path(__file__).parent
    for fixture, module in READERS.items():
        if fixture != "weights":
            assert f'"{fixture}"' in (here / f"{module}.py").read_text(), f"{module} does not read {fixture}"


def test_every_recorded_component_has_a_reader(components_folder: Path) -> None:
    recorded = {f.stem.removesuffix("_io").removesuffix("_weights") for f in components_folder.iterdir()}
    assert recorded - {"README"} - set(COMPONENT_READERS) == set()


def test_every_component_reader_names_its_fixture() -> None:
    here = Path(__file__).parent
    for fixture, module in COMPONENT_READERS.items():
        assert f'component("{fixture}")' in (here / f"{module}.py").read_text(), f"{module} does not read {fixture}"

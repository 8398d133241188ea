"""An adapter by path or by its name on the hub, whose download function is a stub here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from model.adapter_files import adapter_file
from model.errors import CheckpointError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was asked of the hub; it answers with `tmp_path/hub`."""
    calls: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "hub").mkdir()
    return calls


def test_a_name_that_is_no_path_is_fetched(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "hub" / "liveavatar.safetensors").touch()
    assert adapter_file("someone/Live-Avatar") == tmp_path / "hub" / "liveavatar.safetensors"
    assert asked == [{"name": "someone/Live-Avatar", "allow_patterns": ["*.safetensors"], "local_files_only": False}]
    adapter_file("someone/Live-Avatar", may_fetch=False)
    assert asked[-1]["local_files_only"]


def test_paths_are_left_alone(asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b", "a/c.safetensors", str(tmp_path / "none"), "./a", "one", "a/b/c"):
        assert adapter_file(name) == Path(name)
    assert not asked


@pytest.mark.parametrize("count", [0, 2])
def test_a_repository_holds_one_file(asked: list[dict[str, Any]], tmp_path: Path, count: int) -> None:
    for i in range(count):
        (tmp_path / "hub" / f"{i}.safetensors").touch()
    with pytest.raises(CheckpointError, match=f"repository a/b holds {count} .safetensors files, not one; give"):
        adapter_file("a/b")


def test_without_a_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host.\nPlease check your connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError) as caught:
        adapter_file("a/b")
    assert str(caught.value) == (
        "adapter a/b is no path, and the hub does not give it (no route to host); check the name, or give its file"
    )
    with pytest.raises(CheckpointError, match="adapter a/b is no path and was not fetched yet; start once, or name"):
        adapter_file("a/b", may_fetch=False)

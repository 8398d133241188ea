"""A model that the processor's memory cannot hold is refused in one sentence, before anything is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import model.worker
from model.forge import forge
from model.memory import GB
from model.published import forged_config
from model.weights import build_modules
from server import host_memory
from server.config import ModelSection
from server.errors import StartError
from server.host_memory import check_host, host_bytes, least_bytes
from tests.unit.server.test_cli import GENERATE, folder, run

__all__ = ["folder"]


@pytest.fixture
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 16 * GB)
    monkeypatch.setattr("server.planning.installed_gpus", lambda: [])
    monkeypatch.setattr(model.worker, "load", lambda spec: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--ckpt_dir", "random:14b"), "random:14b at 704x384 needs at least 8"),
        (("--config", "tiny", "--size", "4096x4096"), "tiny at 4096x4096 needs at least "),
    ],
)
def test_generate_refuses_it(
    folder: Path, laptop: None, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], what: str
) -> None:
    assert run(*GENERATE, *words, "--out", "film.mp4") == 2
    (sentence,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("avatarcast: "))
    assert what in sentence and "this machine has 16.0 GB; use a GPU" in sentence
    assert not Path("film.mp4").exists()


def test_what_fits_passes(laptop: None) -> None:
    for checkpoint in ("tiny", "random:mini"):
        check_host(ModelSection(checkpoint=checkpoint, size="256x256"))


def test_a_folder_is_counted_by_its_texts_and_a_damaged_one_is_the_loaders(tmp_path: Path, laptop: None) -> None:
    forge(tmp_path / "mini", "mini")
    section = ModelSection(checkpoint=str(tmp_path / "mini"), size="64x64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_memory, "host_bytes", lambda: 1e6)
        with pytest.raises(StartError, match="mini at 64x64 needs at least"):
            check_host(section)
        (tmp_path / "mini" / "config.json").unlink()
        check_host(section)
        shutil.rmtree(tmp_path / "mini")
        check_host(section)


def test_it_is_less_than_what_is_really_held() -> None:
    """Of random:mini at 64x64, parameters alone as they are stored."""
    import torch

    with torch.device("meta"):
        modules = build_modules(forged_config("mini"))
    stored = sum(2 * p.numel() for name in ("dit", "text") for p in modules[name].parameters())
    needed = least_bytes(ModelSection(checkpoint="random:mini", size="64x64"))
    assert stored < needed < 30e6


def test_a_container_has_its_limit(tmp_path: Path) -> None:
    whole = host_bytes(tmp_path)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for text, have in (("max", whole), ("1000000", 1e6), (str(2**63), whole)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(text)
        assert host_bytes(tmp_path) == have

"""What the driver says of the cards, with a stand-in for its program."""

from pathlib import Path

import pytest

from model.gpus import installed_gpus, memory_used

ANSWER = """#!/bin/sh
case "$1" in
*memory.used*) echo "0, GPU-a, NVIDIA H100, 80000, 5000"; echo "1, GPU-c, NVIDIA H100, 80000, 700";;
*) echo "0, GPU-a, NVIDIA H100, 80000, 75000";;
esac
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(ANSWER)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
def test_used_memory_is_told_in_bytes_by_pytorchs_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_used() == {"cuda:0": 5000 * 2**20, "cuda:1": 700 * 2**20}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c")
    assert memory_used() == {"cuda:0": 700 * 2**20}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert memory_used() == {}


@pytest.mark.usefixtures("driver")
def test_free_memory_is_what_a_card_can_give() -> None:
    assert [(card.name, card.usable) for card in installed_gpus()] == [("H100", 75000 * 2**20)]


def test_without_a_driver_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert memory_used() == {} and installed_gpus() == []

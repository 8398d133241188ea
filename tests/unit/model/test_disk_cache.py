"""Encoded prompts and portraits on disk: found again, never trusted blindly, bounded, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from model.disk_cache import DiskCache, cache_folder
from model.forge import forge
from model.released import load_released
from model.survey import TEXT
from model.wan_vae import WanVAE

CPU = torch.device("cpu")


def kept(cache: DiskCache, content: str, value: float = 1.0, size: int = 100) -> tuple[torch.Tensor, bool]:
    """The value, and whether it was computed."""
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.full((size,), value, dtype=torch.bfloat16)

    return cache.get("prompt", content.encode(), compute, CPU), bool(calls)


def test_a_value_is_computed_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert kept(DiskCache(folder, 10**6, "a"), "smile")[1]
    value, computed = kept(DiskCache(folder, 10**6, "a"), "smile", 2.0)
    assert not computed and torch.equal(value, torch.ones(100, dtype=torch.bfloat16))
    assert kept(DiskCache(folder, 10**6, "a"), "frown")[1], "other content"
    assert kept(DiskCache(folder, 10**6, "b"), "smile")[1], "another checkpoint"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_written_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(tmp_path, 10**6, "a")
    kept(cache, "smile")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    broken = {"cut": data[:-20], "flipped": data[:-1] + b"\x01", "empty": b"", "foreign": b"x" * 500}
    path.write_bytes(broken[damage])
    value, computed = kept(cache, "smile", 3.0)
    assert computed and bool((value == 3).all()) and "is ignored and written anew" in caplog.text
    value, computed = kept(cache, "smile", 4.0)
    assert not computed and bool((value == 3).all())


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3000, "a")
    paths: dict[str, Path] = {}
    for age, name in enumerate(("one", "two", "three")):
        before = set(tmp_path.iterdir())
        kept(cache, name, size=400)
        (paths[name],) = set(tmp_path.iterdir()) - before
        os.utime(paths[name], (1000 + age, 1000 + age))
    assert not kept(cache, "one")[1], "which makes it the newest"
    kept(cache, "four", size=400)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3000
    assert not kept(cache, "one", size=400)[1] and kept(cache, "two", size=400)[1]


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = DiskCache(tmp_path / "file" / "cache", 10**6, "a")
    assert bool((kept(cache, "smile")[0] == 1).all()) and "cannot be kept" in caplog.text


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / "avatarcast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("auto") == tmp_path / "home" / ".cache" / "avatarcast"
    assert cache_folder("off") is None and cache_folder("/x") == Path("/x")


@torch.inference_mode()
def test_a_known_prompt_and_portrait_need_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = tmp_path / "mini", {"cache": tmp_path / "cache", "cache_bytes": 10**8, "defer_text": True}
    forge(folder, "mini")
    image, prompt = torch.rand(1, 3, 32, 32) * 2 - 1, "a woman speaks"
    wanted = load_released(folder)[1]
    first = load_released(folder, **options)[1]
    assert first["text"].shared.weight.is_meta, "nothing has asked for it yet"
    for parts in (wanted, first):
        parts["context"], parts["still"] = parts["text"].encode(prompt), parts["vae"].still(image)
    assert not first["text"].shared.weight.is_meta
    monkeypatch.setattr(WanVAE, "encode", None)
    again = load_released(folder, **options)[1]
    context, still = again["text"].encode(f"  {prompt} "), again["vae"].still(image)
    assert again["text"].shared.weight.is_meta, "11 GB of the published model stay on disk"
    for parts in (wanted, first):
        assert torch.equal(parts["context"], context) and torch.equal(parts["still"].past, still.past)
        assert torch.equal(parts["still"].shown, still.shown)
    os.utime(folder / TEXT)
    other = load_released(folder, **options)[1]
    assert torch.equal(other["text"].encode(prompt), context) and not other["text"].shared.weight.is_meta

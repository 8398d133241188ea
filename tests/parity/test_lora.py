"""Adapter merging against the published loader."""

from __future__ import annotations

import pytest
import torch

from model.errors import CheckpointError
from model.lora import TARGETS, merge_lora, target_modules
from tests.parity.golden import close


def test_merge(golden) -> None:
    fixture = golden("k_lora")
    info = fixture.info
    base, adapter, alpha = fixture.under("base."), fixture.under("lora."), info["alpha"]
    assert tuple(info["target_suffixes"]) == TARGETS
    assert info["scale"] == alpha / info["rank"]
    covered = {name.removesuffix(".weight") for name in info["changed"]}
    assert set(target_modules(base)) == covered | set(info["missing_in_file"])

    for prefix in info["file_prefix_variants"]:
        for shorten in (False, True):
            named = {prefix + (k.replace(".default", "") if shorten else k): v for k, v in adapter.items()}
            merged = merge_lora(base, named, alpha, complete=False)
            assert {k for k in base if not torch.equal(merged[k], base[k])} == set(info["changed"])
            for name, wanted in fixture.under("merged.").items():
                close(merged[name], wanted, 1e-6, 0)

    narrow = merge_lora({k: v.bfloat16() for k, v in base.items()}, adapter, alpha, complete=False)
    for name, wanted in fixture.under("merged_bf16.").items():
        assert narrow[name].dtype == torch.bfloat16
        close(narrow[name].float(), wanted.float(), 2e-2, 0)

    if info["missing_in_file"]:
        with pytest.raises(CheckpointError, match="lacks"):
            merge_lora(base, adapter, alpha)

"""The hashed prompt encoder reads any string."""

from __future__ import annotations

import pytest
import torch

from model.config import TextConfig
from model.text import HashTextEncoder, words


@pytest.fixture(scope="module")
def encoder() -> HashTextEncoder:
    torch.manual_seed(0)
    return HashTextEncoder(TextConfig()).eval().requires_grad_(False)


def test_words_ignore_case_punctuation_and_spacing() -> None:
    assert words("A  Happy, calm_face!") == words("a happy calm face") == ["a", "happy", "calm", "face"]
    assert words("e\u0301te\u0301") == words("été")
    assert words("微笑 hello") == ["微", "笑", "hello"]
    assert words("  ?! ") == []


def test_output_is_the_words_alone(encoder: HashTextEncoder) -> None:
    assert encoder.encode("a happy face").shape == (1, 3, 128)
    assert encoder.encode("").shape == (1, 0, 128)
    assert encoder.encode("word " * 99).shape == (1, 16, 128)
    assert encoder.cut("word " * 16 + "Not read!") == "not read" and encoder.cut("a happy face") == ""
    assert encoder.encode("\U0001f600").shape == (1, 0, 128)


def test_batches_equal_single_prompts_and_padding_is_zero(encoder: HashTextEncoder) -> None:
    prompts = ["a happy face", "", "stern and calm today"]
    ids = encoder.token_ids(prompts)
    assert ids.min() == 0
    assert ids.max() < 2048
    together = encoder(ids)
    assert together.isfinite().all()
    for row, prompt in zip(together, prompts, strict=True):
        alone = encoder.encode(prompt)[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert not row[len(alone) :].any()


def test_words_and_their_order_count(encoder: HashTextEncoder) -> None:
    base = encoder.encode("calm happy")
    assert (base - encoder.encode("happy calm")).abs().max() > 0.01
    assert (base - encoder.encode("calm sad")).abs().max() > 0.1

"""Prompts: cleaned, tokenised from a local folder, cut with a notice, encoded without padding."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from model.errors import CheckpointError, UnsupportedError
from model.umt5 import UMT5Text, clean, load_tokenizer
from tests.unit.model.published_model import config, write_tokenizer


@pytest.fixture
def text(tmp_path: Path) -> UMT5Text:
    torch.manual_seed(0)
    text = UMT5Text(config().text).eval().requires_grad_(False)
    text.tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    return text


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a\n\twoman   speaks ", "a woman speaks"),
        ("cafÃ©", "café"),
        ("A &amp;amp; B", "A & B"),
        ("Case, and punctuation!", "Case, and punctuation!"),
        ("", ""),
    ],
)
def test_clean(prompt: str, cleaned: str) -> None:
    assert clean(prompt) == cleaned


def test_without_the_library_of_repairs_plain_prompts_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean("a woman  speaks") == "a woman speaks"
    with pytest.raises(UnsupportedError, match="the prompt 'café' needs the package ftfy"):
        clean("café")


def test_tokens_end_with_the_mark(text: UMT5Text) -> None:
    assert text.tokens("a woman &amp;amp; cafÃ©").ids.tolist() == [3, 4, 6, 7, 1]
    assert text.tokens(" ").ids.tolist() == [1]


def test_context_is_as_long_as_the_prompt(text: UMT5Text) -> None:
    assert text.encode("a woman speaks").shape == (1, 4, 24)
    assert text.encode("").shape == (1, 1, 24)


def test_padding_changes_nothing(text: UMT5Text) -> None:
    ids = text.tokens("a woman speaks").ids
    padded = torch.nn.functional.pad(ids, (0, 12))[None]
    torch.testing.assert_close(text(padded, (padded != 0).long())[:, :4], text.encode("a woman speaks"))


def test_a_long_prompt_is_cut_and_says_so(text: UMT5Text, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "model.umt5"):
        context = text.encode("a " * 40)
    assert context.shape == (1, 16, 24)
    assert "the prompt has 41 tokens; the last 25 are not read" in caplog.text
    tokens = text.tokens("a " * 40)
    assert tokens.num_cut == 25 and tokens.ids[-1] == 1
    ours = text.tokenizer("a " * 40, truncation=True, max_length=16)["input_ids"]
    assert tokens.ids.tolist() == ours
    assert text.cut("a " * 16 + "woman speaks") == "a woman speaks" and text.cut("a woman speaks") == ""


def test_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        UMT5Text(config().text).encode("a")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)

"""The published prompt encoder (umT5) around the library's class: cleaning, tokens, embeddings.

A prompt runs without padding, which equals the padded and masked run and costs a fraction of it; the transformer pads
with zero rows itself. The tokenizer comes from the checkpoint's folder and is handed in after the weights.

Letters: n tokens, D width.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
from transformers import UMT5Config, UMT5EncoderModel  # noqa: E402  (the switch above must come first)

from model.component_config import UMT5TextConfig  # noqa: E402
from model.disk_cache import DiskCache  # noqa: E402
from model.errors import CheckpointError, UnsupportedError  # noqa: E402

log = logging.getLogger(__name__)


def clean(prompt: str) -> str:
    """Repair wrongly decoded letters, undo HTML escapes (twice: feeds often escape twice), collapse white space.

    Raises:
        UnsupportedError: there is something to repair, and the library for it is not installed.
    """
    if not prompt.isascii() or "&" in prompt or not prompt.isprintable():  # the rest has nothing to repair
        try:
            import ftfy
        except ImportError:
            raise UnsupportedError(f"the prompt {prompt!r} needs the package ftfy; install it, or use ASCII") from None
        prompt = ftfy.fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())


@dataclass(slots=True, kw_only=True)
class Thrift:
    """How an encoder saves what it costs: prompts known on disk, weights read when one is not."""

    cache: DiskCache | None
    """Of encoded prompts."""
    device: torch.device
    """Where they are wanted, and where the weights go."""
    fill: Callable[[], None] | None
    """Reads the weights; None once that is done."""


class Tokens(NamedTuple):
    """A prompt as the encoder reads it."""

    ids: Tensor
    """[n] int64, the end mark last."""
    num_cut: int
    """Tokens beyond the limit, which are not read."""
    cut: list[int]
    """Those tokens."""


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a released checkpoint (`google/umt5-xxl`), from its folder alone.

    Raises:
        CheckpointError: the folder is missing or holds no tokenizer.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise CheckpointError(f"tokenizer folder {folder} does not exist; copy google/umt5-xxl of the checkpoint there")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises anything on damaged files
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the tokenizer in {folder} cannot be read ({reason}); copy its files again") from error


class UMT5Text(nn.Module):
    """See the module. Parameters carry the names of the library's `UMT5EncoderModel`."""

    def __init__(self, cfg: UMT5TextConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer: Any = None
        """As `load_tokenizer` gives it; whoever loads the weights sets it."""
        self.thrift: Thrift | None = None
        library = UMT5EncoderModel(
            UMT5Config(
                vocab_size=cfg.vocab,
                d_model=cfg.dim,
                d_kv=cfg.head_dim,
                d_ff=cfg.ffn_dim,
                num_layers=cfg.layers,
                num_heads=cfg.heads,
                relative_attention_num_buckets=cfg.buckets,
                relative_attention_max_distance=cfg.max_distance,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                dropout_rate=0.0,
            )
        )
        self.shared, self.encoder = library.shared, library.encoder

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token numbers [B, n], and where they are padded a mask of ones and zeros, to embeddings [B, n, D]."""
        mask = torch.ones_like(ids) if mask is None else mask
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    def tokens(self, prompt: str) -> Tokens:
        """Clean a prompt and cut it to `max_len` tokens, the end mark kept.

        Raises:
            CheckpointError: no tokenizer was loaded.
        """
        if self.tokenizer is None:
            raise CheckpointError("the text encoder has no tokenizer; load it from the checkpoint's google/umt5-xxl")
        ids = self.tokenizer(clean(prompt), add_special_tokens=True)["input_ids"]
        cut: list[int] = []
        if len(ids) > self.cfg.max_len:
            cut = list(ids[self.cfg.max_len - 1 : -1])
            ids = [*ids[: self.cfg.max_len - 1], ids[-1]]
        return Tokens(torch.tensor(ids, dtype=torch.int64), len(cut), cut)

    def cut(self, prompt: str) -> str:
        """The end of a prompt that is not read, because it has too many tokens; mostly none."""
        return str(self.tokenizer.decode(cut)).strip() if (cut := self.tokens(prompt).cut) else ""

    def encode(self, prompt: str) -> Tensor:
        """One prompt to [1, n, D], the end mark included; an empty prompt has n = 1.

        A prompt that is too long is cut, with a warning in the log that says by how much.
        """
        if self.thrift is None:
            return self._encoded(prompt)
        cache, device = self.thrift.cache, self.thrift.device
        if cache is None:
            return self._encoded(prompt)
        return cache.get("prompt", clean(prompt).encode(), lambda: self._encoded(prompt), device)

    def _encoded(self, prompt: str) -> Tensor:
        if self.thrift is not None and self.thrift.fill is not None:
            log.info("reading the prompt encoder for a prompt that is not on disk")
            fill, self.thrift.fill = self.thrift.fill, None
            fill()
        ids, num_cut, _ = self.tokens(prompt)
        if num_cut:
            log.warning(
                "the prompt has %d tokens; the last %d are not read, since the model takes %d",
                len(ids) + num_cut,
                num_cut,
                self.cfg.max_len,
            )
        return self(ids[None].to(self.shared.weight.device))

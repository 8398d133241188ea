"""The published model's components and policies with every number tiny, and a toy tokenizer folder for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import DiTConfig, ModelConfig
from model.published import published
from model.umt5 import load_tokenizer
from model.weights import build_modules

WORDS = ("<pad>", "</s>", "<unk>", "a", "woman", "speaks", "&", "café", "smiling")


def config(**changes: Any) -> ModelConfig:
    cfg = published(
        dit=DiTConfig(
            dim=32,
            ffn_dim=48,
            num_heads=2,
            num_layers=3,
            freq_dim=16,
            text_dim=24,
            text_len=16,
            audio_dim=16,
            audio_layers=3,
            audio_inject_layers=(0, 2),
        ),
        vae=WanVAEConfig(base_width=4, width_multipliers=(1, 2, 2, 2)),
        audio=XLSRAudioConfig(
            conv_width=8, dim=16, ffn_dim=32, layers=2, heads=2, position_kernel=16, position_groups=2
        ),
        text=UMT5TextConfig(vocab=32, dim=24, head_dim=8, heads=2, ffn_dim=32, layers=2, max_len=16),
        name="published mini",
    )
    return dataclasses.replace(cfg, **{"width": 64, "height": 64, **changes})


def modules(cfg: ModelConfig, tokenizer: Path) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    built = build_modules(cfg)
    built["text"].tokenizer = load_tokenizer(tokenizer)
    return built


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words in the files that a released folder has."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder

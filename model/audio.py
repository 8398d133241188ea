"""Speech encoder: a window of 16 kHz sound to stacked hidden states, one column per picture.

The layout is wav2vec2 (layer-norm front end, hop 320 samples, pre-norm transformer) through the `transformers` class,
so the tiny checkpoint's encoder and the published one are two sizes of the same thing. Live audio reaches it as one
window per block; the states of that block's pictures are taken and the rest is thrown away.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
from transformers import Wav2Vec2Config, Wav2Vec2Model  # noqa: E402  (the switch above must come first)

from model.component_config import XLSRAudioConfig  # noqa: E402
from model.interface import WindowSpec  # noqa: E402
from model.speech_columns import HOP_SAMPLES  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioSizes:
    """Sizes of a wav2vec2-layout encoder."""

    conv_width: int = 96
    """Channels of the seven front-end convolutions."""
    dim: int = 192
    """Width of the transformer."""
    layers: int = 4
    """Transformer layers; the output stacks one state more."""
    heads: int = 3
    """Attention heads."""
    position_kernel: int = 31
    """Width of the positional convolution, in states."""
    position_groups: int = 16
    """Groups of the positional convolution."""

    def build(self) -> Wav2Vec2Model:
        return wav2vec2(self, 4 * self.dim, apply_spec_augment=False)


def wav2vec2(sizes: AudioSizes | XLSRAudioConfig, ffn_dim: int, **more: Any) -> Wav2Vec2Model:
    """The library's encoder as every checkpoint here has it: layer norms in the front end, pre-norm, no dropout.

    Args:
        sizes: of the encoder.
        ffn_dim: hidden width of the layers' MLPs.
        more: further fields of `Wav2Vec2Config`.
    """
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=sizes.dim,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=ffn_dim,
            conv_dim=(sizes.conv_width,) * 7,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=sizes.position_kernel,
            num_conv_pos_embedding_groups=sizes.position_groups,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            attn_implementation="sdpa",
            **more,
        )
    )


def level(window: Tensor, floor: float = 0.01) -> Tensor:
    """Remove the mean and bring the window to unit RMS; the floor keeps silence quiet.

    Args:
        window: [B, samples] float32 in -1..1.
        floor: smallest RMS that is divided by; 0.01 is -40 dB of full scale.
    """
    window = window - window.mean(-1, keepdim=True)
    return window / window.square().mean(-1, keepdim=True).sqrt().clamp_min(floor)


class AudioEncoder(nn.Module):
    """wav2vec2-layout encoder plus the cut that a block needs from its window."""

    def __init__(self, sizes: AudioSizes, window: WindowSpec, frames_per_block: int = 12) -> None:
        super().__init__()
        self.wav2vec2 = sizes.build()
        self.window = window
        self.frames_per_block = frames_per_block
        self.num_states = window.block_samples // HOP_SAMPLES
        if self.num_states % frames_per_block or window.left_samples % HOP_SAMPLES:
            raise ValueError(
                f"a block of {window.block_samples} samples gives {self.num_states} states of 20 ms, which do not "
                f"divide into {frames_per_block} pictures; choose a block whose pictures last a multiple of 20 ms"
            )

    def states(self, wave: Tensor) -> Tensor:
        """All hidden states of a levelled wave: [B, samples] to [B, layers + 1, states, dim].

        The last one is taken from `last_hidden_state`, since recent library versions leave the final norm out of
        the list.
        """
        out = self.wav2vec2(wave, output_hidden_states=True)
        return torch.stack([*out.hidden_states[:-1], out.last_hidden_state], 1)

    def listen(self, first_block: int = 0) -> None:
        """What a stream carries: nothing, every window is levelled by itself."""

    def window_features(self, window: Tensor, block: int = 0, heard: None = None) -> Tensor:
        """The block's features: [B, window.samples] float32 in -1..1 to [B, layers + 1, dim, frames_per_block].

        `block` and `heard` are for encoders whose columns depend on the stream's clock or past (`model.xlsr`).
        """
        first = self.window.left_samples // HOP_SAMPLES
        states = self.states(level(window))[:, :, first : first + self.num_states]
        return states.unflatten(2, (self.frames_per_block, -1)).mean(3).transpose(2, 3)

"""Sizes of the published model's components: the Wan VAE, the umT5 text encoder, the XLSR speech encoder.

The defaults are the published 14B's; forged and recorded models are other numbers of the same kinds. The components of
the tiny checkpoint are in `model.config`, which also joins the two. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


TILED_LEVELS = 2
"""The finest levels of the published decoder, which hold nearly all of its memory: what `vae: tiled` cuts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WanVAEConfig:
    """Sizes of the Wan 2.1 video VAE and how a still portrait primes it."""

    kind: Literal["wan"] = "wan"
    """Which implementation: `model.wan_vae`."""
    z_dim: int = 16
    """Latent channels."""
    base_width: int = 96
    """Channels of the finest level."""
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels per level, fine to coarse, in units of `base_width`; every level but the last halves the picture."""
    residual_blocks: int = 2
    """Residual blocks per encoder level; the decoder has one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Which of the halvings also halve time."""
    latents_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    """What is subtracted from each latent channel."""
    latents_std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    """What each latent channel is divided by."""
    motion_latents: int = 19
    """Latent frames of the still portrait that serve as its past: 1 + 4 (n - 1) pictures are encoded."""
    warmup_latents: int = 7
    """How many of them the decoder sees before the first block; more cost time and start smoother."""
    reference_latent: Literal["first", "steady"] = "steady"
    """Which of them is the reference: the first, or the second (a video that has started), as in newer pipelines."""

    def __post_init__(self) -> None:
        for name in ("z_dim", "base_width", "residual_blocks", "motion_latents", "warmup_latents"):
            check(getattr(self, name) > 0, f"vae.{name} is {getattr(self, name)}; it must be positive")
        levels, halvings = len(self.width_multipliers), len(self.temporal_downsample)
        check(
            levels > 1 and min(self.width_multipliers) > 0,
            f"vae.width_multipliers is {list(self.width_multipliers)}; list at least two positive numbers",
        )
        check(
            halvings == levels - 1,
            f"vae.temporal_downsample has {halvings} values; give {levels - 1}, one per halving of the picture",
        )
        for name in ("latents_mean", "latents_std"):
            count = len(getattr(self, name))
            check(count == self.z_dim, f"vae.{name} has {count} values; give vae.z_dim ({self.z_dim})")
        check(min(self.latents_std) > 0, f"vae.latents_std holds {min(self.latents_std)}; every value must be positive")
        check(
            self.reference_latent in ("first", "steady"),
            f"vae.reference_latent is {self.reference_latent!r}; choose first or steady",
        )
        check(
            self.reference_latent == "first" or self.motion_latents > 1,
            f"vae.motion_latents is {self.motion_latents}; a steady reference needs at least 2",
        )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pictures, rows and columns per latent cell."""
        space = 2 ** len(self.temporal_downsample)
        return 2 ** sum(self.temporal_downsample), space, space

    @property
    def tile_rim(self) -> int:
        """Rows by which the decoder's tiles overlap on each side, at the input of its tiled levels (`model.tiles`).

        Every convolution over three rows carries what is wrong at a cut one row further.
        """
        levels = len(self.width_multipliers)
        reach, halvings = 0, 0
        for level in range(max(0, levels - TILED_LEVELS), levels):
            reach += 2 * (self.residual_blocks + 1)
            if level < levels - 1:
                reach, halvings = 2 * reach + 1, halvings + 1
        return -(-(reach + 1) // 2**halvings)


@dataclass(frozen=True, slots=True, kw_only=True)
class XLSRAudioConfig:
    """Sizes of the wav2vec2-large-xlsr-53 speech encoder, its window and its running level."""

    kind: Literal["xlsr"] = "xlsr"
    """Which implementation: `model.xlsr`."""
    conv_width: int = 512
    """Channels of the seven front-end convolutions."""
    dim: int = 1024
    """Width of the transformer."""
    ffn_dim: int = 4096
    """Hidden width of its MLP."""
    layers: int = 24
    """Transformer layers; the output stacks one state more."""
    heads: int = 16
    """Attention heads."""
    position_kernel: int = 128
    """Width of the positional convolution, in states of 20 ms."""
    position_groups: int = 16
    """Groups of the positional convolution."""
    left_samples: int = 64_000
    """16 kHz samples of context before the block; 2 to 8 seconds are sensible."""
    lookahead_samples: int = 2_560
    """16 kHz samples after the block; they delay the picture. 80 are the least that the last picture needs."""
    queued_samples: int = 20_480
    """16 kHz samples after the block that are taken where they are known already, of files and of queued speech; from
    1.28 s on the lowest state is exact."""
    forget_s: float = 10.0
    """Seconds of speech after which the running level has forgotten two thirds of what came before."""
    prior_rms: float = 0.08
    """Level of typical speech, assumed until the speaker has been heard (-22 dB of full scale)."""
    prior_s: float = 1.0
    """Seconds of speech that this assumption weighs as much as; what is really heard soon outweighs it."""
    floor_rms: float = 0.01
    """Smallest level that is divided by, so that room noise is not blown up to speech (-40 dB of full scale)."""
    gate_rms: float = 0.003
    """20 ms that are quieter than this do not count as speech and leave the running level alone."""

    def __post_init__(self) -> None:
        for name in ("conv_width", "dim", "ffn_dim", "layers", "heads", "position_kernel", "position_groups"):
            check(getattr(self, name) > 0, f"audio.{name} is {getattr(self, name)}; it must be positive")
        check(
            self.dim % self.heads == 0 and self.dim % self.position_groups == 0,
            f"audio.dim is {self.dim}; it must be a multiple of audio.heads and audio.position_groups",
        )
        check(
            self.left_samples >= 0 and self.left_samples % 640 == 0,
            f"audio.left_samples is {self.left_samples}; it must be a multiple of 640 (40 ms)",
        )
        check(
            self.lookahead_samples >= 80,
            f"audio.lookahead_samples is {self.lookahead_samples}; the last picture of a block needs at least 80",
        )
        check(self.queued_samples >= 0, f"audio.queued_samples is {self.queued_samples}; use 0 or more")
        for name in ("forget_s", "prior_rms", "prior_s", "floor_rms", "gate_rms"):
            check(getattr(self, name) > 0, f"audio.{name} is {getattr(self, name)}; it must be positive")

    @classmethod
    def from_published(cls, config: dict[str, Any]) -> XLSRAudioConfig:
        """Read the `config.json` of a released wav2vec2 folder.

        Raises:
            ValueError: it describes another layout than the one implemented.
        """
        fixed = {
            "model_type": "wav2vec2",
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
            "hidden_act": "gelu",
            "feat_extract_activation": "gelu",
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
            "conv_stride": [5, 2, 2, 2, 2, 2, 2],
            "layer_norm_eps": 1e-5,
        }
        for name, value in fixed.items():
            got = config.get(name, value)
            check(got == value, f"the speech encoder's {name} is {got!r}; only {value!r} is supported")
        widths = set(config["conv_dim"])
        check(len(widths) == 1, f"the speech encoder's conv_dim is {config['conv_dim']}; all seven must be equal")
        names = {
            "dim": "hidden_size",
            "ffn_dim": "intermediate_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "position_kernel": "num_conv_pos_embeddings",
            "position_groups": "num_conv_pos_embedding_groups",
        }
        return cls(conv_width=widths.pop(), **{own: config[theirs] for own, theirs in names.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class UMT5TextConfig:
    """Sizes of the umT5 prompt encoder."""

    kind: Literal["umt5"] = "umt5"
    """Which implementation: `model.umt5`."""
    vocab: int = 256_384
    """Rows of the embedding; 0 is padding, 1 ends the text."""
    dim: int = 4096
    """Width of the output."""
    head_dim: int = 64
    """Width of an attention head; heads times this need not be `dim`."""
    heads: int = 64
    """Attention heads."""
    ffn_dim: int = 10_240
    """Hidden width of the gated MLP."""
    layers: int = 24
    """Transformer layers."""
    buckets: int = 32
    """Rows of every layer's table of relative positions."""
    max_distance: int = 128
    """Distance in tokens from which on all positions share a bucket."""
    max_len: int = 512
    """Tokens that are read, the end mark included; the rest of a longer prompt is cut."""

    def __post_init__(self) -> None:
        for name in ("dim", "head_dim", "heads", "ffn_dim", "layers", "max_len"):
            check(getattr(self, name) > 0, f"text.{name} is {getattr(self, name)}; it must be positive")
        check(self.vocab > 1, f"text.vocab is {self.vocab}; it must be above 1")
        check(self.buckets >= 4 and self.buckets % 4 == 0, f"text.buckets is {self.buckets}; use a multiple of 4")
        check(
            self.max_distance > self.buckets // 4,
            f"text.max_distance is {self.max_distance}; it must exceed a quarter of text.buckets",
        )

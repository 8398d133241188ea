"""Every size and policy of a model as frozen values; the published 14B and the tiny checkpoint are two sets of numbers.

A checkpoint file carries one `ModelConfig` as JSON. Imports no torch.

Letters: z latent channels, h and w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.geometry import Geometry
from model.interface import WindowSpec
from model.plain_values import read_plain
from model.sampling import SamplingChoice, chosen_size

MOTION_BUCKETS = (1, 2, 16)
"""Latent frames of the past per frame-packer projection, newest first; projection i merges 2**i in every direction."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """Sizes of the transformer; the defaults are the published 14B's."""

    dim: int = 5120
    """Width of the residual stream."""
    ffn_dim: int = 13824
    """Hidden width of the MLP."""
    num_heads: int = 40
    """Attention heads; `dim / num_heads` must be even."""
    num_layers: int = 40
    """Blocks."""
    in_dim: int = 16
    """Latent channels in."""
    out_dim: int = 16
    """Latent channels out."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns per token; one frame, and as many rows as columns."""
    freq_dim: int = 256
    """Width of the timestep sinusoid."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    text_len: int = 512
    """Text tokens; shorter prompts are padded with zeros, which are attended to."""
    audio_dim: int = 1024
    """Width of the audio features."""
    audio_layers: int = 25
    """Hidden states of the audio encoder that are mixed."""
    num_audio_token: int = 4
    """Local audio tokens per latent frame; one learned padding token is added."""
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    """Blocks after which audio is injected."""
    cond_dim: int = 16
    """Channels of the pose condition."""
    enable_framepack: bool = True
    """Condition on past motion latents besides the reference."""
    eps: float = 1e-6
    """Epsilon of every norm but the audio one."""
    rope_tables: Literal["exact", "rounded"] = "exact"
    """`rounded` rounds the rotary table to float16, as the published code does."""

    def __post_init__(self) -> None:
        for name in ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_len", "num_audio_token"):
            _check(getattr(self, name) > 0, f"dit.{name} is {getattr(self, name)}; it must be positive")
        _check(
            self.dim % (2 * self.num_heads) == 0,
            f"dit.dim is {self.dim}; it must be a multiple of twice dit.num_heads ({2 * self.num_heads})",
        )
        _check(self.dim % 4 == 0, f"dit.dim is {self.dim}; the audio tokens need a multiple of 4")
        _check(self.freq_dim % 2 == 0, f"dit.freq_dim is {self.freq_dim}; it must be even")
        patch = self.patch_size
        _check(
            len(patch) == 3 and patch[0] == 1 and patch[1] == patch[2] > 0,
            f"dit.patch_size is {patch}; it must be [1, p, p]",
        )
        layers = self.audio_inject_layers
        _check(
            list(layers) == sorted(set(layers)) and all(0 <= i < self.num_layers for i in layers),
            f"dit.audio_inject_layers is {list(layers)}; list rising block numbers below {self.num_layers}",
        )
        _check(
            self.rope_tables in ("exact", "rounded"),
            f"dit.rope_tables is {self.rope_tables!r}; choose exact or rounded",
        )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def patch(self) -> int:
        """Latent rows (and columns) per token."""
        return self.patch_size[1]

    def condition_tokens(self, latent_height: int, latent_width: int) -> int:
        """Condition tokens of a picture: the reference, and with frame packing the motion buckets."""
        rows, columns = latent_height // self.patch, latent_width // self.patch
        count = rows * columns
        if self.enable_framepack:
            for i, frames in enumerate(MOTION_BUCKETS):
                cell = self.patch << i
                count += (frames >> i) * (latent_height // cell) * (latent_width // cell)
        return count

    @classmethod
    def from_published(cls, config: dict[str, Any], audio_layers: int = 25) -> DiTConfig:
        """Read the `config.json` of a released checkpoint.

        Raises:
            ValueError: a switch has a value that this implementation does not have.
        """
        fixed = {
            "enable_adain": True,
            "adain_mode": "attn_norm",
            "zero_timestep": True,
            "enable_motioner": False,
            "add_last_motion": True,
            "qk_norm": True,
            "cross_attn_norm": True,
            "model_type": "s2v",
        }
        for name, value in fixed.items():
            got = config.get(name, value)
            _check(got == value, f"the checkpoint's {name} is {got!r}; only {value!r} is supported")
        own = {f.name for f in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in own}
        return cls(**{"audio_layers": audio_layers, **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """How blocks follow each other and what they remember."""

    frames_per_block: int = 3
    """Latent frames denoised together."""
    ring_blocks: int = 4
    """Blocks that attention sees, the current one included."""
    history: Literal["same_step", "clean"] = "same_step"
    """`same_step`: one ring of keys per denoising step. `clean`: one ring, written by a last pass at `clean_sigma`."""
    clean_sigma: float = 0.01
    """Noise level of the pass that writes a clean ring."""
    sink_distance: int | Literal["random"] = "random"
    """Latent frames by which the reference stays ahead of the block; `random` draws from `sink_range` each block."""
    sink_range: tuple[int, int] = (4, 30)
    """Smallest and largest random distance."""
    sink_time: int = 30
    """Time position of the reference at the start."""
    replace_sink: bool = False
    """After the first ring of blocks, condition on the first generated latent frame in place of the portrait."""
    seam_frames: int = 0
    """Pictures over which a small jump at a block's start fades; 0 switches the filter off."""
    seam_threshold: float = 0.06
    """Share of the full range: smaller differences between blocks are residue, larger ones motion."""
    evict: Literal["oldest", "slot"] = "oldest"
    """What a full ring overwrites after a gap: the oldest block, or slot `index % ring_blocks` (as published)."""

    def __post_init__(self) -> None:
        _check(self.frames_per_block > 0, f"stream.frames_per_block is {self.frames_per_block}; it must be positive")
        _check(self.ring_blocks > 0, f"stream.ring_blocks is {self.ring_blocks}; it must be positive")
        _check(self.history in ("same_step", "clean"), f"stream.history is {self.history!r}; choose same_step or clean")
        _check(0 < self.clean_sigma < 1, f"stream.clean_sigma is {self.clean_sigma}; choose a value between 0 and 1")
        _check(self.seam_frames >= 0, f"stream.seam_frames is {self.seam_frames}; use 0 or more")
        _check(
            0 < self.seam_threshold <= 1,
            f"stream.seam_threshold is {self.seam_threshold}; choose a value above 0, up to 1",
        )
        low, high = self.sink_range
        _check(0 <= low <= high, f"stream.sink_range is {self.sink_range}; give the smaller distance first")
        _check(
            self.sink_distance == "random" or (isinstance(self.sink_distance, int) and self.sink_distance >= 0),
            f"stream.sink_distance is {self.sink_distance!r}; give a whole number of latent frames or random",
        )
        _check(self.evict in ("oldest", "slot"), f"stream.evict is {self.evict!r}; choose oldest or slot")

    def reference_time(self, first_frame: int, distance: int) -> int:
        """Time position of the reference for a block that starts at latent frame `first_frame`."""
        return self.sink_time + max(0, first_frame - (self.sink_time - distance))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """Noise levels of the denoising steps."""

    sigmas: tuple[float, ...] = (1.0, 0.857692301273346, 0.602150559425354, 0.008928571827709675)
    """Falling noise levels in (0, 1], one per step; 0 follows the last."""
    light_sigmas: tuple[float, ...] = ()
    """The shorter schedule for slow machines; empty where the checkpoint was not trained for one."""

    def __post_init__(self) -> None:
        _check(len(self.sigmas) > 0, "sampler.sigmas is empty; list at least one noise level")
        for name in ("sigmas", "light_sigmas"):
            levels = getattr(self, name)
            _check(
                all(0 < s <= 1 for s in levels) and list(levels) == sorted(set(levels), reverse=True),
                f"sampler.{name} is {list(levels)}; list falling noise levels in (0, 1]",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig:
    """Sizes of the video VAE."""

    kind: Literal["light"] = "light"
    """Which implementation of `model.vae`."""
    z_dim: int = 48
    """Latent channels."""
    stride: tuple[int, int, int] = (4, 16, 16)
    """Pictures, rows and columns per latent cell."""
    encoder_widths: tuple[int, int, int] = (64, 128, 192)
    """Channels of the encoder's stages, fine to coarse."""
    decoder_widths: tuple[int, int, int] = (192, 96, 48)
    """Channels of the decoder's stages, coarse to fine."""
    decoder_blocks: tuple[int, int, int] = (2, 2, 2)
    """Residual blocks of the decoder's stages."""
    small_widths: tuple[int, ...] = ()
    """Channels of a second, cheaper decoder's stages, for slow machines; none: the checkpoint has no such decoder."""
    small_blocks: tuple[int, ...] = (3, 2, 1)
    """Residual blocks of its stages."""

    def __post_init__(self) -> None:
        _check(
            len(self.small_widths) in (0, 3) and len(self.small_blocks) == 3,
            f"vae.small_widths are {list(self.small_widths)}, small_blocks {list(self.small_blocks)}; give three each",
        )
        _check(self.kind in ("light",), f"vae.kind is {self.kind!r}; choose light")
        _check(self.z_dim > 0, f"vae.z_dim is {self.z_dim}; it must be positive")
        _check(
            self.stride in ((4, 8, 8), (4, 16, 16)),
            f"vae.stride is {list(self.stride)}; choose [4, 8, 8] or [4, 16, 16]",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioConfig:
    """Sizes of the speech encoder and the window it is fed with."""

    kind: Literal["wav2vec2"] = "wav2vec2"
    """Which implementation of `model.audio`."""
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
    left_samples: int = 29_440
    """16 kHz samples of context before the block."""
    lookahead_samples: int = 1_280
    """16 kHz samples after the block; they delay the picture."""

    def __post_init__(self) -> None:
        _check(self.kind in ("wav2vec2",), f"audio.kind is {self.kind!r}; choose wav2vec2")
        _check(
            self.left_samples >= 0 and self.left_samples % 320 == 0,
            f"audio.left_samples is {self.left_samples}; it must be a multiple of 320",
        )
        _check(self.lookahead_samples >= 0, f"audio.lookahead_samples is {self.lookahead_samples}; use 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of the prompt encoder."""

    kind: Literal["hash"] = "hash"
    """Which implementation of `model.text`."""
    vocab: int = 2048
    """Hashed word pieces; 0 is padding."""
    dim: int = 128
    """Width of the output."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    max_len: int = 16
    """Word pieces that are read; the rest of a longer prompt is dropped."""

    def __post_init__(self) -> None:
        _check(self.kind in ("hash",), f"text.kind is {self.kind!r}; choose hash")
        _check(self.vocab > 1, f"text.vocab is {self.vocab}; it must be above 1")
        _check(self.dim % self.heads == 0, f"text.dim is {self.dim}; it must be a multiple of text.heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionConfig:
    """The controller that writes the pose condition."""

    enabled: bool = False
    """Without it the pose condition is zero."""
    amplitude: float = 1.0
    """Multiplies head motion; 0 keeps the head still, 1.5 is the most."""

    def __post_init__(self) -> None:
        _check(0 <= self.amplitude <= 1.5, f"motion.amplitude is {self.amplitude}; choose a value from 0 to 1.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything a checkpoint says about itself."""

    name: str = "tiny"
    """Shown to users."""
    width: int = 256
    """Picture width in pixels."""
    height: int = 256
    """Picture height in pixels."""
    fps: int = 25
    """Pictures a second."""
    in_domain_psnr_db: float = 26.0
    """A portrait that the VAE reproduces worse than this is outside the checkpoint's domain."""
    portrait_fit: Literal["cover", "short_side"] = "cover"
    """How a portrait of another shape is placed: cropped, or as published with black borders (for parity)."""
    dit: DiTConfig = field(default_factory=DiTConfig)
    """The transformer."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Blocks and memory."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Noise levels."""
    vae: VAEConfig | WanVAEConfig = field(default_factory=VAEConfig)
    """The video VAE, by `kind`."""
    audio: AudioConfig | XLSRAudioConfig = field(default_factory=AudioConfig)
    """The speech encoder, by `kind`."""
    text: TextConfig | UMT5TextConfig = field(default_factory=TextConfig)
    """The prompt encoder, by `kind`."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """The motion controller."""

    def __post_init__(self) -> None:
        _check(
            self.portrait_fit in ("cover", "short_side"),
            f"portrait_fit is {self.portrait_fit!r}; choose cover or short_side",
        )
        agree = (
            ("vae.z_dim", self.vae.z_dim, "dit.in_dim", self.dit.in_dim),
            ("dit.out_dim", self.dit.out_dim, "dit.in_dim", self.dit.in_dim),
            ("text.dim", self.text.dim, "dit.text_dim", self.dit.text_dim),
            ("audio.dim", self.audio.dim, "dit.audio_dim", self.dit.audio_dim),
            ("audio.layers + 1", self.audio.layers + 1, "dit.audio_layers", self.dit.audio_layers),
        )
        for a, value, b, expected in agree:
            _check(value == expected, f"{a} is {value} but {b} is {expected}; they must agree")
        _check(
            self.text.max_len <= self.dit.text_len,
            f"text.max_len is {self.text.max_len}; it must not exceed dit.text_len ({self.dit.text_len})",
        )
        if self.vae.kind == "wan" and self.dit.enable_framepack:
            past = sum(MOTION_BUCKETS)
            _check(
                self.vae.motion_latents == past,
                f"vae.motion_latents is {self.vae.motion_latents}; the frame packer takes {past}",
            )
        _ = self.geometry  # checks sizes

    @property
    def geometry(self) -> Geometry:
        """The stream's arithmetic."""
        return Geometry(
            width=self.width,
            height=self.height,
            fps=self.fps,
            vae_stride=self.vae.stride[1],
            vae_stride_t=self.vae.stride[0],
            patch=self.dit.patch,
            latent_channels=self.vae.z_dim,
            latents_per_block=self.stream.frames_per_block,
            blocks_per_clip=self.stream.ring_blocks,
        )

    @property
    def window(self) -> WindowSpec:
        """The sound that one block needs."""
        return WindowSpec(
            left_samples=self.audio.left_samples,
            lookahead_samples=self.audio.lookahead_samples,
            block_samples=self.geometry.samples_per_block,
            queued_samples=self.audio.queued_samples if isinstance(self.audio, XLSRAudioConfig) else 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: an unknown key (named with its path and the nearest known name) or a bad value.
        """
        return read_plain(cls, data, "")


def tiny() -> ModelConfig:
    """The sizes of the embedded checkpoint."""
    return ModelConfig(
        dit=DiTConfig(
            dim=256,
            ffn_dim=704,
            num_heads=4,
            num_layers=8,
            in_dim=48,
            out_dim=48,
            freq_dim=128,
            text_dim=128,
            text_len=16,
            audio_dim=192,
            audio_layers=5,
            audio_inject_layers=(0, 2, 4, 6),
            cond_dim=40,
            enable_framepack=False,
        ),
        stream=StreamConfig(ring_blocks=3, sink_distance=8, seam_frames=10),
        sampler=SamplerConfig(sigmas=(1.0, 0.75, 0.5, 0.25), light_sigmas=(1.0, 0.5)),
        motion=MotionConfig(enabled=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(SamplingChoice):
    """Which checkpoint to load and how to run it on this machine."""

    checkpoint: str = "tiny"
    """`tiny` ships with the project; otherwise a .safetensors file, a released folder, or random:mini, random:14b."""
    lora: str = ""
    """Adapter merged into a released folder: its file, its folder, or its `owner/name` on the hub; empty for none."""
    lora_alpha: float = 64.0
    """Scale of the adapter times its rank, which its file does not tell; 64 for the published one."""
    size: str = "auto"
    """Picture size, for example 256x256 (width x height); auto takes the checkpoint's own."""
    steps: Literal["auto", "full", "light", "single"] = "auto"
    """Denoising schedule: full, light or single for slow machines, or auto: what the timing at start-up allows."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision; auto times both at start-up and takes the faster, part by part."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1 and so on; auto takes the first GPU where there is one."""
    weights_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    """Of the transformer's linear layers on a GPU; auto takes bf16, fp8 halves their memory and nearly their time."""
    kv_dtype: Literal["auto", "bf16", "fp8"] = "auto"
    """Of the remembered keys and values on a GPU; auto takes bf16, fp8 halves their memory."""
    text_device: Literal["auto", "cpu"] = "auto"
    """Where the prompt encoder lives: auto with the transformer, cpu in main memory (slower prompts, 11 GB saved)."""
    text_load: Literal["start", "needed"] = "start"
    """When the published prompt encoder (11 GB) is read: at the start, or when a prompt comes that is not on disk."""
    cache: str = "auto"
    """Folder of encoded prompts and portraits of released checkpoints; auto: the user's cache folder; off: none."""
    cache_gb: float = 2.0
    """Most of it (1e9 bytes); what was used longest ago goes first."""
    decoder: Literal["auto", "full", "small"] = "auto"
    """Of the video VAE: full, small where the checkpoint has one, or auto: what the timing at start-up allows."""
    threads: int = 0
    """Processor threads of the model; 0 takes the cores this process may use but one, which is left to the server."""
    load: float = 0.35
    """Share of a block's length that its computation may take before `auto` chooses the light schedule."""

    def __post_init__(self) -> None:
        _check(
            self.steps in ("auto", "full", "light", "single"),
            f"steps is {self.steps!r}; choose auto, full, light or single",
        )
        _check(
            self.dtype in ("auto", "float32", "bfloat16"),
            f"dtype is {self.dtype!r}; choose auto, float32 or bfloat16",
        )
        _check(self.decoder in ("auto", "full", "small"), f"decoder is {self.decoder!r}; choose auto, full or small")
        _check(
            self.device in ("auto", "cpu", "cuda") or self.device.removeprefix("cuda:").isdecimal(),
            f"device is {self.device!r}; choose auto, cpu, cuda or cuda:N",
        )
        _check(
            self.text_device in ("auto", "cpu"),
            f"text_device is {self.text_device!r}; choose auto, or cpu for the host",
        )
        for name in ("weights_dtype", "kv_dtype"):
            value = getattr(self, name)
            _check(value in ("auto", "bf16", "fp8"), f"{name} is {value!r}; choose auto, bf16 or fp8")
            _check(
                value != "fp8" or self.dtype != "float32",
                f"{name} is fp8 but dtype is float32; set dtype to auto or bfloat16",
            )
        _check(self.lora_alpha > 0, f"lora_alpha is {self.lora_alpha}; use a positive number, 64 for the published one")
        is_folder = not self.checkpoint.endswith(".safetensors") and self.checkpoint not in ("tiny",)
        _check(
            not self.lora or (is_folder and not self.checkpoint.startswith("random:")),
            f"lora is {self.lora!r} but checkpoint {self.checkpoint!r} takes no adapter; name a released folder",
        )
        _check(self.text_load in ("start", "needed"), f"text_load is {self.text_load!r}; choose start or needed")
        _check(bool(self.cache), "cache is empty; name a folder, auto or off")
        _check(self.cache_gb > 0, f"cache_gb is {self.cache_gb}; use a positive number, or set cache to off")
        _check(self.threads >= 0, f"threads is {self.threads}; use 0 for all cores, or a number above 0")
        _check(0 < self.load <= 1, f"load is {self.load}; choose a value above 0 and up to 1")
        self.check_sampling()
        chosen_size(self.size, self.size_rule)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunConfig:
        """Read plain values, as strictly as `ModelConfig.from_dict`."""
        return read_plain(cls, data, "")


def chosen_stream(config: ModelConfig, run: RunConfig) -> StreamConfig:
    """A checkpoint's stream with the clip, the sink and its distance that the operator chose.

    Raises:
        ValueError: the checkpoint learned another length.
    """
    stream = config.stream
    if run.clip_blocks not in (0, stream.ring_blocks):
        if not isinstance(config.audio, XLSRAudioConfig):
            raise ValueError(
                f"clip_blocks is {run.clip_blocks}, but checkpoint {config.name} learned {stream.ring_blocks}; use 0"
            )
        stream = replace(stream, ring_blocks=run.clip_blocks)
    if run.sink_distance != "auto":
        stream = replace(stream, sink_distance=run.sink_distance)
    return stream if run.sink == "auto" else replace(stream, replace_sink=run.sink == "replace")

"""What a device holds under a plan, in bytes, counted before anything loads. No torch.

Every figure is arithmetic over the sizes of a `ModelConfig`; nothing is fitted. Three things last as long as a session:
weights, rings of keys, what portrait and prompt were turned into. Beside them one piece of work at a time needs room,
and the largest decides the peak, since the allocator hands the same memory from one to the next:

- turning the condition's keys to their place widens all layers at once: float32 in, complex out, the result beside them
  (this is the peak of a transformer that only denoises);
- a new prompt, portrait or sink is prefilled beside the old one: keys and values layer by layer, then stacked;
- a pass: residuals, the widest layer, and with fp8 rings one layer's keys and values widened to bf16;
- the decoder at its finest level: three residual streams, two convolution inputs, and the memory it leaves behind.

Not counted: a CUDA context, kernels' code and what the allocator cannot reuse; `parallel.reserve_gb` is for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from model.component_config import TILED_LEVELS, UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import AudioConfig, DiTConfig, ModelConfig, TextConfig, VAEConfig
from model.parallel import Plan

GB = 1e9
WORKSPACE = 2 * 32 * 2**20
"""What cuBLAS and cuBLASLt keep for themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model as it is going to run."""

    config: ModelConfig
    """Sizes; picture size and rate already those that will run."""
    steps: int
    """Denoising steps."""
    guided: bool = False
    """A second stream of caches and passes."""
    text_on_host: bool = False
    """The prompt encoder stays in main memory."""
    with_encoders: bool = True
    """Those of prompt, speech and pictures are loaded at all; benchmarks of transformer and decoder do without."""
    live: bool = True
    """Prompt, portrait or sink may change while the rings are full."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        geometry, patch = self.config.geometry, self.config.dit.patch
        return (geometry.latent_height // patch) * (geometry.latent_width // patch)

    @property
    def block_tokens(self) -> int:
        return self.frame_tokens * self.config.stream.frames_per_block

    @property
    def condition_tokens(self) -> int:
        geometry = self.config.geometry
        return self.config.dit.condition_tokens(geometry.latent_height, geometry.latent_width)

    @property
    def keys(self) -> int:
        """What self-attention sees once the rings are full."""
        return self.condition_tokens + self.config.stream.ring_blocks * self.block_tokens

    @property
    def streams(self) -> int:
        return 2 if self.guided else 1

    @property
    def is_clean(self) -> bool:
        """All steps share one ring, and one more pass writes it."""
        return self.config.stream.history == "clean"

    @property
    def passes(self) -> int:
        """Of the transformer per block."""
        return (self.steps + self.is_clean) * self.streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one device, without the reserve."""

    weights: float = 0.0
    rolling_cache: float = 0.0
    condition_cache: float = 0.0
    activations: float = 0.0
    """The transformer's largest piece of work, and the libraries' workspace."""
    vae: float = 0.0
    """Weights and a session's memory, and what decoding needs beyond `activations`."""
    loading: float = 0.0
    """Weights before they are quantised: a peak of its own, over before anything else is there."""

    @property
    def total(self) -> float:
        """Peak while sessions run."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "loading")

    @property
    def peak(self) -> float:
        return max(self.total, self.loading)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """What one device does."""

    layers: range
    """Of the transformer; empty on a device that only decodes."""
    rings: int
    """Steps whose ring is kept here, of one stream."""
    leads: bool
    """Holds the speech and prompt encoders."""
    decodes: bool


# Weights.


def base_params(c: DiTConfig) -> int:
    """Parameters of the transformer beside its layers; every device that holds layers has them."""
    d = c.dim
    text = c.text_dim * d + d + d * d + d
    time = c.freq_dim * d + d + d * d + d + 6 * d * d + 6 * d
    patch = c.patch**2
    ends = (c.in_dim + c.cond_dim) * patch * d + 2 * d + 3 * d + 2 * d + d * patch * c.out_dim + patch * c.out_dim
    packer = sum((1 << i) * (c.patch << i) ** 2 * c.in_dim * d + d for i in range(3)) if c.enable_framepack else 0
    quarter, half = d // 4, d // 2
    branches = (c.num_audio_token + 1) * (3 * c.audio_dim * quarter + quarter)
    audio = c.audio_layers + branches + 3 * quarter * half + half + 3 * half * d + d + d * d + d + d
    return text + time + ends + packer + audio


def block_bytes(c: DiTConfig, fp8: bool) -> int:
    """One layer without its audio injector; in fp8 with a float32 scale per output channel."""
    d, f = c.dim, c.ffn_dim
    matrices, outputs = 8 * d * d + 2 * d * f, 8 * d + f + d
    small = outputs + 6 * d + 4 * d + 2 * d
    return (matrices + 4 * outputs if fp8 else 2 * matrices) + 2 * small


def injector_bytes(c: DiTConfig, fp8: bool) -> int:
    """One audio injector."""
    d = c.dim
    matrices, outputs = 6 * d * d, 6 * d
    return (matrices + 4 * outputs if fp8 else 2 * matrices) + 2 * (outputs + 2 * d)


def layer_bytes(c: DiTConfig, layers: Sequence[int], fp8: bool) -> int:
    """Layers with their injectors, which make some of them heavier."""
    injectors = sum(layer in c.audio_inject_layers for layer in layers)
    return len(layers) * block_bytes(c, fp8) + injectors * injector_bytes(c, fp8)


def text_bytes(c: TextConfig | UMT5TextConfig) -> int:
    """The prompt encoder: umT5 in bf16, the small one in float32."""
    if isinstance(c, UMT5TextConfig):
        inner = c.heads * c.head_dim
        layer = 4 * c.dim * inner + 3 * c.dim * c.ffn_dim + 2 * c.dim + c.buckets * c.heads
        return 2 * (c.vocab * c.dim + c.layers * layer + c.dim)
    return 4 * (c.vocab * c.dim + c.max_len * c.dim + c.layers * 12 * c.dim**2)


def audio_bytes(c: AudioConfig | XLSRAudioConfig) -> int:
    """The speech encoder, in float32."""
    width, ffn = c.conv_width, getattr(c, "ffn_dim", 4 * c.dim)
    front = 10 * width + sum(kernel * width * width for kernel in (3, 3, 3, 3, 2, 2)) + 7 * 3 * width
    position = c.dim * (c.dim // c.position_groups) * c.position_kernel + c.dim + c.position_kernel
    layer = 4 * (c.dim**2 + c.dim) + 2 * c.dim * ffn + ffn + c.dim + 4 * c.dim
    return 4 * (front + 2 * width + width * c.dim + c.dim + position + c.layers * layer + 3 * c.dim)


# The decoder.


def _levels(c: WanVAEConfig) -> list[tuple[int, int, int, bool | None]]:
    """Per decoder level, coarse to fine: channels in, channels, halvings that remain, whether time doubles behind it.

    None stands where there is no upsampler behind it.
    """
    widths = [c.base_width * m for m in c.width_multipliers[::-1]]
    doubles = [*c.temporal_downsample[::-1], None]
    halves = [widths[0], *(width // 2 for width in widths[:-1])]
    return [(halves[i], width, len(widths) - 1 - i, doubles[i]) for i, width in enumerate(widths)]


def decoder_params(c: WanVAEConfig) -> int:
    """Parameters of the Wan decoder."""
    conv = lambda a, b, taps: a * b * taps + b  # noqa: E731

    def residual(a: int, b: int) -> int:
        return conv(a, b, 27) + conv(b, b, 27) + a + b + (conv(a, b, 1) if a != b else 0)

    first, last = c.base_width * c.width_multipliers[-1], c.base_width * c.width_multipliers[0]
    total = conv(c.z_dim, first, 27) + 2 * residual(first, first) + first + conv(first, 3 * first, 1)
    total += conv(first, first, 1) + last + conv(last, 3, 27) + conv(c.z_dim, c.z_dim, 1)
    for width_in, width, _, doubles in _levels(c):
        total += residual(width_in, width) + c.residual_blocks * residual(width, width)
        if doubles is not None:
            total += conv(width, width // 2, 9) + (conv(width, 2 * width, 3) if doubles else 0)
    return total


def encoder_params(c: WanVAEConfig) -> int:
    """Parameters of the Wan encoder."""
    conv = lambda a, b, taps: a * b * taps + b  # noqa: E731

    def residual(a: int, b: int) -> int:
        return conv(a, b, 27) + conv(b, b, 27) + a + b + (conv(a, b, 1) if a != b else 0)

    widths = [c.base_width * m for m in c.width_multipliers]
    total, width_in = conv(3, widths[0], 27), widths[0]
    for i, width in enumerate(widths):
        total += residual(width_in, width) + (c.residual_blocks - 1) * residual(width, width)
        if i < len(widths) - 1:
            total += conv(width, width, 9) + (conv(width, width, 3) if c.temporal_downsample[i] else 0)
        width_in = width
    last, z = widths[-1], 2 * c.z_dim
    total += 2 * residual(last, last) + last + conv(last, 3 * last, 1) + conv(last, last, 1)
    return total + last + conv(last, z, 27) + conv(z, z, 1)


def vae_weights(c: VAEConfig | WanVAEConfig, with_encoder: bool = True) -> float:
    """Encoder in float32, decoder in bf16."""
    if isinstance(c, WanVAEConfig):
        return 4 * encoder_params(c) * with_encoder + 2 * decoder_params(c)
    convs = sum(18 * width**2 * blocks for width, blocks in zip(c.decoder_widths, c.decoder_blocks, strict=True))
    return 4 * (convs + sum(36 * width**2 for width in c.encoder_widths))


def decoder_state(c: VAEConfig | WanVAEConfig, width: int, height: int) -> float:
    """What one stream's decoder remembers, in bf16: two frames of every causal convolution's input."""
    if not isinstance(c, WanVAEConfig):
        return 2.0 * width * height * c.decoder_widths[-1]
    coarse = (width // c.stride[2]) * (height // c.stride[1])
    channels = coarse * (c.z_dim + 4 * c.base_width * c.width_multipliers[-1])
    channels += sum(_level_state(c, *level, width, height) for level in _levels(c))
    return 2.0 * 2 * (channels + width * height * c.base_width * c.width_multipliers[0])


def _level_state(
    c: WanVAEConfig, width_in: int, out: int, halvings: int, doubles: bool | None, width: int, height: int
) -> float:
    """Numbers of one frame of the inputs of a level's causal convolutions."""
    pixels = width * height // 4**halvings
    return pixels * (width_in + (2 * c.residual_blocks + 1) * out + (out if doubles else 0))


def decoder_work(c: VAEConfig | WanVAEConfig, width: int, height: int, latents: int) -> float:
    """Largest sum of temporaries while a block is decoded, in bf16, the memory it leaves behind not counted.

    In a level's last residual block live, per pixel and channel: the level's input, both summands of the residual
    stream, their sum, a convolution's output (T frames each), and two inputs of convolutions (T + 2 frames each).
    """
    if not isinstance(c, WanVAEConfig):
        return 2.0 * 6 * c.stride[0] * latents * width * height * c.decoder_widths[-1]
    return max(_level_works(c, width, height, latents))


def _level_works(c: WanVAEConfig, width: int, height: int, latents: int) -> list[float]:
    """The same level by level, coarse to fine."""
    works, frames = [], latents
    for _, out, halvings, doubles in _levels(c):
        pixels = width * height // 4**halvings
        works.append(2.0 * pixels * out * (5 * frames + 2 * (frames + 2)))
        frames *= 2 if doubles else 1
    return works


def tile_share(c: WanVAEConfig, width: int, height: int) -> float:
    """Pixels of one of four tiles, rim included, over the picture's."""
    scale = 2 ** _levels(c)[-TILED_LEVELS:][0][2]
    rows, columns = height // scale, width // scale
    return min(rows, rows // 2 + c.tile_rim) * min(columns, columns // 2 + c.tile_rim) / (rows * columns)


def _tiled_work(c: WanVAEConfig, width: int, height: int, latents: int) -> float:
    """As `decoder_work` and the memory left behind, the finest levels tile by tile (`model.tiles`).

    Then their whole input waits, the whole next memory is there, and of one tile what a level holds and remembers.
    """
    fine, works = _levels(c)[-TILED_LEVELS:], _level_works(c, width, height, latents)
    frames = latents * 2 ** sum(bool(doubles) for *_, doubles in _levels(c)[:-TILED_LEVELS])
    entering = 2.0 * frames * (width * height // 4 ** fine[0][2]) * fine[0][0]
    remembered = 2.0 * 2 * sum(_level_state(c, *level, width, height) for level in fine)
    tile = (max(works[-TILED_LEVELS:]) + remembered) * tile_share(c, width, height)
    return max(entering + tile, *works[:-TILED_LEVELS]) + decoder_state(c, width, height)


def decoding(setting: Setting, tiled: bool = False) -> tuple[float, float]:
    """Bytes that stay with a session, and bytes of work: the next memory beside the old one, and temporaries."""
    config = setting.config
    sizes = config.width, config.height
    state = decoder_state(config.vae, *sizes)
    if tiled and isinstance(config.vae, WanVAEConfig):
        return state, _tiled_work(config.vae, *sizes, config.stream.frames_per_block)
    work = decoder_work(config.vae, *sizes, config.stream.frames_per_block)
    finest = 4.0 * sizes[0] * sizes[1] * (config.vae.base_width if isinstance(config.vae, WanVAEConfig) else 0)
    return state, work + max(0.0, state - 2 * finest)


# A session, and one piece of work.


def ring_bytes(setting: Setting, layers: int, plan: Plan) -> float:
    """One step's ring of some layers: the condition and all blocks, keys and values."""
    width = setting.config.dit.dim / plan.sequence
    return layers * setting.keys * width * 2 * (1 if plan.kv_dtype == "fp8" else 2)


def condition_bytes(setting: Setting, layers: int, plan: Plan) -> float:
    """Unrotated keys and values of portrait and motion of one stream, in bf16."""
    return layers * setting.condition_tokens * setting.config.dit.dim / plan.sequence * 2 * 2


def prompt_bytes(setting: Setting, layers: int) -> float:
    """A prompt's keys and values of one stream, in bf16."""
    return layers * setting.config.dit.text_len * setting.config.dit.dim * 2 * 2


def work_bytes(setting: Setting, layers: int, plan: Plan) -> float:
    """The largest piece of the transformer's work; see the module."""
    if layers == 0:
        return 0.0
    dit = setting.config.dit
    width = dit.dim / plan.sequence
    rest = setting.condition_tokens - setting.frame_tokens
    turning = layers * max(rest, setting.frame_tokens) * width * (4 + 4 + 2)
    renewing = 2 * condition_bytes(setting, layers, plan) if setting.live else 0.0
    tokens = setting.block_tokens / plan.sequence
    widened = setting.keys * width * 2 * 2 if plan.kv_dtype == "fp8" else 0.0
    one_pass = max(7 * tokens * dit.dim * 2 + widened, tokens * 2 * (3 * dit.dim + 2 * dit.ffn_dim))
    return max(turning, renewing, one_pass)


def session_bytes(setting: Setting, plan: Plan, duty: Duty) -> float:
    """What one more session adds to a device."""
    layers = len(duty.layers)
    kept = duty.rings * ring_bytes(setting, layers, plan) + condition_bytes(setting, layers, plan)
    kept = (kept + prompt_bytes(setting, layers)) * setting.streams
    return kept + (decoding(setting, plan.vae == "tiled")[0] if duty.decodes else 0.0)


def need_of(setting: Setting, plan: Plan, duty: Duty) -> Need:
    """Everything a device needs to do its duty for one session."""
    config, layers, fp8 = setting.config, duty.layers, plan.weights_dtype == "fp8"
    dit, count = config.dit, len(layers)
    weights = loading = other = 0.0
    if count:
        weights = 2.0 * base_params(dit) + layer_bytes(dit, layers, fp8)
        loading = 2.0 * base_params(dit) + layer_bytes(dit, layers, False) + (block_bytes(dit, True) if fp8 else 0)
        if plan.offload != "none":
            weights -= count * block_bytes(dit, fp8) - min(2, count) * block_bytes(dit, fp8)
            loading = weights
    if duty.leads and setting.with_encoders:
        other = audio_bytes(config.audio) + (0.0 if setting.text_on_host else text_bytes(config.text))
    modulations = 2 * (6 * count + 2) * dit.dim * setting.steps if count else 0
    if plan.offload == "weights+kv":  # two layers of one ring, whichever runs (`model.host_rings`)
        rings = ring_bytes(setting, min(2, count), plan)
    else:
        rings = duty.rings * ring_bytes(setting, count, plan) * setting.streams
    work = work_bytes(setting, count, plan)
    vae = 0.0
    if duty.decodes:
        kept, decode = decoding(setting, plan.vae == "tiled")
        held = vae_weights(config.vae, setting.with_encoders)
        vae = held + kept + max(0.0, decode - work)
        loading += held
    return Need(
        weights=weights + other,
        rolling_cache=rings,
        condition_cache=(condition_bytes(setting, count, plan) + prompt_bytes(setting, count)) * setting.streams,
        activations=work + modulations + WORKSPACE,
        vae=vae,
        loading=loading + other,
    )

"""How long a pass and a block take under a plan: estimates from times measured on one card. No torch.

Calibrated on one H200 at 704x384 (docs/benchmarks.md): a pass takes 205 ms in bf16 and 158.7 ms with fp8 linear layers,
of it 81 ms attention; fp8 rings cost 11.7 ms of widening; decoding a block takes 69 ms. Attention grows with tokens
times keys, the rest with tokens, decoding with pixels; a card of another class divides by its share of an H200's
products. Host transfers take the class's bandwidth. Nothing but the H200 was measured.
"""

from __future__ import annotations

import functools

from model.component_config import WanVAEConfig
from model.config import DiTConfig
from model.gpus import Gpu
from model.memory import GB, Duty, Setting, block_bytes, ring_bytes, tile_share
from model.parallel import Plan
from model.published import published

ATTENTION_S = 0.081
"""Of a pass, self-attention and attention to the text."""
LINEAR_S = {"bf16": 0.205 - ATTENTION_S, "fp8": 0.1587 - ATTENTION_S}
"""The rest of a pass by the weights' precision."""
WIDENING_S = 0.0117
"""What fp8 rings add to a pass."""
DECODE_S = 0.069
"""A block of the published decoder."""


@functools.cache
def _known() -> Setting:
    """What was measured."""
    return Setting(config=published(), steps=4)


def pass_s(setting: Setting, plan: Plan, layers: int, speed: float) -> float:
    """Seconds of some layers of one pass on one of `plan.sequence` cards."""
    known, c, d = _known(), setting.config.dit, DiTConfig()
    width = c.dim / d.dim * layers / d.num_layers
    tokens = setting.block_tokens / known.block_tokens
    keys = setting.keys / known.keys
    linear = tokens * width * (6 * c.dim + 2 * c.ffn_dim) / (6 * d.dim + 2 * d.ffn_dim)
    injectors = sum(i < c.num_layers for i in c.audio_inject_layers) / max(1, c.num_layers)
    linear *= (1 + 0.045 * injectors) / (1 + 0.045 * 0.3)
    seconds = LINEAR_S[plan.weights_dtype] * linear + ATTENTION_S * tokens * keys * width
    if plan.kv_dtype == "fp8":
        seconds += WIDENING_S * keys * width
    return seconds / speed / plan.sequence


def decode_s(setting: Setting, speed: float, tiled: bool = False) -> float:
    """Seconds of decoding a block; tiles do their rims twice."""
    config, known = setting.config, _known().config
    pixels = config.width * config.height / (known.width * known.height)
    work = 1.0 if config.vae.kind == "wan" else 0.05
    if tiled and isinstance(config.vae, WanVAEConfig):
        work *= max(1.0, 4 * tile_share(config.vae, config.width, config.height))
    return DECODE_S * work * pixels * config.stream.frames_per_block / known.stream.frames_per_block / speed


def busy_s(setting: Setting, plan: Plan, duty: Duty, gpu: Gpu) -> float:
    """Seconds that a block keeps one card busy."""
    config, layers = setting.config, len(duty.layers)
    seconds = decode_s(setting, gpu.speed.compute, plan.vae == "tiled") if duty.decodes else 0.0
    if layers == 0:
        return seconds
    passes = setting.passes
    if plan.kind == "timestep":
        passes = duty.rings * setting.streams
    one = pass_s(setting, plan, layers, gpu.speed.compute)
    if plan.sequence > 1:
        moved = 4 * setting.block_tokens * config.dit.dim * 2 * layers / plan.sequence
        one += moved * (plan.sequence - 1) / plan.sequence / (gpu.speed.peer_gb_s * GB)
    if plan.offload != "none":
        copied = layers * block_bytes(config.dit, plan.weights_dtype == "fp8")
        if plan.offload == "weights+kv":
            copied += ring_bytes(setting, layers, plan)
        one = max(one, copied / (gpu.speed.host_gb_s * GB))
    return passes * one + seconds

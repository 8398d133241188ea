"""The share of a checkpoint that one rank holds: some parts, of the transformer some layers.

A rank's transformer is a transformer with fewer layers: `share_config` counts them, `whole_names` says what its
parameters are called in the whole one. What is not a layer (embeddings, the sound's encoder, the head: 2 % of the
published model) every rank that transforms has; layers and their audio injectors nobody has twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from model.config import DiTConfig, ModelConfig
from model.mesh import Role

PARTS = ("dit", "vae", "audio", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What is loaded."""

    parts: tuple[str, ...] = PARTS
    """Of dit, vae, audio and text."""
    layers: range | None = None
    """Of the transformer; None: all."""

    def config(self, config: ModelConfig) -> ModelConfig:
        """The checkpoint's configuration with this share's layers only."""
        return config if self.layers is None else replace(config, dit=share_config(config.dit, self.layers))

    def names(self, part: str, own: Iterable[str], dit: DiTConfig) -> dict[str, str]:
        """Names in the whole checkpoint to names here.

        Args:
            part: one of `parts`.
            own: names here.
            dit: of the whole checkpoint.
        """
        if part != "dit" or self.layers is None:
            return {name: name for name in own}
        return {whole_name(name, dit, self.layers): name for name in own}


WHOLE_SHARE = Share()


def share_of(role: Role) -> Share:
    """What a rank needs."""
    parts = ["dit"] if role.transforms else []
    parts += ["vae"] if role.decodes else []
    parts += ["audio", "text"] if role.leads else []
    return Share(parts=tuple(parts), layers=role.layers if role.transforms else range(1))


def share_config(config: DiTConfig, layers: range) -> DiTConfig:
    """Sizes of a transformer of some of the layers."""
    inject = tuple(layer - layers.start for layer in config.audio_inject_layers if layer in layers)
    return replace(config, num_layers=len(layers), audio_inject_layers=inject)


def whole_name(name: str, config: DiTConfig, layers: range) -> str:
    """What a share's parameter is called in the whole transformer of `config`."""
    injectors = sum(layer < layers.start for layer in config.audio_inject_layers)
    for prefix, offset in (
        ("blocks.", layers.start),
        ("audio_injector.injector.", injectors),
        ("audio_injector.injector_adain_layers.", injectors),
    ):
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            return f"{prefix}{int(number) + offset}.{rest}"
    return name


def layer_costs(config: DiTConfig, tokens: int, keys: int) -> list[float]:
    """What each layer costs in arithmetic, in any unit: those with an audio injector cost more.

    Args:
        config: sizes.
        tokens: of a block.
        keys: that self-attention sees.
    """
    d = config.dim
    plain = 6 * d * d + 2 * d * config.ffn_dim + 2 * d * (keys + config.text_len)
    injector = 2 * d * d + 2 * d * (config.num_audio_token + 1)
    return [float(plain + injector * (layer in config.audio_inject_layers)) for layer in range(config.num_layers)]

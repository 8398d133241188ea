"""Random weights for measuring: speed and memory of a transformer do not depend on what it has learnt.

Every tensor is drawn from a generator seeded by its own name, so that a part of a model (some layers, one rank's share)
gets the same values as the whole. Scales keep activations of the order of one through all layers. The numbers of a seed
differ between a processor and a GPU, as their generators do.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import nn

from model.config import DiTConfig
from model.dit import DiT
from model.share import share_config, whole_name


def fill_random(module: nn.Module, seed: int, name_of: Callable[[str], str] = str) -> None:
    """Overwrite every parameter of `module` in place.

    Args:
        module: on its final device and in its final dtype.
        seed: two runs with equal seed, device and names give equal values.
        name_of: what a parameter is called in the whole model, where `module` is a part of one.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            key = name_of(name)
            generator = torch.Generator(parameter.device)
            generator.manual_seed(zlib.crc32(f"{seed} {key}".encode()))
            if "norm" in key and key.endswith(("weight", "gamma")):
                parameter.normal_(1.0, 0.02, generator=generator)
            elif parameter.squeeze().dim() < 2:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                fan_in = parameter.shape[-1] if "modulation" in key else parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)


def random_dit(
    config: DiTConfig, seed: int, device: torch.device | str, dtype: torch.dtype, layers: range | None = None
) -> DiT:
    """A transformer laid out on `device` at once, without a copy in main memory, filled with random weights.

    Args:
        config: of the whole one.
        seed, device, dtype: of the values.
        layers: those that are wanted; None: all.
    """
    layers = range(config.num_layers) if layers is None else layers
    with torch.device("meta"):
        dit = DiT(share_config(config, layers))
    dit = dit.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    fill_random(dit, seed, lambda name: whole_name(name, config, layers))
    return dit

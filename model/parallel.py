"""How the one generator is laid over devices: the plan, and the section of the configuration that asks for one.

No torch here: configuration, planner and ranks read the same words. Kinds are those of the published pipelines and our
own: `single`, `timestep` (a denoising step a stage), `layers` (a group of layers a stage), `sequence` (tokens and heads
split), and `offload` (weights stream from host memory).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["single", "timestep", "layers", "sequence", "offload"]
KINDS = ("single", "timestep", "layers", "sequence", "offload")
VAE_PLACES = ("shared", "own", "tiled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout that can be run; `pipeline x sequence` devices hold the transformer."""

    kind: Kind = "single"
    """What a stage is; `timestep` and `layers` may also split every stage by `sequence`."""
    pipeline: int = 1
    """Stages one behind the other."""
    sequence: int = 1
    """Devices that share the tokens and heads of one stage."""
    weights_dtype: Literal["bf16", "fp8"] = "bf16"
    """Of the transformer's linear layers."""
    kv_dtype: Literal["bf16", "fp8"] = "bf16"
    """Of remembered keys and values."""
    vae: Literal["shared", "own", "tiled"] = "shared"
    """Decoder on the last stage's device, on a device of its own, or on the last stage's tile by tile."""
    offload: Literal["none", "weights", "weights+kv"] = "none"
    """What waits in host memory and streams to the device."""
    cut: tuple[int, ...] = ()
    """Layers of each stage of `layers`, as the planner cut them for the cards' memory; empty: by arithmetic alone."""

    def __post_init__(self) -> None:
        assert not self.cut or (self.kind == "layers" and len(self.cut) == self.pipeline), "a cut is one number a stage"
        if self.pipeline < 1 or self.sequence < 1:
            raise ValueError(f"a plan of {self.pipeline} x {self.sequence} devices cannot run; both must be 1 or more")
        if self.kind in ("single", "offload") and self.pipeline * self.sequence > 1:
            raise ValueError(f"plan {self.kind} runs on one device, not on {self.pipeline} x {self.sequence}")
        if self.kind == "sequence" and self.pipeline > 1:
            raise ValueError(f"plan sequence has one stage, not {self.pipeline}; choose layers or timestep")
        if (self.kind == "offload") != (self.offload != "none"):
            raise ValueError(f"plan {self.kind} cannot offload {self.offload}; only plan offload streams from the host")

    @property
    def num_devices(self) -> int:
        """Devices in all, the decoder's own included."""
        return self.pipeline * self.sequence + (self.vae == "own")

    @property
    def name(self) -> str:
        """`layers 4 x sequence 2 + vae`, `single, tiled`, for tables and messages."""
        parts = [self.kind if self.kind in ("single", "offload") else f"{self.kind} {self.pipeline}"]
        if self.kind == "sequence":
            parts = [f"sequence {self.sequence}"]
        elif self.sequence > 1:
            parts.append(f"sequence {self.sequence}")
        return " x ".join(parts) + {"own": " + vae", "tiled": ", tiled"}.get(self.vae, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """What a deployment asks for; `auto` and 0 leave the choice to the planner."""

    gpus: str = "auto"
    """Cards that `avatarcast plan` plans for, such as 4x24GB; auto: those of the machine, as when it is started."""
    plan: Literal["auto", "single", "timestep", "layers", "sequence", "offload"] = "auto"
    """Kind of plan; auto takes the fastest that fits the devices."""
    pipeline: int = 0
    """Stages one behind the other; 0: the planner's choice."""
    sequence: int = 0
    """Devices that share one stage's tokens and heads; 0: the planner's choice."""
    vae: Literal["auto", "shared", "own", "tiled"] = "auto"
    """Where the decoder runs: with the last stage, on a device of its own, or with the last stage tile by tile."""
    offload: Literal["auto", "none", "weights", "weights+kv"] = "auto"
    """What waits in host memory; auto: nothing that fits the devices."""
    reserve_gb: float = 1.0
    """Memory a device keeps free of everything planned: contexts, fragments. GB."""

    def __post_init__(self) -> None:
        for name, choices in (("plan", KINDS), ("vae", VAE_PLACES), ("offload", ("none", "weights", "weights+kv"))):
            value = getattr(self, name)
            if value not in ("auto", *choices):
                raise ValueError(f"{name} is {value!r}; choose auto, {', '.join(choices[:-1])} or {choices[-1]}")
        for name in ("pipeline", "sequence"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 for the planner's choice, or 1 and more")
        if not 0 <= self.reserve_gb <= 64:
            raise ValueError(f"reserve_gb is {self.reserve_gb}; it must be 0 to 64")

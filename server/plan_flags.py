"""The original's flags about cards and memory, as a plan of ours: `--num_gpus_dit`, `--ulysses_size` and their kin.

`--num_gpus_dit` is the total of cards that hold the transformer and `--ulysses_size` how many of them share a stage.
What the original runs as a pipeline of steps runs here as a pipeline of layers: as many blocks a second, without a copy
of the weights per card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.parallel import ParallelConfig
from server.errors import ConfigError

PLAN_SWITCHES = ("offload_model", "offload_kv_cache", "enable_vae_parallel", "single_gpu")
PLAN_COUNTS = ("num_gpus_dit", "ulysses_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlags:
    """What was given; None where nothing was."""

    num_gpus_dit: int | None = None
    ulysses_size: int | None = None
    enable_vae_parallel: bool | None = None
    single_gpu: bool | None = None
    offload_model: bool | None = None
    offload_kv_cache: bool | None = None

    def __post_init__(self) -> None:
        for name in PLAN_COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 64:
                raise ConfigError(f"--{name} is {value}; give 1 to 64")
        cards, shared = self.num_gpus_dit or 1, self.ulysses_size or 1
        if cards % shared:
            raise ConfigError(
                f"--ulysses_size is {shared}, which does not divide --num_gpus_dit {cards}; give a divisor, or 1"
            )
        offload = next((n for n in ("offload_model", "offload_kv_cache") if getattr(self, n)), None)
        if self.single_gpu:
            for name, is_more in (("num_gpus_dit", cards > 1), ("enable_vae_parallel", self.enable_vae_parallel)):
                if is_more:
                    raise ConfigError(
                        f"--{name} is {str(getattr(self, name)).lower()} but --single_gpu is true; leave one out"
                    )
        if offload and (cards > 1 or self.enable_vae_parallel):
            other = "num_gpus_dit" if cards > 1 else "enable_vae_parallel"
            raise ConfigError(f"--{offload} is true, but --{other} asks for more than one card; leave one of them out")

    @property
    def is_empty(self) -> bool:
        return all(getattr(self, name) is None for name in (*PLAN_SWITCHES, *PLAN_COUNTS))

    def over(self, config: ParallelConfig, heads: int) -> tuple[ParallelConfig, list[str]]:
        """The configuration with what the flags say, and sentences about what was read differently.

        Args:
            config: of the deployment.
            heads: of the transformer.

        Raises:
            ConfigError: the heads cannot be shared so.
        """
        if self.is_empty:
            return config, []
        notices: list[str] = []
        cards, shared = self.num_gpus_dit or 1, self.ulysses_size or 1
        if self.offload_model or self.offload_kv_cache:
            offload = "weights+kv" if self.offload_kv_cache else "weights"
            if not self.offload_model:
                notices.append("--offload_kv_cache streams the weights too: caches alone are not offloaded")
            return replace(config, plan="offload", pipeline=0, sequence=0, vae="shared", offload=offload), notices
        if cards == 1 and not (self.single_gpu or self.num_gpus_dit or self.enable_vae_parallel):
            return config, []
        if heads % shared and shared == cards:
            notices.append(
                f"--ulysses_size {shared} becomes a split of the layers over {cards} cards: {heads} heads do not "
                f"divide by {shared}"
            )
            shared = 1
        if heads % shared:
            raise ConfigError(f"--ulysses_size is {shared}, which does not divide the {heads} heads; give 1, 2, 4 or 8")
        stages = cards // shared
        kind = "single" if cards == 1 else "sequence" if stages == 1 else "layers"
        if kind == "layers" and shared == 1 and not notices:
            notices.append(f"--num_gpus_dit {cards} splits the layers over {cards} cards, not the steps; as fast")
        return replace(
            config,
            plan=kind,
            pipeline=stages if kind == "layers" else 0,
            sequence=shared if shared > 1 else 0,
            vae="own" if self.enable_vae_parallel else "shared",
            offload="none",
        ), notices

"""Who does what under a plan: every process asks for its `Role` once and never compares ranks after that. No torch.

Ranks are numbered stage by stage, the devices that share a stage side by side, a decoder of its own last:

    layers 2 x sequence 2 + vae      rank 0 1 | 2 3 | 4
                                     stage  0 |   1 | decoder

Rank 0 leads: it hears, reads and orders; what others need of that comes to them as messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.parallel import Plan

_HALVINGS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What one rank does."""

    rank: int
    world: int
    """Ranks in all."""
    stage: int | None
    """Number of its stage; None: it only decodes."""
    part: int
    """Which share of its stage's tokens and heads is its own."""
    layers: range
    """Layers that it holds."""
    steps: range
    """Denoising steps that it runs, the remembering pass of a clean history included."""
    is_first_layer: bool
    is_last_layer: bool
    decodes: bool
    """Whether pictures are made here."""
    peers: tuple[int, ...]
    """Ranks that share its stage, itself included; alone it is the only one."""
    hidden_from: int | None
    """Rank whose layers come before."""
    hidden_to: int | None
    """Rank whose layers come behind."""
    latents_from: int | None
    """Rank that runs the step before, where that is another."""
    latents_to: int | None
    """Rank that runs the step behind, where that is another."""
    pictures_to: int | None
    """Rank that decodes finished latents, where that is another and this one hands them over."""

    @property
    def leads(self) -> bool:
        """Whether it hears, reads and orders."""
        return self.rank == 0

    @property
    def transforms(self) -> bool:
        """Whether it holds layers of the transformer."""
        return self.stage is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way of tensors from one rank to another."""

    kind: str
    """`hidden`, `latents` or `pictures`."""
    source: int
    target: int


class Mesh:
    """All roles of a plan over one model.

    Args:
        plan: the layout.
        num_layers, num_steps: of the model; a clean history's remembering pass counts as a step.
        layer_costs: what each layer weighs, in any unit; None: all the same.
        decoding: what a decoder that shares the last stage's device adds to it, in the same unit.

    Raises:
        ValueError: the model cannot be laid out so; one sentence naming the key.
    """

    def __init__(
        self,
        plan: Plan,
        num_layers: int,
        num_steps: int,
        layer_costs: Sequence[float] | None = None,
        decoding: float = 0.0,
    ) -> None:
        count = plan.pipeline
        if plan.kind == "layers" and count > num_layers:
            raise ValueError(f"pipeline is {count} but the model has {num_layers} layers; use at most {num_layers}")
        if plan.kind == "timestep" and count > num_steps:
            raise ValueError(f"pipeline is {count} but a block has {num_steps} steps; use at most {num_steps}")
        by_layers, by_steps = plan.kind == "layers", plan.kind == "timestep"
        everything = range(num_layers), range(num_steps)
        self.plan = plan
        tail = decoding if plan.vae != "own" else 0.0
        costs = layer_costs or [1.0] * num_layers
        self.layers = _runs(plan, num_layers) or split(costs, count, tail) if by_layers else [everything[0]] * count
        self.steps = split([1.0] * num_steps, count) if by_steps else [everything[1]] * count
        self.world = plan.num_devices
        self.decoder = self.world - 1 if plan.vae == "own" else (count - 1) * plan.sequence
        self.roles = [self._role(rank) for rank in range(self.world)]

    def _role(self, rank: int) -> Role:
        plan, u, count = self.plan, self.plan.sequence, self.plan.pipeline
        if rank >= count * u:
            return Role(
                rank=rank,
                world=self.world,
                stage=None,
                part=0,
                layers=range(0),
                steps=range(0),
                is_first_layer=False,
                is_last_layer=False,
                decodes=True,
                peers=(rank,),
                hidden_from=None,
                hidden_to=None,
                latents_from=None,
                latents_to=None,
                pictures_to=None,
            )
        stage, part = divmod(rank, u)
        by_layers, by_steps = plan.kind == "layers" and count > 1, plan.kind == "timestep" and count > 1
        first, last = stage == 0, stage == count - 1
        before, behind = rank - u, rank + u
        hands_over = last and part == 0 and self.decoder != rank
        return Role(
            rank=rank,
            world=self.world,
            stage=stage,
            part=part,
            layers=self.layers[stage],
            steps=self.steps[stage],
            is_first_layer=first or not by_layers,
            is_last_layer=last or not by_layers,
            decodes=self.decoder == rank,
            peers=tuple(range(stage * u, stage * u + u)),
            hidden_from=before if by_layers and not first else None,
            hidden_to=behind if by_layers and not last else None,
            latents_from=before if by_steps and not first else part + (count - 1) * u if by_layers and first else None,
            latents_to=behind if by_steps and not last else part if by_layers and last else None,
            pictures_to=self.decoder if hands_over else None,
        )

    def links(self) -> list[Link]:
        """Every way between ranks, in one order that all ranks agree on."""
        found = []
        for role in self.roles:
            targets = {"hidden": role.hidden_to, "latents": role.latents_to, "pictures": role.pictures_to}
            found += [
                Link(kind=kind, source=role.rank, target=target)
                for kind, target in targets.items()
                if target is not None
            ]
        return found

    def teams(self) -> list[tuple[int, ...]]:
        """Ranks that share a stage, stage by stage; none where every stage is one rank."""
        found = dict.fromkeys(role.peers for role in self.roles)
        return [peers for peers in found if len(peers) > 1]


def _runs(plan: Plan, num_layers: int) -> list[range]:
    """The planner's own cut, where there is one."""
    ends = list(itertools.accumulate(plan.cut, initial=0))
    if plan.cut and ends[-1] != num_layers:
        raise ValueError(
            f"the plan was made for {ends[-1]} layers but the checkpoint has {num_layers}; correct its config.json"
        )
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def cut(total: int, count: int, cost: Callable[[int, int, int], float], highest: float) -> list[range] | None:
    """Cut a row of things into runs, none empty, so that the dearest run is as cheap as can be.

    Args:
        total: things.
        count: runs.
        cost: of run number n from one thing to before another; it rises with the run's length.
        highest: no run may cost more.

    Returns:
        The runs; None where `highest` is too low.
    """

    def within(limit: float) -> list[range] | None:
        """Every run as long as the limit allows; None if things are left over."""
        runs, start = [], 0
        for n in range(count):
            stop = start
            while stop < total - (count - 1 - n) and cost(n, start, stop + 1) <= limit:
                stop += 1
            if stop == start:
                return None
            runs.append(range(start, stop))
            start = stop
        return runs if start == total else None

    low, high, best = 0.0, highest, within(highest)
    for _ in range(_HALVINGS if best else 0):
        middle = (low + high) / 2
        found = within(middle)
        low, high, best = (low, middle, found) if found else (middle, high, best)
    return best


def split(costs: Sequence[float], count: int, tail: float = 0.0) -> list[range]:
    """As `cut`, for things that cost the same wherever they are.

    Args:
        costs: of the things.
        count: of runs.
        tail: what the last run costs beside its things.
    """
    sums = list(itertools.accumulate(costs, initial=0.0))
    cost = lambda n, start, stop: sums[stop] - sums[start] + (tail if n == count - 1 else 0.0)  # noqa: E731
    runs = cut(len(costs), count, cost, 2 * (sums[-1] + tail))
    assert runs is not None
    return runs


def check_sequence(sequence: int, num_heads: int, tokens: int) -> None:
    """Refuse what does not divide.

    Args:
        sequence: devices that share a stage.
        num_heads: of the model.
        tokens: of a latent frame.

    Raises:
        ValueError: one sentence naming the key.
    """
    if num_heads % sequence:
        fit = [n for n in range(1, num_heads + 1) if num_heads % n == 0 and n <= 8]
        raise ValueError(
            f"sequence is {sequence}, which does not divide {num_heads} heads; use {', '.join(map(str, fit))}"
        )
    if tokens % sequence:
        raise ValueError(
            f"sequence is {sequence}, which does not divide the {tokens} tokens of a picture of this size; "
            "choose another size, or split by layers"
        )

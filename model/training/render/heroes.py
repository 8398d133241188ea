"""The gallery: a dozen hand-picked people, each a seed and a few choices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model.training.render.compose import concat
from model.training.render.frame import Table
from model.training.render.identity import sample_identity
from model.training.render.palette import NAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Hero:
    """One person of the gallery."""

    id: str
    """File name without its ending, and the gallery's key."""
    name: str
    """What people read."""
    seed: int
    """Seed of everything not chosen."""
    choose: dict[str, str | float] = field(default_factory=dict)
    """Palette names, and numbers for `glasses`, `feminine`, `age`."""


def _hero(id: str, name: str, seed: int, look: str, **numbers: float) -> Hero:
    """`look` names style, skin, hair, collar, cloth, background and beard, in this order."""
    keys = ("style", "skin", "hair", "collar", "cloth", "background", "beard")
    return Hero(id=id, name=name, seed=seed, choose=dict(zip(keys, look.split(), strict=True)) | numbers)


HEROES = (
    _hero("amara", "Amara", 11, "afro umber black crew mustard mint none", feminine=1, age=0.2, glasses=0),
    _hero("jonas", "Jonas", 12, "swoop sand honey shirt blue cream stubble", feminine=0, age=0.2, glasses=0),
    _hero("mei", "Mei", 13, "bob sand black turtleneck coral mist none", feminine=1, age=0.15, glasses=0),
    _hero("david", "David", 14, "buzz espresso black blazer navy peach full", feminine=0, age=0.35, glasses=1),
    _hero("sofia", "Sofia", 15, "waves honey espresso vneck wine lilac none", feminine=1, age=0.2, glasses=0),
    _hero("henrik", "Henrik", 16, "crop rose silver turtleneck charcoal sky full", feminine=0, age=0.85, glasses=1),
    _hero("ingrid", "Ingrid", 17, "bun porcelain white blazer sage cream none", feminine=1, age=0.9, glasses=1),
    _hero("ravi", "Ravi", 18, "quiff caramel black hoodie green blush moustache", feminine=0, age=0.3, glasses=0),
    _hero("fiona", "Fiona", 19, "long porcelain ginger crew green sky none", feminine=1, age=0.1, glasses=0),
    _hero("kofi", "Kofi", 20, "curls umber black shirt white lilac none", feminine=0, age=0.1, glasses=0),
    _hero("leila", "Leila", 21, "pixie caramel espresso hoodie violet mint none", feminine=1, age=0.2, glasses=1),
    _hero("samuel", "Samuel", 22, "bald chestnut black vneck oat slate goatee", feminine=0, age=0.5, glasses=0),
)
"""The people, in the gallery's order."""


def indices(choose: dict[str, str | float]) -> dict[str, float]:
    """Palette names turned into the indices that `sample_identity` takes; numbers stay."""
    return {key: NAMED[key].index(value) if isinstance(value, str) else value for key, value in choose.items()}


def heroes() -> Table:
    """Identity table of the whole gallery, one row a person, on the CPU; the same in every process."""
    return concat([sample_identity(1, torch.Generator().manual_seed(h.seed), choose=indices(h.choose)) for h in HEROES])

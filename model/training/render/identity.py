"""Who is drawn: about sixty numbers a portrait, drawn at random within flattering combinations.

An identity is a table of tensors: [n] float values (lengths in head units, shares 0..1), [n] int64 choices, and
[n, 3] colours. Draws happen in a fixed order whatever is chosen by hand, so a fixed choice changes nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.training.render import palette as P
from model.training.render.frame import Table

CHOICES = ("style", "skin", "hair", "cloth", "background", "collar", "beard", "glasses", "feminine", "age")
"""What may be fixed by hand: indices into the palette of that name; `glasses` and `feminine` 0 or 1, `age` 0..1."""


class _Draw:
    """Random columns of one length from one generator."""

    def __init__(self, n: int, generator: torch.Generator | None, device: torch.device | str) -> None:
        self.n, self.generator, self.device = n, generator, device

    def unit(self, *shape: int) -> Tensor:
        return torch.rand(self.n, *shape, generator=self.generator, device=self.device)

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * self.unit()

    def chance(self, share: float | Tensor) -> Tensor:
        return (self.unit() < share).float()

    def index(self, count: int) -> Tensor:
        return (self.unit() * count).long().clamp(max=count - 1)

    def weighted(self, weights: Tensor) -> Tensor:
        """One index a row of `weights` [n, k]."""
        edge = weights.cumsum(1)
        return (self.unit()[:, None] * edge[:, -1:] >= edge).sum(1).clamp(max=weights.shape[1] - 1)

    def jitter(self, colors: Tensor, amount: float) -> Tensor:
        return (colors + amount * (self.unit(3) - 0.5)).clamp(0, 1)


def sample_identity(
    n: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    choose: dict[str, float] | None = None,
) -> Table:
    """Draw `n` people.

    Args:
        generator: source of randomness, on `device`; None: the global one.
        choose: values for names in CHOICES that all `n` people shall have.

    Returns:
        The identity table.
    """
    draw, choose = _Draw(n, generator, device), choose or {}
    who = _choices(draw, choose)
    table = {k: who[k] for k in ("collar", "style", "age", "glasses")}
    table |= _colors(draw, who) | _hair(draw, who) | _shape(draw, who) | _extras(draw, who)
    return table


def _choices(draw: _Draw, choose: dict[str, float]) -> Table:
    """Indices into the palettes; styles, beards and colours follow from each other by weights."""

    def fixed(name: str, drawn: Tensor) -> Tensor:
        return torch.full_like(drawn, choose[name]) if name in choose else drawn

    rows = lambda weights, index: torch.tensor(weights, device=draw.device, dtype=torch.float32)[index]  # noqa: E731
    styles = list(P.STYLE)
    who: Table = {"feminine": fixed("feminine", draw.chance(0.5)), "skin": fixed("skin", draw.index(len(P.SKIN)))}
    age = draw.unit()
    who["hair"] = fixed("hair", draw.weighted(rows(P.HAIR_FOR_SKIN, who["skin"])))
    gray = (who["hair"] == 8) | (who["hair"] == 9)
    who["age"] = fixed("age", torch.where(gray, 0.65 + 0.35 * age, 0.6 * age))
    who["iris"] = draw.weighted(rows(P.IRIS_FOR_SKIN, who["skin"]))
    short = [1.0 * (s in P.SHORT) * (0.6 if s in ("bald", "afro") else 1) for s in styles]
    long = [1.0 * (s in P.LONG) * (0.6 if s in ("afro", "curls") else 1) for s in styles]
    weights = rows([short, long], who["feminine"].long())
    curly = rows(
        [1.0 + 1.5 * (s in ("afro", "curls", "buzz")) for s in styles], torch.arange(len(styles), device=draw.device)
    )
    pale = rows([1.0 - 0.9 * (s == "afro") for s in styles], torch.arange(len(styles), device=draw.device))
    dark = (who["skin"] >= 5)[:, None]
    who["style"] = fixed("style", draw.weighted(weights * torch.where(dark, curly, pale)))
    table = torch.tensor(list(P.STYLE.values()), device=draw.device)
    has_back = table[who["style"], 3] > 0
    beard = draw.weighted(rows([[5, 1.6, 2.2, 0.8, 0.9]], torch.zeros_like(who["style"])))
    shaven = has_back | (who["feminine"] > 0.5)
    who["beard"] = fixed("beard", torch.where(shaven, torch.zeros_like(beard), beard))
    who["collar"] = fixed("collar", draw.index(len(P.COLLAR)))
    who["cloth"], who["cloth2"] = fixed("cloth", draw.index(len(P.CLOTH))), draw.index(len(P.CLOTH))
    who["background"] = fixed("background", draw.index(len(P.BACKGROUND)))
    who["glasses"] = fixed("glasses", draw.chance(0.27))
    return who


def _colors(draw: _Draw, who: Table) -> Table:
    """Colours [n, 3]."""
    pick = lambda names, index: torch.tensor(list(names), device=draw.device)[index]  # noqa: E731
    hair = draw.jitter(pick(P.HAIR_COLOR.values(), who["hair"]), 0.04)
    back = draw.jitter(pick(P.BACKGROUND.values(), who["background"]), 0.05)
    lipstick = draw.between(0.1, 0.75) * who["feminine"]
    return {
        "skin": draw.jitter(pick(P.SKIN.values(), who["skin"]), 0.025),
        "hair": hair,
        "brow_color": hair * 0.72 + 0.03 * draw.unit(1),
        "iris": draw.jitter(pick(P.IRIS, who["iris"]), 0.05),
        "cloth": draw.jitter(pick(P.CLOTH.values(), who["cloth"]), 0.05),
        "cloth2": draw.jitter(pick(P.CLOTH.values(), who["cloth2"]), 0.05),
        "back1": back,
        "back2": (back * (0.84 + 0.14 * draw.unit(1))).clamp(0, 1),
        "lipstick": lipstick,
        "blush": draw.between(0.10, 0.38),
    }


def _hair(draw: _Draw, who: Table) -> Table:
    """The style's numbers, one column each, and the parting."""
    table = torch.tensor(list(P.STYLE.values()), device=draw.device)[who["style"]]
    out = {f"hair_{name}": table[:, k] for k, name in enumerate(P.HAIR_FIELDS)}
    return out | {"part": draw.between(-0.09, 0.09), "curl_phase": draw.between(0, 6.3)}


def _shape(draw: _Draw, who: Table) -> Table:
    """Lengths of the head and the face, in head units."""
    f = who["feminine"]
    return {
        "scale": draw.between(1.08, 1.14),
        "width": draw.between(0.410, 0.440) - 0.006 * f,
        "crown": draw.between(0.505, 0.530),
        "jaw_w": draw.between(0.325, 0.385) - 0.020 * f,
        "chin": draw.between(0.470, 0.520) - 0.008 * f,
        "jaw_blend": draw.between(0.09, 0.17),
        "eye_dx": draw.between(0.178, 0.192),
        "eye_y": draw.between(-0.035, -0.010),
        "eye_rx": draw.between(0.092, 0.104),
        "eye_up": draw.between(0.046, 0.054) + 0.003 * f,
        "eye_low": draw.between(0.036, 0.042),
        "eye_tilt": draw.between(-0.04, 0.12),
        "iris_r": draw.between(0.049, 0.054),
        "lash": draw.between(0.010, 0.014) + 0.006 * f,
        "brow_y": draw.between(-0.165, -0.148),
        "brow_t": draw.between(0.024, 0.034) - 0.008 * f,
        "brow_arch": draw.between(0.6, 1.6),
        "brow_len": draw.between(0.102, 0.116),
        "nose_len": draw.between(0.140, 0.170),
        "nose_w": draw.between(0.050, 0.066) - 0.004 * f,
        "mouth_y": draw.between(0.275, 0.295),
        "mouth_w": draw.between(0.168, 0.190) - 0.004 * f,
        "lip_up": draw.between(0.023, 0.032) + 0.004 * f,
        "lip_low": draw.between(0.036, 0.048) + 0.004 * f,
    }


def _extras(draw: _Draw, who: Table) -> Table:
    """Beard, glasses, jewellery, light and the background's layout."""
    kind = who["beard"]
    beard = torch.tensor([0.0, 0.34, 1.0, 1.0, 0.0], device=draw.device)[kind]
    moustache = torch.tensor([0.0, 0.34, 1.0, 1.0, 1.0], device=draw.device)[kind]
    earring = draw.chance(0.45) * who["feminine"]
    return {
        "beard": beard,
        "moustache": moustache,
        "goatee": (kind == 3).float(),
        "earring": earring,
        "glass_rx": draw.between(0.132, 0.142),
        "glass_ry": draw.between(0.104, 0.126),
        "glass_round": draw.between(0.45, 1.0),
        "light": draw.between(-1, 1),
        "back_kind": draw.index(4),
        "back_a": draw.unit(),
        "back_b": draw.unit(),
        "back_c": draw.unit(),
        "back_d": draw.unit(),
    }

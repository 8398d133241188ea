"""Which plan runs a model on given cards: memory by `model.memory`, speed by `model.plan_speed`. No torch.

Several cards work on different blocks or sessions at once, so `block_s`, the time from one block to the next, is that
of the busiest card; one block alone takes `latency_s`. Speeds are estimates (`model.plan_speed`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from model.gpus import Gpu
from model.memory import (
    GB,
    Duty,
    Need,
    Setting,
    need_of,
    session_bytes,
)
from model.mesh import cut, split
from model.parallel import KINDS, VAE_PLACES, ParallelConfig, Plan
from model.plan_speed import busy_s

_SEQUENCES = (2, 4, 5, 8)
_SMALLER = ((640, 352), (576, 320), (512, 288), (448, 256), (384, 208), (320, 176), (256, 144))
_MOST_LAYER_CARDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A plan laid over cards."""

    plan: Plan
    gpus: tuple[Gpu, ...]
    """Those it uses."""
    duties: tuple[Duty, ...]
    needs: tuple[Need, ...]
    reserve: float
    """Bytes that each keeps free."""
    block_s: float
    """Seconds from one block to the next; an estimate."""
    latency_s: float
    """Seconds of one block alone; an estimate."""
    room: int
    """Sessions whose memory the cards hold."""
    sessions: int
    """Live sessions that both time and memory allow; an estimate."""

    @property
    def free(self) -> tuple[float, ...]:
        """Bytes left on every card; below 0 where it misses."""
        pairs = zip(self.gpus, self.needs, strict=True)
        return tuple(gpu.usable - need.peak - self.reserve for gpu, need in pairs)

    @property
    def fits(self) -> bool:
        return min(self.free) >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A plan that does not fit, and what would make it."""

    plan: Plan
    by: float
    """Bytes that the fullest card lacks."""
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the planner found."""

    chosen: Layout | None
    """The fastest that fits."""
    nearest: Layout
    """That, or of those that do not fit the one that lacks least."""
    misses: tuple[Miss, ...]


# Layouts.


def duties_of(setting: Setting, plan: Plan, gpus: Sequence[Gpu], reserve: float = 0.0) -> list[Duty]:
    """What every device of a plan does, in the order of ranks: stage by stage, a decoder of its own last.

    Layers are split so that the busiest stage is as quick as the memory of every stage's cards allows; so a card that
    also decodes, or holds the prompt encoder, gets fewer.
    """
    every, count = range(setting.config.dit.num_layers), plan.pipeline
    rings = 1 if setting.is_clean else setting.steps
    last = count - 1

    def duty(stage: int, part: int, layers: range, kept: int) -> Duty:
        decodes = plan.vae != "own" and stage == last and part == 0
        return Duty(layers=layers, rings=kept, leads=stage == part == 0, decodes=decodes)

    if plan.kind == "layers":
        shares = _split(setting, plan, gpus, reserve, lambda stage, layers: duty(stage, 0, layers, rings))
        stages = [(layers, rings) for layers in shares]
    elif plan.kind == "timestep":
        stages = [(every, len(steps)) for steps in split([1.0] * rings, count)]
    else:
        stages = [(every, rings)]
    duties = [duty(i, part, *stage) for i, stage in enumerate(stages) for part in range(plan.sequence)]
    if plan.vae == "own":
        duties.append(Duty(layers=range(0), rings=0, leads=False, decodes=True))
    return duties


def _split(
    setting: Setting, plan: Plan, gpus: Sequence[Gpu], reserve: float, duty: Callable[[int, range], Duty]
) -> list[range]:
    """Contiguous layers per stage: the least time within memory, or where nothing fits the least that is lacking."""
    total, count, width = setting.config.dit.num_layers, plan.pipeline, plan.sequence

    @functools.cache
    def costs(stage: int, start: int, stop: int) -> tuple[float, float]:
        """Bytes and seconds."""
        work = duty(stage, range(start, stop))
        return need_of(setting, plan, work).peak + reserve, busy_s(setting, plan, work, gpus[stage * width])

    def seconds(stage: int, start: int, stop: int) -> float:
        held, busy = costs(stage, start, stop)
        return busy if held <= gpus[stage * width].usable else math.inf

    def lacking(stage: int, start: int, stop: int) -> float:
        return costs(stage, start, stop)[0] - gpus[stage * width].usable

    every = duty(0, range(total))
    slowest = max(busy_s(setting, plan, replace(every, decodes=True), gpu) for gpu in gpus)
    shares = cut(total, count, seconds, slowest * 1.01) or cut(total, count, lacking, 1000 * GB)
    assert shares is not None
    return shares


def lay_out(setting: Setting, plan: Plan, gpus: Sequence[Gpu], reserve_gb: float) -> Layout:
    """A plan over the first cards: what each holds, and how fast it is."""
    used, reserve = tuple(gpus[: plan.num_devices]), reserve_gb * GB
    assert len(used) == plan.num_devices, "more devices than cards"
    duties = duties_of(setting, plan, used, reserve)
    if plan.kind == "layers":
        plan = replace(
            plan, cut=tuple(len(duty.layers) for duty in duties[: plan.pipeline * plan.sequence : plan.sequence])
        )
    needs = tuple(need_of(setting, plan, duty) for duty in duties)
    busy = [busy_s(setting, plan, duty, gpu) for duty, gpu in zip(duties, used, strict=True)]
    stages = busy[:: plan.sequence] if plan.vae != "own" else [*busy[: -1 : plan.sequence], busy[-1]]
    free = [gpu.usable - need.peak - reserve for gpu, need in zip(used, needs, strict=True)]
    block_s = max(busy)
    room = 0
    if min(free) >= 0:
        room = 1 + min(_more(setting, plan, duty, left) for duty, left in zip(duties, free, strict=True))
    return Layout(
        plan=plan,
        gpus=used,
        duties=tuple(duties),
        needs=needs,
        reserve=reserve,
        block_s=block_s,
        latency_s=sum(stages),
        room=room,
        sessions=min(math.floor(setting.config.geometry.block_s / block_s), room),
    )


def _more(setting: Setting, plan: Plan, duty: Duty, room: float) -> int:
    """Further sessions that a card has room for; offloaded rings wait on the host."""
    one = session_bytes(setting, plan, replace(duty, rings=0) if plan.offload == "weights+kv" else duty)
    return int(room // one)


def shapes(setting: Setting, count: int, asked: ParallelConfig) -> Iterator[Plan]:
    """Plans of every kind that use `count` cards as far as they can; precisions are the caller's."""
    steps, layers = 1 if setting.is_clean else setting.steps, setting.config.dit.num_layers
    heads, tokens = setting.config.dit.num_heads, setting.frame_tokens
    wanted = KINDS if asked.plan == "auto" else (asked.plan,)
    places = VAE_PLACES if asked.vae == "auto" else (asked.vae,)
    if setting.config.vae.kind != "wan":  # the small decoder knows no tiles, and needs none
        places = tuple(place for place in places if place != "tiled")
    seen = set()
    for kind, place in itertools.product(wanted, places):
        alone = place == "own"
        if kind == "offload" and alone and asked.vae == "auto":
            continue
        cards = count - alone
        sequences = [1, *(u for u in _SEQUENCES if heads % u == 0 and tokens % u == 0)]
        if kind in ("single", "offload") or asked.sequence:
            sequences = [asked.sequence or 1]
        for u in sequences:
            most = {"timestep": steps, "layers": min(layers, _MOST_LAYER_CARDS)}.get(kind, 1)
            g = min(most, cards // u)
            if asked.pipeline and kind in ("timestep", "layers"):
                g = asked.pipeline
            elif kind in ("timestep", "layers") and g < 2:
                continue
            offloads = ("weights", "weights+kv") if kind == "offload" else ("none",)
            if kind == "offload" and asked.offload in offloads:
                offloads = (asked.offload,)
            if (kind == "sequence" and u == 1) or g < 1 or g * u > cards or (g > most):
                continue
            if heads % u or tokens % u:
                continue
            for offload in offloads:
                try:
                    plan = Plan(kind=kind, pipeline=g, sequence=u, vae=place, offload=offload)
                except ValueError:
                    continue
                if plan not in seen:
                    seen.add(plan)
                    yield plan


def candidates(
    setting: Setting, gpus: Sequence[Gpu], asked: ParallelConfig, weights: str, kv: str
) -> Iterator[list[Layout]]:
    """Per shape of plan its layouts, one per precision that may be chosen.

    Args:
        weights, kv: bf16, fp8, or auto for either.
    """
    has_fp8 = all(gpu.speed.fp8 for gpu in gpus)
    either = ("bf16", "fp8") if has_fp8 else ("bf16",)
    dtypes = [either if name == "auto" else (name,) for name in (weights, kv)]
    for plan in shapes(setting, len(gpus), asked):
        pairs = itertools.product(*dtypes)
        yield [lay_out(setting, replace(plan, weights_dtype=w, kv_dtype=k), gpus, asked.reserve_gb) for w, k in pairs]


def choose(
    setting: Setting,
    gpus: Sequence[Gpu],
    asked: ParallelConfig | None = None,
    weights: str = "auto",
    kv: str = "auto",
    runnable: Mapping[str, tuple[str, ...]] | None = None,
) -> Outcome:
    """The fastest plan that fits, and why the others do not.

    Args:
        setting: what is to run.
        gpus: cards there are.
        asked: what the deployment asks for; None leaves everything to the planner.
        weights, kv: precisions, or auto.
        runnable: kinds that may be taken, each with the places of the decoder; None: all.

    Raises:
        ValueError: the cards cannot be used as `asked`; one sentence naming the key.
    """
    asked = asked or ParallelConfig()
    fitting: list[Layout] = []
    missing: list[Layout] = []
    for layouts in candidates(setting, gpus, asked, weights, kv):
        plan = layouts[0].plan
        if runnable is not None and plan.vae not in runnable.get(plan.kind, ()):
            continue
        good = [layout for layout in layouts if layout.fits]
        fitting += good
        if not good:
            missing.append(max(layouts, key=lambda layout: min(layout.free)))
        elif len(layouts) > 1:
            missing += [layout for layout in layouts if not layout.fits]
    if not fitting and not missing:
        raise ValueError(_impossible(setting, len(gpus), asked))
    fitting.sort(key=lambda layout: (round(layout.block_s, 4), round(layout.latency_s, 4), layout.plan.num_devices))
    missing.sort(key=lambda layout: -min(layout.free))
    return Outcome(
        chosen=fitting[0] if fitting else None,
        nearest=fitting[0] if fitting else missing[0],
        misses=tuple(Miss(plan=m.plan, by=-min(m.free), remedy=remedy_of(setting, m, gpus, asked)) for m in missing),
    )


def _impossible(setting: Setting, count: int, asked: ParallelConfig) -> str:
    heads = setting.config.dit.num_heads
    if asked.vae == "tiled" and setting.config.vae.kind != "wan":
        return f"parallel.vae is tiled, but the decoder of {setting.config.name} is a small one; use auto or shared"
    return (
        f"parallel.plan is {asked.plan} with pipeline {asked.pipeline}, sequence {asked.sequence}, vae {asked.vae}, "
        f"which cannot be laid over {count} cards with {heads} heads and {setting.steps} steps; use more cards, "
        "parallel.plan auto, or a sequence that divides the heads"
    )


# Remedies.


def remedy_of(setting: Setting, layout: Layout, gpus: Sequence[Gpu], asked: ParallelConfig) -> str:
    """The smallest change that makes a plan fit these cards, or the largest that would help."""
    plan, has_fp8 = layout.plan, all(gpu.speed.fp8 for gpu in gpus)

    def fits(plan: Plan, setting: Setting = setting, cards: Sequence[Gpu] = gpus) -> bool:
        return len(cards) >= plan.num_devices and lay_out(setting, plan, cards, asked.reserve_gb).fits

    for change, words in _lighter(setting, plan, has_fp8):
        if fits(replace(plan, **change)):
            return words
    narrow = replace(plan, weights_dtype="fp8", kv_dtype="fp8") if has_fp8 else plan
    host = replace(setting, text_on_host=True)
    with_fp8 = " with weights and caches in fp8" if narrow != plan else ""
    if setting.with_encoders and not setting.text_on_host:
        if fits(plan, host):
            return "the prompt encoder on the host (model.text_device cpu)"
        if fits(narrow, host):
            return f"the prompt encoder on the host (model.text_device cpu){with_fp8}"
    for blocks in range(setting.config.stream.ring_blocks - 1, 1, -1):
        stream = replace(setting.config.stream, ring_blocks=blocks)
        if fits(narrow, replace(host, config=replace(setting.config, stream=stream))):
            frames = blocks * setting.config.stream.frames_per_block
            return f"fewer cached frames ({frames} instead of {_frames(setting)}), prompt encoder on the host{with_fp8}"
    unit = setting.config.vae.stride[1] * setting.config.dit.patch
    for width, height in _SMALLER:
        smaller = (max(1, height // unit) * unit, max(1, width // unit) * unit)
        height, width = smaller if setting.config.height <= setting.config.width else smaller[::-1]
        if width * height < setting.config.width * setting.config.height:
            if fits(narrow, replace(host, config=replace(setting.config, width=width, height=height))):
                return f"a smaller size ({width}x{height}), prompt encoder on the host{with_fp8}"
    return _other_cards(host, narrow, gpus, with_fp8, fits)


def _lighter(setting: Setting, plan: Plan, has_fp8: bool) -> list[tuple[dict[str, str], str]]:
    """Tiles, and narrower precisions of a plan, in words, the smallest change first."""
    found: list[tuple[dict[str, str], str]] = []
    if plan.vae == "shared" and setting.config.vae.kind == "wan":
        found.append(({"vae": "tiled"}, "decoding tile by tile (parallel.vae tiled)"))
    weights, caches = plan.weights_dtype == "bf16", plan.kv_dtype == "bf16"
    if has_fp8 and weights:
        found.append(({"weights_dtype": "fp8"}, "fp8 weights (model.weights_dtype fp8)"))
    if has_fp8 and caches:
        found.append(({"kv_dtype": "fp8"}, "fp8 caches (model.kv_dtype fp8)"))
    if has_fp8 and weights and caches:
        both = {"weights_dtype": "fp8", "kv_dtype": "fp8"}
        found.append((both, "fp8 weights and fp8 caches (model.weights_dtype, model.kv_dtype fp8)"))
    return found


def _other_cards(host: Setting, narrow: Plan, gpus: Sequence[Gpu], with_fp8: str, fits: Callable[..., bool]) -> str:
    if narrow.kind != "offload":
        for offload, words in (("weights", "weights"), ("weights+kv", "weights and caches")):
            if fits(Plan(kind="offload", offload=offload, weights_dtype=narrow.weights_dtype, kv_dtype=narrow.kv_dtype),
                    host):  # fmt: skip
                return f"offload of {words} to the host (parallel.plan offload){with_fp8}"
    for count in range(2, min(_MOST_LAYER_CARDS, host.config.dit.num_layers) + 1):
        plan = Plan(kind="layers", pipeline=count, weights_dtype=narrow.weights_dtype, kv_dtype=narrow.kv_dtype)
        if fits(plan, host, [gpus[0]] * count):
            return f"more cards: {count} of these as layers {count}, prompt encoder on the host{with_fp8}"
    return "larger cards"


def _frames(setting: Setting) -> int:
    return setting.config.stream.ring_blocks * setting.config.stream.frames_per_block

"""`avatarcast plan`, and the check that stands before every load: does the model fit the cards, and by which plan?

A load that cannot succeed is refused before the first byte is read, with the table and the nearest plan that fits. On a
processor, and for the drawn figure, nothing is looked at.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model.config import RunConfig
from model.errors import ModelError
from model.gpus import Gpu, installed_gpus, parse_gpus
from model.launch import RUNNABLE
from model.memory import GB
from model.parallel import ParallelConfig, Plan
from model.planner import Layout, Outcome, choose
from model.setting import setting_of
from server.config import Config, ModelSection
from server.errors import ConfigError, StartError

log = logging.getLogger(__name__)

_COLUMNS = ("weights", "rolling_cache", "condition_cache", "activations", "vae", "reserve")
_SHOWN_MISSES = 12


def published_config() -> Config:
    """The published 14B, everything else left to the planner."""
    return Config(model=ModelSection(checkpoint="random:14b"))


def run_plan(config: Config, *, gpus: str | None, size: str | None, chart: Path | None, as_json: bool) -> int:
    """Print the plan.

    Args:
        config: whose `model` and `parallel` are planned.
        gpus: cards, as `4x24GB` or auto; None takes `parallel.gpus`.
        size: picture size; None takes the configuration's.
        chart: where a picture of every device's memory goes (PNG).
        as_json: one JSON object on the last line.

    Returns:
        Exit code: 0, or 1 when no plan fits.

    Raises:
        ConfigError, ModelError: one sentence with the remedy.
    """
    if config.model.kind == "fake":
        raise ConfigError("model.kind is fake, which needs no card; choose a configuration with kind checkpoint")
    if chart is not None and (chart.suffix.lower() != ".png" or not chart.parent.is_dir()):
        raise ConfigError(f"--chart is {chart}; name a .png file in a folder that is there")
    try:
        section = config.model if size is None else replace(config.model, size=size)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    wanted = gpus or config.parallel.gpus
    cards = installed_gpus() if wanted == "auto" else parse_gpus(wanted)
    if not cards:
        raise ConfigError("gpus is auto but no card of this machine answers; name cards, for example --gpus 4x24GB")
    outcome = _outcome(section, config.parallel, cards, section.weights_dtype, section.kv_dtype, None)
    best = outcome.nearest
    sizes = setting_of(section).config
    print(f"{sizes.name}, {sizes.width}x{sizes.height}, on {_cards(cards)}")
    print("\n".join(report(outcome)))
    if outcome.chosen is not None and best.plan.kind not in RUNNABLE:
        print(f"note: this version does not run plan {best.plan.kind}; it runs {', '.join(RUNNABLE)}")
    if chart is not None:
        from server.plan_chart import draw

        draw(best, chart, f"{sizes.name} {sizes.width}x{sizes.height}: {title(best)}")
        print(f"chart: {chart}")
    if as_json:
        print(json.dumps(as_plain(outcome)))
    return 0 if outcome.chosen is not None else 1


def plan_to_run(model: ModelSection, parallel: ParallelConfig) -> tuple[Plan | None, int | None]:
    """The plan a model is about to be loaded with, and how many sessions' memory the cards then hold.

    Returns:
        None for the plan where there is nothing to plan (processor, drawn figure), and for the sessions where no card's
        memory is counted.

    Raises:
        StartError: this version cannot run the plan, or it does not fit the cards; the text holds table and remedy.
    """
    if model.kind == "fake":
        return None, None
    check_runnable(parallel)
    if model.device == "cpu":
        return _on_processor(parallel), None
    cards = installed_gpus()
    if not cards:
        return _on_processor(parallel), None
    if model.device.startswith("cuda:"):
        cards = cards[int(model.device.removeprefix("cuda:")) :][:1]
    if not cards:
        return None, None  # loading says which device is missing
    layout = checked_layout(model, parallel, cards)
    log.info("plan %s\n%s", title(layout), "\n".join(table(layout)))
    return layout.plan, layout.room


def check_runnable(parallel: ParallelConfig) -> None:
    """Refuse what the runtime does not have.

    Raises:
        StartError: one sentence naming the key.
    """
    kinds = ", ".join(RUNNABLE)
    if parallel.plan not in ("auto", *RUNNABLE):
        raise StartError(
            f"parallel.plan is {parallel.plan}, which this version plans but does not run; use {kinds}, or auto"
        )
    places = sorted({place for known in RUNNABLE.values() for place in known})
    if parallel.vae not in ("auto", *places):
        raise StartError(
            f"parallel.vae is {parallel.vae}, which this version plans but does not run; use auto, {', '.join(places)}"
        )


def checked_layout(run: RunConfig, parallel: ParallelConfig, cards: Sequence[Gpu]) -> Layout:
    """The fastest plan that this version runs, fits the cards, and keeps the precision that will be loaded.

    Raises:
        StartError: nothing does; the text holds the table and the nearest plan that would.
    """
    weights, kv = ("bf16" if name == "auto" else name for name in (run.weights_dtype, run.kv_dtype))
    outcome = _outcome(run, parallel, cards, weights, kv, RUNNABLE)
    if outcome.chosen is not None:
        return outcome.chosen
    anything = _outcome(run, ParallelConfig(reserve_gb=parallel.reserve_gb), cards, "auto", "auto", RUNNABLE)
    other = _outcome(run, ParallelConfig(reserve_gb=parallel.reserve_gb), cards, "auto", "auto", None)
    lines = [
        f"plan {title(outcome.nearest)} lacks {-min(outcome.nearest.free) / GB:.1f} GB on {_cards(cards)}; "
        f"remedy: {outcome.misses[0].remedy}",
        *table(outcome.nearest),
    ]
    if anything.chosen is not None:
        lines.append(f"nearest plan that fits: {title(anything.chosen)}; {keys_of(anything.chosen.plan)}")
    elif other.chosen is not None:
        lines.append(f"{title(other.chosen)} would fit, but this version does not run plan {other.chosen.plan.kind}")
    else:
        lines.append("no plan fits these cards at this size")
    raise StartError("\n".join(lines))


def _on_processor(parallel: ParallelConfig) -> Plan | None:
    """What was asked for by name; processors are not planned."""
    if parallel.plan in ("auto", "single"):
        return Plan(vae="tiled") if parallel.vae == "tiled" else None
    try:
        return Plan(
            kind=parallel.plan,
            pipeline=parallel.pipeline or (1 if parallel.plan == "sequence" else 2),
            sequence=parallel.sequence or (2 if parallel.plan == "sequence" else 1),
            vae="shared" if parallel.vae == "auto" else parallel.vae,
            offload=("weights" if parallel.offload in ("auto", "none") else parallel.offload)
            if parallel.plan == "offload"
            else "none",
        )
    except ValueError as error:
        raise StartError(f"parallel: {error}") from error


def _outcome(
    run: RunConfig,
    parallel: ParallelConfig,
    cards: Sequence[Gpu],
    weights: str,
    kv: str,
    runnable: Mapping[str, tuple[str, ...]] | None,
) -> Outcome:
    try:
        return choose(setting_of(run), cards, parallel, weights, kv, runnable)
    except ModelError:
        raise
    except ValueError as error:
        raise StartError(str(error)) from error


# What people and programs read.


def title(layout: Layout) -> str:
    """`layers 4, weights fp8, caches bf16`."""
    plan = layout.plan
    offload = "" if plan.offload == "none" else f" of {plan.offload.replace('+kv', ' and caches')}"
    return f"{plan.name}{offload}, weights {plan.weights_dtype}, caches {plan.kv_dtype}"


def keys_of(plan: Plan) -> str:
    """The configuration that asks for a plan."""
    words = [
        f"parallel.plan {plan.kind}",
        f"model.weights_dtype {plan.weights_dtype}",
        f"model.kv_dtype {plan.kv_dtype}",
    ]
    words += [f"parallel.pipeline {plan.pipeline}"] if plan.pipeline > 1 else []
    words += [f"parallel.sequence {plan.sequence}"] if plan.sequence > 1 else []
    words += [f"parallel.offload {plan.offload}"] if plan.offload != "none" else []
    words += [f"parallel.vae {plan.vae}"] if plan.vae != "shared" else []
    return "set " + ", ".join(words)


def devices_of(layout: Layout) -> list[dict[str, Any]]:
    """Every device's share in GB, as the JSON has it."""
    rows = []
    for index, (gpu, need, free) in enumerate(zip(layout.gpus, layout.needs, layout.free, strict=True)):
        parts = {f"{name}_gb": getattr(need, name) for name in _COLUMNS[:-1]}
        parts |= {"reserve_gb": layout.reserve, "total_gb": need.peak + layout.reserve, "free_gb": free}
        rows.append({"name": f"{index}: {gpu.name}", **{name: round(value / GB, 3) for name, value in parts.items()}})
    return rows


def as_plain(outcome: Outcome) -> dict[str, Any]:
    """The contract's JSON object; where nothing fits, plan and devices are those of the nearest."""
    best = outcome.nearest
    return {
        "fits": outcome.chosen is not None,
        "plan": {name: value for name, value in asdict(best.plan).items() if name != "cut"},
        "devices": devices_of(best),
        "block_s": round(best.block_s, 4),
        "sessions": best.sessions,
        "misses": [
            {"plan": _miss_name(m.plan), "by_gb": round(m.by / GB, 2), "remedy": m.remedy} for m in outcome.misses
        ],
    }


def _miss_name(plan: Plan) -> str:
    offload = "" if plan.offload == "none" else f" {plan.offload}"
    return f"{plan.name}{offload}, weights {plan.weights_dtype}, caches {plan.kv_dtype}"


def table(layout: Layout) -> list[str]:
    """A line per device, GB."""
    heads = ["device", *(name.replace("_cache", "").replace("rolling", "rings") for name in _COLUMNS), "total", "free"]
    rows = [[row.pop("name"), *(f"{value:.2f}" for value in row.values())] for row in devices_of(layout)]
    layers = [f"{d.layers.start}-{d.layers.stop - 1}" if len(d.layers) else "-" for d in layout.duties]
    heads.insert(1, "layers")
    for row, span in zip(rows, layers, strict=True):
        row.insert(1, span)
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [heads, *rows]]


def report(outcome: Outcome) -> list[str]:
    """Plan, table, estimates, and why the others miss."""
    best = outcome.nearest
    lines = [f"plan: {title(best)}" if outcome.chosen else f"no plan fits; nearest: {title(best)}", *table(best)]
    lines.append(
        f"estimate: a block every {best.block_s:.2f} s, {best.latency_s:.2f} s for one alone; "
        f"{best.sessions} live sessions (on {best.gpus[0].speed.name} speeds; GB are 1e9 bytes)"
    )
    if outcome.misses:
        lines.append("do not fit:")
    lines += [
        f"  {_miss_name(m.plan)}: lacks {m.by / GB:.2f} GB; remedy: {m.remedy}" for m in outcome.misses[:_SHOWN_MISSES]
    ]
    if len(outcome.misses) > _SHOWN_MISSES:
        lines.append(f"  and {len(outcome.misses) - _SHOWN_MISSES} more")
    return lines


def _cards(cards: Sequence[Gpu]) -> str:
    names = [gpu.name for gpu in cards]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))

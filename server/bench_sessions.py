"""`avatarcast bench sessions`: how many people one engine serves at once, found by opening one session after another.

Every level adds a session to those that already run, lets all of them speak, and judges them together. The first level
at which a picture comes late is over the limit; admission is asked what it would have let in, so that its arithmetic
and the machine can be compared.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import uvloop

from server.bench import WARM_UP_S, Visitor, block_work_ms, cpu_s, spread, synthetic_voice
from server.config import Config, Secrets
from server.errors import ConfigError, StartError
from server.hub import Hub
from server.metrics import percentile
from server.schemas import NewSession

OFFSET_S = 1.7
"""Every visitor says the same, this much later than the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsBench:
    """What `bench sessions` is asked to do."""

    seconds: float = 15.0
    """Measured time of each level, after a warm-up."""
    most: int = 8
    """Sessions at which it ends, whether more would fit or not."""

    def __post_init__(self) -> None:
        if not 3 <= self.seconds <= 86_400:
            raise ConfigError(f"--seconds is {self.seconds}; it must be 3 to 86400")
        if not 1 <= self.most <= 256:
            raise ConfigError(f"--most is {self.most}; it must be 1 to 256")


def run_sessions(config: Config, bench: SessionsBench, *, as_json: bool) -> int:
    """Measure and print; the exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure_sessions(config, bench))
    for line in table(figures):
        print(line)
    if as_json:
        print(json.dumps(figures))
    return 0


async def measure_sessions(config: Config, bench: SessionsBench) -> dict[str, Any]:
    """Open sessions until one picture comes late, or `most` run.

    Raises:
        StartError: the engine cannot start.
    """
    limits = replace(config.limits, max_sessions=bench.most, sessions_per_minute=max(60, bench.most))
    hub = Hub(replace(config, limits=limits), Secrets())
    await hub.start()
    try:
        await hub.wait_started()
        if hub.start_error is not None:
            raise StartError(hub.start_error)
        admitted = config.limits.max_sessions or hub.admission.measured_sessions
        voice, visitors, levels = synthetic_voice(20.0), [], []
        async with AsyncExitStack() as stack:
            while len(levels) < bench.most:
                live = await hub.open_session(NewSession(), None, client="bench")
                said = np.roll(voice, -round(48_000 * OFFSET_S * len(visitors)))
                visitors.append(await stack.enter_async_context(Visitor(live, said)))
                levels.append(await _level(hub, visitors, bench.seconds))
                if not levels[-1]["kept_up"]:
                    break
        info = hub.engine.info
        assert info is not None
        return {
            "bench": "sessions",
            "model": info.name,
            "size": f"{info.geometry.width}x{info.geometry.height}",
            "admitted": admitted,
            "kept_up": sum(level["kept_up"] for level in levels),
            "levels": levels,
        }
    finally:
        await hub.stop()


async def _level(hub: Hub, visitors: list[Visitor], seconds: float) -> dict[str, Any]:
    """Figures of all visitors together."""
    await asyncio.sleep(WARM_UP_S)
    for visitor in visitors:
        visitor.forget()
    before, began_s = cpu_s(hub), time.monotonic()
    stats = [visitor.live.session.stats() for visitor in visitors]
    await asyncio.sleep(seconds)
    passed_s, after = time.monotonic() - began_s, cpu_s(hub)
    late = [v.live.session.stats().underruns - was.underruns for v, was in zip(visitors, stats, strict=True)]
    skipped = [
        v.live.session.stats().deadline_misses - was.deadline_misses for v, was in zip(visitors, stats, strict=True)
    ]
    shown = [len(visitor.latencies_s) / passed_s for visitor in visitors]
    return {
        "sessions": len(visitors),
        "fps_slowest": round(min(shown), 2),
        "block_ms": spread([block_work_ms(event) for visitor in visitors for event in visitor.blocks]),
        "mouth_latency_ms_p95_slowest": round(
            1000 * max(percentile(visitor.latencies_s, 0.95) for visitor in visitors), 1
        ),
        "underruns": sum(late),
        "deadline_misses": sum(skipped),
        "cpu_cores": {name: round((after[name] - before[name]) / passed_s, 3) for name in after},
        "kept_up": not any(late) and not any(skipped),
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The figures for people."""
    head = f"{'sessions':>8} {'fps':>6} {'block p50 / p95':>17} {'latency p95':>12} {'late':>5} {'missed':>7}  cores"
    rows = [f"{figures['model']} {figures['size']}", head]
    for level in figures["levels"]:
        block = f"{level['block_ms']['p50']:.0f} / {level['block_ms']['p95']:.0f} ms"
        cores = ", ".join(f"{name} {value:.2f}" for name, value in level["cpu_cores"].items())
        rows.append(
            f"{level['sessions']:>8} {level['fps_slowest']:>6.2f} {block:>17}"
            f" {level['mouth_latency_ms_p95_slowest']:>9.0f} ms {level['underruns']:>5} {level['deadline_misses']:>7}"
            f"  {cores}"
        )
    rows.append(f"kept up with {figures['kept_up']}; admission lets {figures['admitted']} in")
    return rows

"""How far the planner's memory is from a card's: `python -m model.bench_memory`.

Every case builds one device's share of a plan from random weights (some layers, some steps' rings, the decoder or not),
runs a stream until its rings are full, gives it a new prompt as a live session may get one, decodes, and compares what
torch had allocated at most, and what the driver says is taken, with what `model.memory` predicts. Smaller cards are
imitated: the allocator gets no more than they have. On a processor, where nobody counts peaks, the tensors that stay
are compared instead.

    python -m model.bench_memory [--only single-fp8 24gb-first …] [--model mini --size 128x64] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from model.bench_dit import DiTBench, Run
from model.bench_timing import BenchError, name_of, size_of, this_device
from model.bench_vae import DecodedStream, random_wan_decoder
from model.compile import speed_up
from model.config import ModelConfig
from model.fast import release
from model.gpus import USABLE
from model.memory import (
    GB,
    Duty,
    Setting,
    base_params,
    condition_bytes,
    decoder_params,
    decoding,
    layer_bytes,
    need_of,
    prompt_bytes,
    ring_bytes,
)
from model.parallel import Plan
from model.pictures import HostPictures, to_pixels
from model.published import forged_config
from model.random_weights import random_dit
from model.state import State

RESERVE = 1 * GB
"""What a plan sets aside by default for contexts and fragments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One device of a plan."""

    name: str
    plan: Plan
    size: str = "704x384"
    share: tuple[float, float] = (0.0, 1.0)
    """First layer and the one behind the last, as parts of all; equal: none."""
    rings: float = 1.0
    """Steps whose ring is here, as a part of all."""
    decodes: bool = False
    card_gb: float = 0.0
    """Nominal size of the imitated card; 0: the card as it is."""


def _plan(weights: str = "fp8", kv: str = "fp8", **rest: Any) -> Plan:
    return Plan(weights_dtype=weights, kv_dtype=kv, **rest)


CASES = (
    Case(name="single-fp8", plan=_plan(), decodes=True),
    Case(name="single-fp8-kv-bf16", plan=_plan(kv="bf16"), decodes=True),
    Case(name="single-bf16", plan=_plan("bf16", "bf16"), decodes=True),
    Case(name="single-small", plan=_plan(kv="bf16"), size="384x256", decodes=True),
    Case(name="48gb-single", plan=_plan(), size="512x288", decodes=True, card_gb=48),
    Case(name="80gb-single", plan=_plan(), decodes=True, card_gb=80),
    Case(name="24gb-first", plan=_plan("bf16", kind="layers", pipeline=4), share=(0.0, 0.275), card_gb=24),
    Case(name="24gb-last", plan=_plan("bf16", kind="layers", pipeline=4), share=(0.825, 1.0), decodes=True, card_gb=24),
    Case(name="layers-2-first", plan=_plan(kv="bf16", kind="layers", pipeline=2), share=(0.0, 0.55)),
    Case(name="timestep-4", plan=_plan(kv="bf16", kind="timestep", pipeline=4), rings=0.25),
    Case(name="decoder", plan=_plan(vae="own"), share=(0.0, 0.0), decodes=True),
    Case(name="decoder-tiled", plan=_plan(vae="tiled"), share=(0.0, 0.0), decodes=True),
)


def duty_of(case: Case, config: ModelConfig) -> Duty:
    """What the case's device does."""
    first, behind = (round(part * config.dit.num_layers) for part in case.share)
    rings = round(case.rings * len(config.sampler.sigmas)) if behind > first else 0
    return Duty(layers=range(first, behind), rings=rings, leads=False, decodes=case.decodes)


def kept_bytes(setting: Setting, plan: Plan, duty: Duty) -> float:
    """Of the prediction, what stays between blocks: weights of transformer and decoder, and a session."""
    dit, layers = setting.config.dit, len(duty.layers)
    total = 0.0
    if layers:
        total += 2.0 * base_params(dit) + layer_bytes(dit, duty.layers, plan.weights_dtype == "fp8")
        total += duty.rings * ring_bytes(setting, layers, plan) + condition_bytes(setting, layers, plan)
        total += prompt_bytes(setting, layers)
    if duty.decodes:
        total += 2.0 * decoder_params(setting.config.vae) + decoding(setting)[0]
    return total


def _held(*values: Any) -> int:
    """Bytes of modules and states."""
    total = 0
    for value in values:
        if isinstance(value, nn.Module):
            total += sum(t.nbytes for t in (*value.parameters(), *value.buffers()))
        elif isinstance(value, State):
            total += value.nbytes
        else:
            total += sum(t.nbytes for t in value if t is not None)
    return total


@torch.inference_mode()
def run_case(case: Case, config: ModelConfig, setting: Setting, device: torch.device, compiled: bool) -> int:
    """Load and run one device's share.

    Returns:
        Bytes of the tensors that stay.
    """
    duty, plan, on_gpu = duty_of(case, config), case.plan, device.type == "cuda"
    bench = DiTBench(width=config.width, height=config.height, kv=plan.kv_dtype)
    held: list[Any] = []
    run = None
    if duty.layers:
        inject = tuple(i - duty.layers.start for i in config.dit.audio_inject_layers if i in duty.layers)
        dit_config = replace(config.dit, num_layers=len(duty.layers), audio_inject_layers=inject)
        dit = random_dit(dit_config, 0, device, torch.bfloat16)
        speed_up(dit, fp8=plan.weights_dtype == "fp8", backend="inductor" if compiled else None)
        run = Run(dit, bench, config.stream, config.sampler.sigmas[: duty.rings])
        held += [dit, run.state]
    stream = None
    if duty.decodes:
        decoder = random_wan_decoder(config.vae, device, torch.bfloat16)
        decoder.is_tiled = plan.vae == "tiled"
        stream = DecodedStream(decoder, config.vae, config.height, config.width)
        held.append(decoder)
    for block in range(config.stream.ring_blocks + 2):
        if run is not None:
            run.block()
            if block == config.stream.ring_blocks:
                run.denoiser.recondition(run.state, text=run.state.text)
        if stream is not None:
            HostPictures(to_pixels(stream.block())).wait()
    if on_gpu:
        torch.cuda.synchronize()
    return _held(*held, *([stream.slots] if stream is not None else []))


def measure(case: Case, model: str, size: str | None, compiled: bool) -> dict[str, Any]:
    """Prediction and measurement of a case, as plain values in GB."""
    device, config = this_device(), forged_config(model)
    width, height = size_of(size or case.size)
    config = replace(config, width=width, height=height, stream=replace(config.stream, replace_sink=False))
    setting = Setting(config=config, steps=len(config.sampler.sigmas), with_encoders=False)
    duty, on_gpu = duty_of(case, config), device.type == "cuda"
    need = need_of(setting, case.plan, duty)
    kept = kept_bytes(setting, case.plan, duty)
    result: dict[str, Any] = {
        "case": case.name,
        "plan": case.plan.name,
        "size": f"{width}x{height}",
        "dtype": f"{case.plan.weights_dtype}/{case.plan.kv_dtype}",
        "layers": len(duty.layers),
        "card_gb": case.card_gb,
    }
    limit = USABLE * case.card_gb * GB
    if on_gpu:
        torch.compiler.reset()
        release()
        torch.cuda.reset_peak_memory_stats()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total) if limit else 1.0)
    try:
        held = run_case(case, config, setting, device, compiled)
        if on_gpu:
            free, total = torch.cuda.mem_get_info()
            result |= _figures("allocated", need.peak, torch.cuda.max_memory_allocated())
            result |= _figures("driver", need.peak + RESERVE, total - free)
            result["reserved_gb"] = round(torch.cuda.max_memory_reserved() / GB, 4)
        result |= _figures("kept", kept, held)
    except torch.cuda.OutOfMemoryError as error:
        result["failed"] = str(error).splitlines()[0]
    finally:
        if on_gpu:
            release()
            torch.cuda.set_per_process_memory_fraction(1.0)
    return result


def _figures(what: str, predicted: float, measured: float) -> dict[str, Any]:
    ratio = predicted / measured if measured else math.nan
    return {what: {"predicted_gb": predicted / GB, "measured_gb": measured / GB, "ratio": round(ratio, 4)}}


def lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """A table: predicted, measured and their ratio, of each figure."""
    head = f"{'case':<20}{'plan':<14}{'size':<10}{'dtype':<11}"
    yield f"{head}{'figure':<11}{'predicted':>10}{'measured':>10}{'ratio':>8}"
    for result in results:
        head = f"{result['case']:<20}{result['plan']:<14}{result['size']:<10}{result['dtype']:<11}"
        if "failed" in result:
            yield head + result["failed"]
        for what in ("allocated", "driver", "kept"):
            if what in result:
                f = result[what]
                yield f"{head}{what:<11}{f['predicted_gb']:>10.4g}{f['measured_gb']:>10.4g}{f['ratio']:>8.3f}"


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.bench_memory", description="Predicted and measured memory.")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--model", choices=("14b", "mini"), default="14b")
    parser.add_argument("--size", help="of every case, in place of its own")
    parser.add_argument("--plain", action="store_true", help="do not compile")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if this_device().type != "cuda" and given.model == "14b":
            raise BenchError("model is 14b, but there is no GPU; give --model mini to try the script")
        compiled = not given.plain and this_device().type == "cuda"
        cases = [case for case in CASES if case.name in given.only]
        results = []
        for case in cases:
            results.append(measure(case, given.model, given.size, compiled))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    except BenchError as error:
        print(f"bench_memory: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(results)))
    if given.json:
        print(json.dumps({"device": name_of(this_device()), "cases": results}))
    return 1 if any("failed" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

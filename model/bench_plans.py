"""How fast plans over several GPUs are, with random weights: `python -m model.bench_plans`.

The runtime of the live server (`crew`, `stages`, `links`) around random transformers and decoders of the published
sizes, so it needs neither a checkpoint nor a media library. Every plan is one JSON line: pictures a second decoded and
in main memory, time of a block alone and between blocks of a full pipeline, first pictures, memory of every device, and
how near its latents are to those of `single`. One rank a process; ranks stay for all plans, so code is compiled once. A
plan that fails or takes too long is reported as such, its processes are ended, and the next plan gets new ones.

    python -m model.bench_plans --plans single layers:4 timestep:4 sequence:4 layers:2x2 layers:3+vae
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import links
from model.bench_timing import quantile
from model.bench_vae import DecodedStream, random_wan_decoder
from model.compile import speed_up
from model.config import ModelConfig, SamplerConfig
from model.crew import Crew, Peers, follow
from model.errors import ModelError
from model.mesh import Role
from model.orders import Begin, Joined, Shown
from model.parallel import Plan
from model.pictures import HostPictures, to_pixels
from model.published import published
from model.random_weights import random_dit
from model.rank import build_stage, mesh_of
from model.sampler import published_sigmas
from model.screen import ScreenState
from model.sequence import share_out
from model.stages import Stage
from model.vae import PAST_LATENTS, Still

DTYPES = ("fp8", "bf16", "fp32")
PICTURES = 12
QUALITY_BLOCKS = 4
START_S = 150.0
"""Longest time that processes may take to start."""


class PlanError(ModelError):
    """A plan cannot be read or measured; the message names it."""


def plan_of(text: str, kv: str = "bf16") -> Plan:
    """`layers:4`, `sequence:4`, `layers:2x2`, `timestep:4+vae`, `single` as a plan.

    Raises:
        PlanError: it is none.
    """
    match = re.fullmatch(r"(single|layers|timestep|sequence)(?::(\d+)(?:x(\d+))?)?(\+vae)?", text)
    if match is None:
        raise PlanError(f"plan is {text!r}; write single, layers:4, timestep:4, sequence:4, layers:2x2, or one + vae")
    kind, first, second, vae = match.groups()
    first, second = int(first or 1), int(second or 1)
    pipeline, sequence = (1, first) if kind == "sequence" else (first, second)
    try:
        return Plan(kind=kind, pipeline=pipeline, sequence=sequence, kv_dtype=kv, vae="own" if vae else "shared")
    except ValueError as error:
        raise PlanError(f"plan is {text!r}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBench:
    """What to measure."""

    name: str
    """As `plan_of` reads it."""
    size: str = "704x384"
    """Width x height."""
    dtype: str = "fp8"
    """Of the linear layers: fp8 or bf16 on GPUs; fp32 makes everything float32."""
    kv: str = "bf16"
    """Of remembered keys and values: bf16 or fp8."""
    model: str = "14b"
    """14b or mini."""
    steps: int = 4
    """Denoising steps."""
    blocks: int = 16
    """Measured blocks of a full pipeline."""
    device: str = "cuda"
    """cuda or cpu."""

    @property
    def plan(self) -> Plan:
        return plan_of(self.name, self.kv if self.kv == "fp8" else "bf16")

    def config(self) -> ModelConfig:
        """The whole model."""
        width, _, height = self.size.partition("x")
        if self.model == "mini":
            from model.forge import forged_config

            config = forged_config("mini")
        else:
            config = published(name="random:14b")
        stream = replace(config.stream, replace_sink=False)
        sampler = SamplerConfig(sigmas=published_sigmas(self.steps))
        return replace(config, width=int(width), height=int(height), stream=stream, sampler=sampler)


# A rank.


class BenchScreen:
    """A random decoder where a stage expects a VAE; portraits are noise."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype
        self._decoder = random_wan_decoder(config.vae, device, dtype)

    def look_at(self, picture: np.ndarray, device: torch.device) -> tuple[Still, float]:
        """Noise latents, and a decoder that has seen one."""
        config = self._config
        size = config.dit.in_dim, PAST_LATENTS, config.geometry.latent_height, config.geometry.latent_width
        past = torch.randn(1, *size, generator=torch.Generator().manual_seed(3)).to(device)
        decoded = DecodedStream(self._decoder, config.vae, config.height, config.width)
        return Still(reference=past[:, :, :1], past=past, state=decoded, shown=past), 0.0

    def show(self, latents: Tensor, state: ScreenState) -> HostPictures:
        """As `Screen.show`."""
        return HostPictures(to_pixels(state.vae.block(latents.to(self._dtype))))


def _stage(bench: PlanBench, role: Role, ways: links.Ways, device: torch.device, answer: Any) -> Stage:
    """A rank's stage around random modules in their fast form."""
    config, dit, screen = bench.config(), None, None
    wide = torch.float32 if bench.dtype == "fp32" else torch.bfloat16
    if role.transforms:
        dit = random_dit(config.dit, 0, device, wide, role.layers)
        if ways.team is not None:
            share_out(dit, ways.team)
        speed_up(dit, fp8=bench.dtype == "fp8", backend="inductor" if device.type == "cuda" else None)
    if role.decodes:
        screen = BenchScreen(config, device, wide)
    kv_dtype = torch.float8_e4m3fn if bench.kv == "fp8" else None
    return build_stage(config, role, ways, device, dit=dit, screen=screen, answer=answer, kv_dtype=kv_dtype)


class Conductor:
    """Random blocks through a crew.

    Args:
        crew: of the plan.
        config: of the model.
    """

    def __init__(self, crew: Crew, config: ModelConfig) -> None:
        self.crew, self._config = crew, config
        self._grey = np.full((config.height, config.width, 3), 128, np.uint8)

    def start(self) -> int:
        """A new stream."""
        seen, dit = self.crew.look_at(self._grey), self._config.dit
        context = np.random.default_rng(2).standard_normal((1, min(40, dit.text_len), dit.text_dim), np.float32)
        return self.crew.start(
            context=context, negative=None, reference=seen.reference, past=seen.past, portrait=seen.portrait
        )

    def submit(self, stream: int, block: int, keeps_first: bool = False) -> None:
        """A block of seeded noise and sound."""
        dit, geometry, draws = self._config.dit, self._config.geometry, np.random.default_rng(block)
        size = dit.in_dim, self._config.stream.frames_per_block, geometry.latent_height, geometry.latent_width
        columns = 1, dit.audio_layers, dit.audio_dim, geometry.frames_per_block
        begin = Begin(
            stream=stream,
            block=block,
            noise=draws.standard_normal((1, *size), np.float32),
            columns=draws.standard_normal((1, *columns), np.float32),
            pose=None,
            distance=10,
            keeps_first=keeps_first,
        )
        self.crew.submit(begin, deadline_s=float(block + 1))

    def next_shown(self) -> Shown:
        """The next finished block."""
        while True:
            shown = self.crew.advance(0.02)
            if shown is not None:
                return shown

    def alone(self, stream: int, block: int, keeps_first: bool = False) -> float:
        """Milliseconds of a block with nothing else under way."""
        begun = time.monotonic()
        self.submit(stream, block, keeps_first)
        return 1000 * (self.next_shown().pictures_s - begun)

    def together(self, stream: int, first: int, count: int) -> tuple[list[float], list[float]]:
        """Milliseconds between blocks of a full pipeline, and from each one's submission to its pictures."""
        submitted, moments, latencies = 0, [], []
        while len(moments) < count:
            while submitted < count and self.crew.num_under_way < self.crew.depth:
                self.submit(stream, first + submitted)
                submitted += 1
            shown = self.next_shown()
            moments.append(1000 * shown.pictures_s)
            latencies.append(1000 * (shown.pictures_s - shown.submitted_s))
        filled = self.crew.depth  # the first come while the pipeline fills, the last while it drains
        middle = moments[filled : count - filled] if count > 3 * filled else moments[1:]
        return [b - a for a, b in zip(middle, middle[1:], strict=False)], latencies[filled:]


def measure(crew: Crew, bench: PlanBench) -> tuple[dict[str, Any], np.ndarray]:
    """A plan's figures, and the first latent frames of its first blocks."""
    config = bench.config()
    conductor, begun, firsts = Conductor(crew, config), time.monotonic(), []
    stream = conductor.start()
    for block in range(QUALITY_BLOCKS):
        conductor.alone(stream, block, keeps_first=True)
        firsts.append(crew.first_of(stream))
    warm_s = time.monotonic() - begun
    block, full = QUALITY_BLOCKS, config.stream.ring_blocks + 1 + crew.depth
    conductor.together(stream, block, full)  # rings are full behind this
    block += full
    alone = [conductor.alone(stream, block + i) for i in range(3)]
    block += 3
    gaps, latencies = conductor.together(stream, block, bench.blocks + 2 * crew.depth + 1)
    crew.forget(stream)
    first_ms = []
    for _ in range(2):
        begun = time.monotonic()
        stream = conductor.start()
        conductor.alone(stream, 0)
        first_ms.append(1000 * (time.monotonic() - begun))
        crew.forget(stream)
    figures = {
        "fps": round(1000 * PICTURES / statistics.fmean(gaps), 2),
        "interval_ms_p50": round(statistics.median(gaps), 2),
        "interval_ms_p99": round(quantile(gaps, 0.99), 2),
        "p99_over_p50": round(quantile(gaps, 0.99) / statistics.median(gaps), 3),
        "latency_ms_p50": round(statistics.median(latencies), 2),
        "block_alone_ms": round(statistics.median(alone), 2),
        "first_pictures_ms": round(min(first_ms), 1),
        "warm_up_s": round(warm_s, 1),
        "intervals": len(gaps),
        "depth": crew.depth,
    }
    return figures, np.concatenate(firsts)


def _memory(device: torch.device) -> dict[str, float]:
    """GB: what the allocator held at most, and what the driver says is in use."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2),
        "used_gb": round((total - free) / 1e9, 2),
    }


def _run(bench: PlanBench, rank: int, pipes: list[Connection], device: torch.device, limit_s: float) -> Any:
    """One plan on one rank: figures and latents from the leader, memory from all."""
    config = bench.config()
    mesh = mesh_of(config, bench.plan)
    role = mesh.roles[rank] if rank < mesh.world else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ways = links.Ways(mesh, role, device, links.Limit(limit_s))
    figures = latents = None
    if role is not None and role.leads:
        peers = Peers(pipes[: mesh.world - 1])
        crew = Crew(mesh, _stage(bench, role, ways, device, peers.answers.put), peers, config)
        crew.wait_for_all()
        figures, latents = measure(crew, bench)
        figures["layers"] = [len(layers) for layers in mesh.layers]
        crew.halt()
    elif role is not None:
        stage = _stage(bench, role, ways, device, pipes[0].send)
        pipes[0].send(Joined(rank))
        follow(stage, pipes[0])
    return figures, latents, None if role is None else _memory(device)


def _serve(rank: int, world: int, kind: str, port: int, jobs: Connection, pipes: list[Connection]) -> None:
    """A process: joins the group once, then runs plan after plan."""
    if kind == "cpu":
        torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
    torch._dynamo.config.recompile_limit = 64  # plans differ in shapes, and share this process
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)
    try:
        store = links.open_store(world, START_S, port) if rank == 0 else links.find_store(port, world, START_S)
        links.join(store, rank, world, device, 600.0, few_cores=True)
        jobs.send(("ready", None, None))
        while True:
            bench, limit_s = jobs.recv()
            try:
                with torch.inference_mode():
                    jobs.send(_run(bench, rank, pipes, device, limit_s))
            except Exception as error:
                traceback.print_exc()
                jobs.send((f"rank {rank}: {type(error).__name__}: {error}", None, None))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    except EOFError:
        return
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)  # communicators that wait for somebody would hold up an orderly end


# The parent.


class Group:
    """Processes, one a device.

    Args:
        world: how many.
        kind: cuda or cpu.

    Raises:
        PlanError: they do not start.
    """

    def __init__(self, world: int, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        ends = [context.Pipe() for _ in range(world - 1)]
        self._jobs, self._processes = [], []
        port = _free_port()
        for rank in range(world):
            near, far = context.Pipe()
            pipes = [end for end, _ in ends] if rank == 0 else [ends[rank - 1][1]]
            self._jobs.append(near)
            self._processes.append(
                context.Process(target=_serve, args=(rank, world, kind, port, far, pipes), daemon=True)
            )
            self._processes[-1].start()
        self._gather(time.monotonic() + START_S, "start")

    def run(self, bench: PlanBench, limit_s: float) -> tuple[dict[str, Any], np.ndarray]:
        """Measure a plan.

        Raises:
            PlanError: it failed or took too long; the group must be ended.
        """
        for jobs in self._jobs:
            jobs.send((bench, limit_s))
        answers = self._gather(time.monotonic() + limit_s, bench.name)
        figures, latents, _ = answers[0]
        return figures | {"memory": [memory for *_, memory in answers if memory is not None]}, latents

    def end(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(10)

    def _gather(self, end_s: float, what: str) -> list[Any]:
        answers: dict[int, Any] = {}
        waiting = {jobs: rank for rank, jobs in enumerate(self._jobs)}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, end_s - time.monotonic()))
            if not ready:
                raise PlanError(f"{what}: ranks {sorted(waiting.values())} took too long")
            for jobs in ready:
                rank = waiting.pop(jobs)
                try:
                    answers[rank] = jobs.recv()
                except (EOFError, OSError):
                    raise PlanError(f"{what}: rank {rank} has ended; see its words above") from None
                if isinstance(answers[rank][0], str) and answers[rank][0] != "ready":
                    raise PlanError(f"{what}: {answers[rank][0]}")
        return [answers[rank] for rank in sorted(answers)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def cosine(got: np.ndarray, wanted: np.ndarray) -> float:
    """Of two sets of latents."""
    a, b = got.ravel().astype(np.float64), wanted.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def run_plans(benches: list[PlanBench], limit_s: float) -> int:
    """Measure plan after plan, a line each; how many failed."""
    world, kind = max(bench.plan.num_devices for bench in benches), benches[0].device
    group: Group | None = None
    single: np.ndarray | None = None
    failed = 0
    for bench in benches:
        line = {"plan": bench.plan.name, **asdict(bench)}
        begun = time.monotonic()
        try:
            group = group or Group(world, kind)
            figures, latents = group.run(bench, limit_s)
            line |= figures
            if bench.plan.kind == "single":
                single = latents
            elif single is not None:
                line["cosine_to_single"] = round(cosine(latents, single), 6)
                line["relative_error"] = float(f"{np.linalg.norm(latents - single) / np.linalg.norm(single):.3g}")
        except PlanError as error:
            line["error"] = str(error)
            failed += 1
            if group is not None:
                group.end()
            group = None
        line["took_s"] = round(time.monotonic() - begun, 1)
        print(json.dumps(line), flush=True)
    if group is not None:
        group.end()
    return failed


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m model.bench_plans", description="Measure plans over several GPUs.")
    parser.add_argument("--plans", nargs="+", default=["single", "layers:4", "timestep:4", "sequence:4", "layers:2x2"])
    parser.add_argument("--size", default="704x384")
    parser.add_argument("--dtype", choices=DTYPES, default="fp8")
    parser.add_argument("--kv", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--model", choices=("14b", "mini"), default="14b")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=16, help="measured blocks of a full pipeline")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one plan may take")
    given = vars(parser.parse_args(arguments))
    names, limit_s = given.pop("plans"), given.pop("limit")
    try:
        benches = [PlanBench(name=name, **given) for name in names]
        for bench in benches:
            mesh_of(bench.config(), bench.plan)
    except (ModelError, ValueError) as error:
        print(f"model.bench_plans: {error}", file=sys.stderr)
        return 2
    return 1 if run_plans(benches, limit_s) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Processes that run plan after plan: each stays for all of them, so torch is loaded once a process."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from model.parallel import Plan

RUN = {"device": "cpu", "dtype": "float32", "threads": 1, "steps": "full"}
BLOCKS = 7
"""More than the ring holds, and than replaces the sink."""


@dataclass(frozen=True)
class Case:
    """One thing to run."""

    plan: Plan
    checkpoint: str
    """File."""
    run: dict[str, Any] = field(default_factory=dict)
    """Changes of `RunConfig`."""

    @property
    def settings(self) -> dict[str, Any]:
        return {**RUN, "checkpoint": self.checkpoint, **self.run}


def write_checkpoint(path: Path, **stream: Any) -> str:
    """A small checkpoint with everything that plans have to carry, and changes of its `StreamConfig`."""
    from model.weights import save_checkpoint
    from tests.unit.model.small_model import config, modules

    cfg = config(
        dit={"num_layers": 5, "num_heads": 2, "audio_inject_layers": (0, 2, 4), "enable_framepack": True},
        stream={"ring_blocks": 2, "replace_sink": True, "evict": "slot", "seam_frames": 4, **stream},
        sampler={"sigmas": (1.0, 0.8, 0.5, 0.2), "light_sigmas": ()},
        vae={"stride": (4, 8, 8)},
    )
    save_checkpoint(path, modules(cfg), cfg, {})
    return str(path)


def _spec(session: str, face: int):
    from model.interface import SessionSpec
    from tests.unit.model.small_model import portrait

    past = np.random.default_rng(face).standard_normal((8, 5, 8, 8)).astype(np.float16)  # as after a restart
    return SessionSpec(session=session, image=portrait(face), prompt="calm", seed=7 + face, past=past if face else None)


def _record(model: Any) -> list[np.ndarray]:
    """Latents that a generator of one process shows from now on, in order."""
    seen: list[np.ndarray] = []
    show = model._screen.show

    def shown(latents, state):
        seen.append(latents.float().numpy().copy())
        return show(latents, state)

    model._screen.show = shown
    return seen


def play(model: Any, depth: int) -> list[tuple[str, int, np.ndarray]]:
    """Pictures by block of two sessions in turns; one changes its prompt at block 3, one its portrait at 5."""
    from model.interface import BlockRequest, SessionUpdate
    from tests.unit.model.small_model import portrait

    for face, session in enumerate("ab"):
        model.open(_spec(session, face))
    model.update(SessionUpdate(session="a", block=3, prompt="happy"))
    model.update(SessionUpdate(session="b", block=5, image=portrait(5)))
    samples = model.info.window.samples
    requests = []
    for block in range(BLOCKS):
        for face, session in enumerate("ab"):
            window = 0.1 * np.random.default_rng(100 * face + block).standard_normal(samples)
            requests.append(
                BlockRequest(
                    session=session, block=block, epoch=0, window=window.astype(np.float32), deadline_s=block + 1
                )
            )
    results = []
    for request in requests:
        if depth == 1:
            results.append(model.step(request))
            continue
        # Some blocks come one by one, some several at once, before the ranks have heard of the first.
        most = 1 if request.block in (2, 4) and request.session == "a" else depth
        while model.num_under_way >= most:
            results.append(model.advance())
        model.submit(request)
    while depth > 1 and model.num_under_way:
        results.append(model.advance())
    done = sorted((r.session, r.block, r.frames) for r in results if r is not None)
    return sorted(done, key=lambda entry: entry[:2])


def single(case: Case) -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
    """The same in one process: latents and pictures."""
    from model.generator import load_model

    model = load_model(case.settings)
    latents = _record(model)
    return latents, play(model, 1)


def _rank(rank: int, jobs: Connection, pipes: dict[tuple[int, int], Connection]) -> None:
    """A process: takes cases, answers with latents of the decoding rank and pictures of the leader."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from model import rank as ranks
    from model.config import RunConfig
    from model.leader import load_leader
    from model.links import leave
    from model.stages import Stage

    latents: dict[tuple[int, int], np.ndarray] = {}
    show = Stage._show

    def shown(self, block, x):
        latents[block.begin.block, block.begin.stream] = x.float().numpy().copy()
        show(self, block, x)

    Stage._show = shown
    while (case := jobs.recv()) is not None:
        latents.clear()
        answer: Any = None
        try:
            others = [pipes[rank, other] for other in range(1, case.plan.num_devices)] if rank == 0 else []
            if rank == 0:
                model = load_leader(case.settings, case.plan, others)
                answer = play(model, model.depth)
                model.halt()
            else:
                ranks.run_follower(RunConfig(**case.settings), case.plan, rank, pipes[rank, 0])
            leave()
        except Exception:
            answer = traceback.format_exc()
        warming = min((stream for _, stream in latents), default=0)
        kept = [latents[key] for key in sorted(latents) if key[1] != warming]
        jobs.send((answer, kept))


class Ranks:
    """A context manager over processes, rank by rank."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._jobs, self._processes = [], []
        ends: list[dict[tuple[int, int], Connection]] = [{} for _ in range(count)]
        for rank in range(1, count):
            ends[0][0, rank], ends[rank][rank, 0] = context.Pipe()
        for rank in range(count):
            near, far = context.Pipe()
            self._jobs.append(near)
            self._processes.append(context.Process(target=_rank, args=(rank, far, ends[rank]), daemon=True))

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.pid is not None:
                process.kill()
                process.join()

    def run(self, case: Case, limit_s: float = 60.0) -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
        """Latents in the order of decoding, and pictures."""
        count = case.plan.num_devices
        for process in self._processes[:count]:
            if process.pid is None:
                process.start()
        for jobs in self._jobs[:count]:
            jobs.send(case)
        answers = []
        for rank, jobs in enumerate(self._jobs[:count]):
            assert jobs.poll(limit_s), f"rank {rank} of {case.plan.name} hangs"
            answers.append(jobs.recv())
        for rank, (answer, _) in enumerate(answers):
            assert not isinstance(answer, str), f"rank {rank} of {case.plan.name}:\n{answer}"
        return next(latents for _, latents in answers if latents), answers[0][0]

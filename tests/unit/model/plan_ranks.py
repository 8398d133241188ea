"""Processes that run plan after plan: each stays for all of them, so torch is loaded once a process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from model.parallel import Plan

RUN = {"checkpoint": "random:mini", "size": "64x64", "device": "cpu", "dtype": "float32", "threads": 1}
BLOCKS = 7
"""Two more than the ring holds and one more than replaces the sink."""


@dataclass(frozen=True)
class Case:
    """One thing to run."""

    plan: Plan
    run: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, Any] = field(default_factory=dict)
    """Changes of the checkpoint's `StreamConfig`."""


def _patched(case: Case) -> dict[str, Any]:
    """The case's run; the forged checkpoint of this process has the case's policies."""
    from model import forge
    from model.wan_vae import WanVAE

    original = getattr(forge, "_original_config", forge.forged_config)
    forge._original_config = original

    def forged(size: str):
        config = original(size)
        return dataclasses.replace(config, stream=dataclasses.replace(config.stream, **case.stream))

    forge.forged_config = forged
    WanVAE.still = _quick_still
    return RUN | case.run


def _quick_still(self: Any, image: Any) -> Any:
    """As `WanVAE.still`, from two latents instead of nineteen: encoding a still portrait is not what is tested here."""
    import torch

    from model.vae import Still

    two, _ = self.encode(image[:, :, None].expand(-1, -1, 5, -1, -1))
    past = torch.cat([two[:, :, :1], two[:, :, 1:].expand(-1, -1, 18, -1, -1)], 2)
    shown, state = self.decode(two)
    return Still(reference=past[:, :, 1:2], past=past, state=state, shown=shown[:, :, -1])


def _spec(session: str, face: int):
    from model.interface import SessionSpec
    from tests.unit.model.small_model import portrait

    return SessionSpec(session=session, image=portrait(face), prompt="woman speaks", seed=7 + face)


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
    """Pictures by block of two sessions in turns; one changes its prompt at block 3, one its portrait at block 5."""
    from model.interface import BlockRequest, SessionUpdate
    from tests.unit.model.small_model import portrait

    for face, session in enumerate("ab"):
        model.open(_spec(session, face))
    model.update(SessionUpdate(session="a", block=3, prompt="man smiling"))
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
        while model.num_under_way >= depth:
            results.append(model.advance())
        model.submit(request)
    while depth > 1 and model.num_under_way:
        results.append(model.advance())
    done = sorted((r.session, r.block, r.frames) for r in results if r is not None)
    return sorted(done, key=lambda entry: entry[:2])


def single(case: Case) -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
    """The same in one process: latents and pictures."""
    from model.generator import load_model

    run = _patched(case)
    model = load_model({**run, "steps": "full"})
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
            run = _patched(case)
            others = [pipes[rank, other] for other in range(1, case.plan.num_devices)] if rank == 0 else []
            if rank == 0:
                model = load_leader(run, case.plan, others)
                answer = play(model, model.depth)
                model.halt()
            else:
                ranks.run_follower(RunConfig(**run), case.plan, rank, pipes[rank, 0])
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
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def run(self, case: Case, limit_s: float = 60.0) -> tuple[list[np.ndarray], list[tuple[str, int, np.ndarray]]]:
        """Latents in the order of decoding, and pictures."""
        count = case.plan.num_devices
        for jobs in self._jobs[:count]:
            jobs.send(case)
        answers = []
        for rank, jobs in enumerate(self._jobs[:count]):
            assert jobs.poll(limit_s), f"rank {rank} of {case.plan.name} hangs"
            answers.append(jobs.recv())
        for rank, (answer, _) in enumerate(answers):
            assert not isinstance(answer, str), f"rank {rank} of {case.plan.name}:\n{answer}"
        return next(latents for _, latents in answers if latents), answers[0][0]

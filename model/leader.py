"""The generator of a plan over several processes: the one generator, whose steps and pictures are made by its crew.

It hears, reads and checks as ever, in the leading process; what `Generator` does itself with transformer and decoder
becomes orders (`model.orders`) here. Blocks may be submitted before earlier ones are finished, which is what keeps the
stages busy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import RunConfig
from model.crew import Crew
from model.errors import PortraitError, UnsupportedError
from model.generator import Generator, Portrait, Session
from model.interface import BlockRequest, BlockResult, SessionInfo, SessionSpec
from model.orders import Begin, Hurry, Prompt, Seen, Shown
from model.parallel import Plan
from model.pose_video import PoseVideo
from model.profile import Profile
from model.rank import HURRY_S, Loaded, leader_of
from model.vae import Still

log = logging.getLogger(__name__)

_WAIT_S = 0.02
_TRIALS = 3
"""Blocks that are timed alone before the first session; as many again are timed together."""


@dataclass(slots=True)
class LedStream:
    """A stream as the leader knows it."""

    number: int
    text: np.ndarray
    num_blocks: int = 0
    """Blocks begun."""


@dataclass(slots=True)
class _Asked:
    """A block under way."""

    request: BlockRequest
    applied: tuple[str, ...]
    audio_s: float


class LeadingGenerator(Generator):
    """See the module. Calls come from one thread.

    Args:
        loaded: the leader's share.
        profile: as chosen for all ranks.
        crew: all ranks.
    """

    def __init__(self, loaded: Loaded, profile: Profile, crew: Crew) -> None:
        self._crew = crew
        self._asked: dict[tuple[int, int], _Asked] = {}
        self._hearing = torch.cuda.Stream(loaded.device) if loaded.device.type == "cuda" else None
        denoiser = crew.leading.denoiser
        super().__init__(loaded.config, loaded.modules, profile, loaded.run.noise, loaded.run, denoiser)

    # What other processes ask of a model that takes several blocks at once.

    @property
    def depth(self) -> int:
        """Blocks that may be under way at once."""
        return self._crew.depth

    @property
    def num_under_way(self) -> int:
        """Blocks that were submitted and not finished."""
        return self._crew.num_under_way

    @property
    def oldest_s(self) -> float | None:
        """Monotonic time at which the oldest block under way was submitted; None: there is none."""
        return self._crew.oldest_s

    @torch.inference_mode()
    def submit(self, request: BlockRequest) -> None:
        """Take a block; `advance` makes it. Raises as `step`."""
        session = self._session(request.session)
        self._check(request, session)
        started_s = time.monotonic()
        applied = self._apply(session, request.block)
        with torch.cuda.stream(self._hearing):  # beside the stage's work, whose queue it would wait for
            columns = self._columns(session, request)[None]
            track = self._track(session, request)
            begin = self._begin(session, request, columns, track)
        needs_sink = self.denoiser.needs_new_sink(session.stream.num_blocks)
        self._asked[begin.stream, begin.block] = _Asked(request, applied, time.monotonic() - started_s)
        session.stream.num_blocks += 1
        session.last_block = request.block
        self._crew.submit(begin, request.deadline_s, needs_sink)

    def advance(self, limit_s: float = _WAIT_S) -> BlockResult | None:
        """Bring blocks on their way; a finished one, if there is.

        Raises:
            LinkError: the group cannot go on.
        """
        shown = self._crew.advance(limit_s)
        return None if shown is None else self._result(shown)

    def step(self, request: BlockRequest) -> BlockResult:
        """One block from end to end; raises as `Generator.step`."""
        self.submit(request)
        while True:
            result = self.advance()
            if result is not None and (result.session, result.block) == (request.session, request.block):
                return result

    def open(self, spec: SessionSpec) -> SessionInfo:
        before = self._sessions.get(spec.session)
        info = super().open(spec)
        if before is not None:
            self._forget(before)
        return info

    def close(self, session: str) -> None:
        known = self._sessions.get(session)
        super().close(session)
        if known is not None:
            self._forget(known)

    def _forget(self, session: Session) -> None:
        unused = [portrait.still.state for _, _, portrait in session.pending if portrait is not None]
        number = session.stream.number
        for block in self._crew.forget(number, unused):
            del self._asked[number, block]

    def halt(self) -> None:
        """All ranks leave."""
        self._crew.halt()

    # What `Generator` would do itself.

    def _begin(self, session: Session, request: BlockRequest, columns: Tensor, track: Tensor | None) -> Begin:
        stream, policy = session.stream, self.config.stream
        distance = policy.sink_distance
        if distance == "random":
            distance = session.noise.sink_distance(request.block, *policy.sink_range)
        return Begin(
            stream=stream.number,
            block=request.block,
            noise=session.noise.block(request.block).numpy(),
            columns=_array(columns),
            pose=None if track is None else _array(track),
            distance=distance,
            keeps_first=policy.replace_sink and stream.num_blocks == 0,
        )

    def _result(self, shown: Shown) -> BlockResult:
        asked = self._asked.pop((shown.stream, shown.block))
        request = asked.request
        return BlockResult(
            session=request.session,
            block=request.block,
            epoch=request.epoch,
            frames=shown.frames,
            stage_s={
                "audio": asked.audio_s,
                "dit": max(0.0, shown.latents_s - shown.submitted_s),
                "vae": shown.pictures_s - shown.latents_s,
            },
            applied=asked.applied,
            latents=shown.latents,
        )

    def _end(self, stream: LedStream) -> None:
        self._crew.settle(stream.number)
        self._crew.forget(stream.number)

    def _prompt(self, prompt: str) -> np.ndarray:
        return _array(self.text.encode(prompt))

    def _look_at(self, picture: np.ndarray, past: np.ndarray | None) -> tuple[Still, float]:
        seen: Seen = self._crew.look_at(picture, past)
        if seen.problem:
            raise PortraitError(seen.problem)
        still = Still(reference=seen.reference, past=seen.past, state=seen.portrait, shown=None)
        return still, seen.psnr_db

    def _start(self, text: np.ndarray, portrait: Portrait, weights: Tensor | None) -> LedStream:
        still = portrait.still
        number = self._crew.start(
            context=text,
            negative=self._negative,
            reference=still.reference,
            past=still.past if self.config.dit.enable_framepack else None,
            portrait=still.state,
            weights=None if weights is None else _array(weights),
        )
        return LedStream(number, text)

    def _pose_video(self) -> PoseVideo:
        if self.vae is None:
            raise UnsupportedError(
                "a pose video is encoded in the leading process, which has no VAE under this plan; use plan single or "
                "sequence with the VAE on a shared device"
            )
        return super()._pose_video()

    def _reprompt(self, session: Session, text: np.ndarray) -> None:
        session.stream.text = text
        self._crew.begin_all(session.stream.number)
        self._crew.order(Prompt(stream=session.stream.number, context=text))


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def load_leader(run: RunConfig | Mapping[str, Any], plan: Plan, pipes: list[Connection]) -> LeadingGenerator:
    """Load the leader's share, wait for the other ranks, and time the whole.

    Args:
        run: which checkpoint and how; plain values are taken as the fields of `RunConfig`.
        plan: over several processes.
        pipes: to rank 1, 2 and so on, each running `rank.run_follower`.

    Raises:
        ModelError: one sentence.
    """
    try:
        run = run if isinstance(run, RunConfig) else RunConfig.from_dict(dict(run))
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    loaded, stage, profile, peers = leader_of(run, plan, pipes)
    crew = Crew(loaded.mesh, stage, peers, loaded.config)
    crew.wait_for_all()
    model = LeadingGenerator(loaded, profile, crew)
    block_s, interval_s = _times(model)
    crew.order(Hurry(HURRY_S))
    reasons = {**profile.reasons, "plan": f"{plan.name}: a block in {block_s:.3f} s, one every {interval_s:.3f} s"}
    model.profile = replace(profile, block_s=block_s, reasons=reasons)
    details = {**model.profile.as_dict(), "plan": plan.name}
    model.info = replace(model.info, profile=details, block_s=block_s, interval_s=interval_s, depth=model.depth)
    log.info("%s", reasons["plan"])
    return model


def _times(model: LeadingGenerator) -> tuple[float, float]:
    """Seconds of a block alone, and between blocks of a full pipeline, after some to warm up."""
    geometry, samples = model.geometry, model.info.window.samples
    grey = np.full((geometry.height, geometry.width, 3), 128, np.uint8)
    model.open(SessionSpec(session="", image=grey))
    silent = np.zeros(samples, np.float32)
    requests = iter([BlockRequest(session="", block=n, epoch=0, window=silent) for n in range(100)])
    alone = []
    for _ in range(_TRIALS + 1):
        start = time.monotonic()
        model.step(next(requests))
        alone.append(time.monotonic() - start)
    for _ in range(model.depth):
        model.submit(next(requests))
    moments = []
    while len(moments) < model.depth + _TRIALS:
        if model.num_under_way < model.depth:
            model.submit(next(requests))
        if model.advance() is not None:
            moments.append(time.monotonic())
    while model.num_under_way:
        model.advance()
    model.close("")
    block_s = min(alone[1:])
    return block_s, min(block_s, (moments[-1] - moments[model.depth - 1]) / _TRIALS)

"""The denoising loop over several clips against the published pipelines: single-GPU and step-parallel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.config import StreamConfig
from model.denoiser import Denoiser, StreamState
from model.dit import DiT
from model.sampler import published_sigmas
from tests.parity.golden import Fixture, close, config_of


class Loop:
    """The recorded inputs, run through our loop."""

    def __init__(self, fixture: Fixture, weights: Fixture, tables: str = "exact", replace_sink: bool = False) -> None:
        self.fixture, info = fixture, fixture.info
        cfg = dataclasses.replace(config_of(info, weights), rope_tables=tables)
        self.dit = DiT(cfg).eval()
        self.dit.load_state_dict(weights.under(""))
        self.frames, self.per_clip = info["num_frames_per_block"], info["blocks_per_clip"]
        sigmas = published_sigmas(info["steps"], info["shift"])
        stream = StreamConfig(
            frames_per_block=self.frames,
            ring_blocks=info["kv_cache_tokens"] // info["tokens_per_block"],
            replace_sink=replace_sink,
            evict="slot",
        )
        self.denoiser = Denoiser(self.dit, stream, sigmas, *info["latent_hw"])

    def run(
        self,
        distance: Callable[[int], int | list[int]],
        before_clip: Callable[[int, StreamState], None] | None = None,
        trace: bool = False,
    ) -> Tensor:
        """All clips: [clip, channels, frames, h, w]."""
        fixture, dit, f = self.fixture, self.dit, self.frames
        text = dit.text_kv(fixture["in.text"][None])
        state = self.denoiser.start(text, fixture["in.ref_latents"], fixture["in.motion_latents"])
        noise, audio = fixture["in.noise"], fixture["in.audio"]
        columns = fixture.info["audio_frames_per_block"]
        pose = dit.pose(None, f, *fixture.info["latent_hw"])
        clips = []
        for clip in range(fixture.info["clips"]):
            if before_clip is not None:
                before_clip(clip, state)
            blocks = []
            for b in range(self.per_clip):
                n = clip * self.per_clip + b
                sound = dit.audio_condition(audio[:, None, :, :, columns * n : columns * (n + 1)])
                traced = trace and n in fixture.info["traced_blocks"]
                observe = self._compare(n) if traced else None
                x = noise[clip : clip + 1, :, f * b : f * (b + 1)]
                blocks.append(self.denoiser.block(state, n, x, sound, pose, distance(n), observe))
            clips.append(torch.cat(blocks, 2))
        return torch.cat(clips)

    def _compare(self, block: int) -> Callable[[int, Tensor, Tensor], None]:
        def compare(step: int, x: Tensor, velocity: Tensor) -> None:
            close(x[0], self.fixture[f"trace.block{block}.step{step}.input"])
            close(velocity[0], self.fixture[f"trace.block{block}.step{step}.prediction"])

        return compare

    def renew(self, clip: int, state: StreamState) -> None:
        """Before clip 1 the single-GPU program conditions on its own first latent and re-encoded motion."""
        if clip == 1:
            motion = self.fixture["in.motion_latents_after_clip0"]
            self.denoiser.recondition(state, reference=state.first_latent, motion=motion)

    def varied(self, block: int) -> list[int]:
        return self.fixture["in.relative_dist_varied"][block].tolist()


@pytest.mark.parametrize("tables", ["exact", "rounded"])
def test_single_online(golden, tables: str) -> None:
    loop = Loop(golden("g_generate_single"), golden("weights"), tables)
    assert [round(s * 1000, 3) for s in loop.denoiser.sigmas] == [round(t, 3) for t in loop.fixture.info["timesteps"]]
    prefix = "" if tables == "exact" else "rope_half."
    got = loop.run(lambda _: 30, loop.renew, trace=tables == "exact")
    close(got, loop.fixture[f"{prefix}out.single_online"])


def test_single_online_with_other_distances(golden) -> None:
    loop = Loop(golden("g_generate_single"), golden("weights"))
    close(loop.run(loop.varied, loop.renew), loop.fixture["out.single_online_varied"])


def test_single_offline(golden) -> None:
    loop = Loop(golden("g_generate_single"), golden("weights"))
    close(loop.run(lambda _: 30), loop.fixture["out.single_offline"])


def test_step_parallel_order(golden) -> None:
    """It replaces the reference after the first clip and keeps the first motion latents, as `replace_sink` does."""
    recorded = golden("h_generate_tpp")
    loop = Loop(golden("g_generate_single"), golden("weights"), replace_sink=True)
    assert loop.per_clip == loop.denoiser.stream.ring_blocks
    close(loop.run(lambda _: 30), recorded["out.tpp"])
    close(loop.run(loop.varied), recorded["out.tpp_varied"])

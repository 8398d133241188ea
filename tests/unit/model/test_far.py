"""Streams without end: a frame counter of a million, memory that stays, distances that every process agrees on."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from model import rope
from model.denoiser import Denoiser
from model.dit import DiT
from model.generator import Generator
from model.sampler import NoiseSource, published_sigmas
from tests.parity import own_model
from tests.parity.own_model import CONFIG, FRAMES, HEIGHT, RUNS, WIDTH
from tests.unit.model import small_model

FAR = 333_334
"""Block whose first latent frame is 1,000,002; a table of 45,000 rows ended at block 14,990."""
TOLERANCE = 1e-4
"""Of latents of deviation 1; angles come from float64 positions, so distance costs nothing but float32's rounding."""


def stream(first: int, kind: str, shift: int = 0) -> torch.Tensor:
    """Latents of five blocks from block `first` on; `shift` moves the motion tokens by latent frames."""
    dit = DiT(CONFIG).eval()
    dit.load_state_dict({k: v.float() for k, v in own_model.make_weights().items()})
    x = {k: v.float() for k, v in own_model.make_inputs().items()}
    denoiser = Denoiser(dit, RUNS[kind], published_sigmas(3), HEIGHT, WIDTH)
    state = denoiser.start(dit.text_kv(x["text"]), x["reference"], x["motion"])
    positions = rope.motion_positions(HEIGHT, WIDTH, CONFIG.patch) + np.array([shift, 0, 0])
    state.condition.motion = rope.rotation_of(positions, CONFIG.head_dim)
    for ring in state.rings:
        ring.set_condition(state.condition)
    out = []
    for b in range(own_model.BLOCKS):
        audio = dit.audio_condition(x["audio"][b], x["mask"])
        pose = dit.pose(x["pose"][b], FRAMES, HEIGHT, WIDTH)
        out.append(denoiser.block(state, first + b, x["noise"][b], audio, pose, 4 + b))
    return torch.cat(out)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["same_step", "clean"])
def test_a_million_frames_on_positions_differ_as_they_did(kind: str) -> None:
    """Only differences of positions count; the motion tokens, which stay behind, are moved along for the comparison."""
    near = stream(10, kind)
    far = stream(FAR, kind, FRAMES * (FAR - 10))
    print(f"{kind}: latents at frame {FRAMES * FAR} differ by {float((far - near).abs().max()):.1e}")
    assert near.std() > 0.5
    torch.testing.assert_close(far, near, atol=TOLERANCE, rtol=TOLERANCE)
    left_behind = stream(FAR, kind)
    assert left_behind.isfinite().all() and (left_behind - near).abs().max() > TOLERANCE


def play(model: Generator, first: int, count: int = 5) -> np.ndarray:
    """Pictures from block `first` on, with the noise and sound of the first blocks."""
    model.open(small_model.spec(first_block=first))
    noise = model._sessions["a"].noise
    session = model._sessions["a"]
    session.noise = NoiseSource(7, noise._shape)
    drawn = session.noise.block
    session.noise.block = lambda block: drawn(block - first)
    sounds = [small_model.request(model.config, first + b, sound=b) for b in range(count)]
    return np.concatenate([model.step(request).frames for request in sounds])


def test_a_session_that_starts_at_a_million_shows_the_same() -> None:
    model = small_model.generator(motion={"enabled": False})
    near, far = play(model, 10), play(model, FAR)
    assert near.std() > 1
    assert np.abs(near.astype(int) - far).max() <= 1


@pytest.mark.parametrize("distance", ["random", 6])
def test_every_process_draws_the_same_distances(distance: int | str) -> None:
    """They depend on seed and block alone, not on what a process has done before, and one serves all steps."""
    seen: list[dict[int, int]] = []
    for skipped in ((), (0, 1, 4), (2, 3)):
        model = small_model.generator(stream={"sink_distance": distance, "sink_range": (2, 9)})
        model.open(small_model.spec())
        drawn: dict[int, int] = {}
        block_of = model.denoiser.block

        def spy(state, index, noise, audio, pose, d, drawn=drawn, block_of=block_of, **more):
            drawn[index] = d
            return block_of(state, index, noise, audio, pose, d, **more)

        model.denoiser.block = spy
        for block in range(6):
            if block not in skipped:
                model.step(small_model.request(model.config, block))
        seen.append(drawn)
    for drawn in seen[1:]:
        assert drawn.items() <= seen[0].items()
    assert all(isinstance(d, int) for d in seen[0].values())
    assert set(seen[0].values()) == {6} if distance == 6 else len(set(seen[0].values())) > 1
    assert all(2 <= d <= 9 for d in seen[0].values())
    assert [NoiseSource(7, (1, 1, 1, 1)).sink_distance(b, 4, 30) for b in (0, 1, 10**6)] == [24, 4, 4]


def held_bytes(but: set[int]) -> int:
    gc.collect()
    held = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and id(t) not in but)
    return sum(t.numel() * t.element_size() for t in held)


def test_memory_stays_however_many_blocks() -> None:
    gc.collect()
    others = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]  # what earlier tests left to live on
    model = small_model.generator()
    model.open(small_model.spec())
    held = []
    for block in range(14):
        model.step(small_model.request(model.config, block))
        if block in (5, 13):
            held.append(held_bytes({id(t) for t in others}))
    assert held[0] == held[1]

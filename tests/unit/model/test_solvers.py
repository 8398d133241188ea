"""Solvers, guidance and streams that began long ago."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from model.config import RunConfig
from model.denoiser import Denoiser
from model.errors import UnsupportedError
from model.generator import Generator
from model.interface import BlockRequest
from model.profile import Profile
from model.sampler import published_sigmas
from model.sampling import SamplingChoice, chosen_size
from model.solvers import solver_maker, with_choices
from tests.unit.model import small_model


def solved(name: str, sigmas: tuple[float, ...]) -> float:
    """Relative error on data of spread 0.4, whose velocity and end are known in closed form."""
    start, spread = torch.linspace(-2, 2, 9)[None], 0.4
    x, solver = start, solver_maker(name, sigmas)()
    for i, sigma in enumerate(sigmas):
        data = x * (1 - sigma) * spread**2 / ((1 - sigma) ** 2 * spread**2 + sigma**2)
        x = solver.step(i, x, (x - data) / sigma)
    return float((x - spread * start).norm() / (spread * start).norm())


@pytest.mark.parametrize("name", ["unipc", "dpm++", "dpmpp_2m"])
def test_multistep_methods_are_nearer_than_euler(name: str) -> None:
    sigmas = published_sigmas(8)
    assert solved(name, sigmas) < 0.7 * solved("euler", sigmas)
    for steps in range(1, 9):
        assert np.isfinite(solved(name, published_sigmas(steps)))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("unipc", "dpmsolver"):
        monkeypatch.setitem(sys.modules, f"diffusers.schedulers.scheduling_{name}_multistep", None)
    for name in ("unipc", "dpm++"):
        with pytest.raises(UnsupportedError, match=rf"solver is {re.escape(name)}, .* needs diffusers; install it"):
            solver_maker(name, published_sigmas(4))


def test_solvers_share_nothing_between_blocks() -> None:
    make = solver_maker("unipc", published_sigmas(4))
    x, v = torch.randn(2, 3), torch.randn(4, 2, 3)
    one, two = make(), make()
    a = [one.step(i, x, v[i]) for i in range(4)]
    b = [two.step(i, x, v[i]) for i in range(4)]
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def generator(**choice: object) -> Generator:
    cfg = small_model.config()
    return Generator(cfg, small_model.modules(cfg), Profile.untimed(cfg), "block", SamplingChoice(**choice))


def pictures(model: Generator, blocks: int = 3, first: int = 0) -> np.ndarray:
    model.open(small_model.spec(first_block=first))
    rng, frames = np.random.default_rng(1), []
    for block in range(first, first + blocks):
        window = (0.1 * rng.standard_normal(model.info.window.samples)).astype(np.float32)
        frames.append(model.step(BlockRequest(session="a", block=block, epoch=0, window=window)).frames)
    return np.concatenate(frames)


def test_guidance_keeps_a_second_stream_and_changes_pictures() -> None:
    plain, guided = generator(), generator(guidance=3.0)
    assert np.array_equal(pictures(plain), pictures(generator(guidance=1.0)))
    assert not np.array_equal(pictures(plain), pictures(guided))
    assert guided.denoiser.num_passes == 2 * plain.denoiser.num_passes
    assert guided.denoiser.num_rings == 2 * plain.denoiser.num_rings
    bytes_of = lambda model: sum(ring.nbytes for ring in _rings(model))  # noqa: E731
    assert bytes_of(guided) == 2 * bytes_of(plain)


def _rings(model: Generator) -> list:
    stream = model._sessions["a"].stream
    return [*stream.rings, *(stream.negative.rings if stream.negative else [])]


@torch.inference_mode()
def test_guidance_is_the_published_formula() -> None:
    """One step of one block, both velocities computed apart."""
    cfg = small_model.config()
    dit, size = small_model.modules(cfg)["dit"], (4, 4)
    reference, noise = torch.randn(1, 8, 1, *size), torch.randn(1, 8, 3, *size)
    prompts = [dit.text_kv(torch.randn(1, 3, 16)) for _ in range(2)]
    sounds = [dit.audio_condition(k * torch.randn(1, 1, 2, 16, 12)) for k in (1.0, 0.0)]
    pose = dit.pose(None, 3, *size)
    seen = []
    for text, sound in zip(prompts, sounds, strict=True):
        plain = Denoiser(dit, cfg.stream, (1.0,), *size)
        plain.block(plain.start(text, reference), 0, noise, sound, pose, 8, lambda i, x, v: seen.append(v))
    guided = Denoiser(dit, cfg.stream, (1.0,), *size, guidance=2.5)
    state = guided.start(prompts[0], reference, negative=prompts[1])
    guided.block(state, 0, noise, sounds[0], pose, 8, lambda i, x, v: seen.append(v), silence=sounds[1])
    torch.testing.assert_close(seen[2], seen[1] + 2.5 * (seen[0] - seen[1]))


@torch.inference_mode()
def test_a_stream_that_began_long_ago_is_exact() -> None:
    """Attention sees differences of positions only, so 1,000,000 latent frames change nothing."""
    cfg = small_model.config()
    dit, size = small_model.modules(cfg)["dit"], (4, 4)
    reference, text = torch.randn(1, 8, 1, *size), dit.text_kv(torch.randn(1, 3, 16))
    noise, sound = torch.randn(4, 1, 8, 3, *size), dit.audio_condition(torch.randn(1, 1, 2, 16, 12))
    pose, ends = dit.pose(None, 3, *size), []
    for first in (20, 1_000_000 // 3 + 1):
        denoiser = Denoiser(dit, cfg.stream, (1.0, 0.5), *size)
        state = denoiser.start(text, reference)
        ends.append([denoiser.block(state, first + b, noise[b], sound, pose, 8) for b in range(4)])
    torch.testing.assert_close(torch.cat(ends[0]), torch.cat(ends[1]), atol=1e-4, rtol=1e-4)


def test_a_session_opens_at_frame_a_million_and_keeps_its_size() -> None:
    model = generator(solver="dpm++")
    assert pictures(model, blocks=4, first=1_000_000 // 3).std() > 0
    session = model._sessions["a"]
    size = session.stream.nbytes
    window = np.zeros(model.info.window.samples, np.float32)
    for block in range(session.last_block + 1, session.last_block + 25):
        model.step(BlockRequest(session="a", block=block, epoch=0, window=window))
    assert session.stream.nbytes == size and not session.pending


def test_choices_that_do_not_fit_are_one_sentence() -> None:
    cfg = small_model.config()
    modules = small_model.modules(cfg)
    with pytest.raises(ValueError, match="fps is 16, but checkpoint small learned 25"):
        with_choices(cfg, modules, RunConfig(fps=16))
    with pytest.raises(ValueError, match="reference is 'steady'"):
        with_choices(cfg, modules, RunConfig(reference="steady"))
    for bad in (
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"solver": "heun"},
        {"num_steps": 9},
        {"fps": 24},
        {"clip_blocks": 17},
        {"sink": "x"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is "):
            RunConfig(**bad)
    with pytest.raises(ValueError, match="clip_blocks is 5, but checkpoint small learned"):
        with_choices(cfg, modules, RunConfig(clip_blocks=5))
    for bad in (-1, 1001, "far", 2.5):
        with pytest.raises(ValueError, match="sink_distance is "):
            RunConfig(sink_distance=bad)
    chosen = with_choices(cfg, modules, RunConfig(sink_distance=7, rope_tables="rounded", sink="replace"))
    assert chosen.stream.sink_distance == 7 and chosen.stream.replace_sink
    assert chosen.dit.rope_tables == modules["dit"].cfg.rope_tables == "rounded"
    assert with_choices(cfg, {}, RunConfig(sink_distance="random")).stream.sink_distance == "random"
    steps = with_choices(cfg, modules, RunConfig(num_steps=3))
    assert steps.sampler.sigmas == published_sigmas(3) and steps.sampler.light_sigmas == ()


def test_sizes_by_both_rules() -> None:
    assert chosen_size("704*384", "auto", 1000, 700) == (448, 576)
    assert chosen_size("720*400", "area", 720, 1280) == (704, 384)
    assert chosen_size("704*384", "exact", 1000, 700) == chosen_size("704x384", "auto") == (704, 384)
    with pytest.raises(ValueError, match="the area is 100 pixels"):
        chosen_size("10*10", "auto")

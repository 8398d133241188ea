"""The live generator against a plain loop that shares no code with it, for any number of steps and two speakers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import SamplerConfig
from model.forge import _dit_values
from model.generator import Generator, Portrait
from model.interface import BlockRequest, SessionSpec
from model.profile import Profile
from model.sampler import published_sigmas
from tests.parity.plain import Memory, Plain
from tests.unit.model import published_model

BLOCKS, TOLERANCE = 6, 2e-5
"""One block past the replaced sink; latents have deviation 1."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.nn.Module], Portrait]:
    """Modules and a fitted portrait; the pictures themselves are another test's, so decoding is left out."""
    tokenizer: Path = published_model.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    cfg = published_model.config()
    modules = answering(published_model.modules(cfg, tokenizer))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    portrait = Generator(cfg, modules, Profile.untimed(cfg))._portrait(image)
    modules["vae"].decode = lambda latents, state: (torch.zeros(1, 3, 12, 64, 64), state)
    return modules, portrait


def answering(modules: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """The same with a transformer whose every parameter is random: untrained, its head predicts nothing."""
    torch.manual_seed(1)
    for name, p in modules["dit"].named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3 if p.dim() < 2 else 0.9 * p[0].numel() ** -0.5)
    return modules


def requests(model: Generator, speakers: int) -> list[BlockRequest]:
    samples = model.info.window.samples
    shape = (samples,) if speakers == 1 else (speakers, samples)
    windows = [np.random.default_rng(b).normal(0, 0.1, shape).astype(np.float32) for b in range(BLOCKS)]
    return [BlockRequest(session="s", block=b, epoch=0, window=window) for b, window in enumerate(windows)]


def live(model: Generator, spec: SessionSpec) -> tuple[list[Tensor], list[tuple[Tensor, Tensor, int]]]:
    """Latents of all blocks, and what each was made of: noise, columns, distance."""
    latents, given = [], []
    block_of, columns_of = model.denoiser.block, model._columns
    heard: list[Tensor] = []

    def spy(state, index, noise, audio, pose, distance, **more):  # noqa: ANN001, ANN003, ANN202
        given.append((noise, heard[-1], distance))
        latents.append(block_of(state, index, noise, audio, pose, distance, **more))
        return latents[-1]

    model.denoiser.block = spy
    model._columns = lambda session, request: heard.append(columns_of(session, request)) or heard[-1]
    model.open(spec)
    for request in requests(model, spec.speakers):
        model.step(request)
    return latents, given


@pytest.mark.parametrize(("steps", "speakers"), [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (2, 2)])
def test_any_number_of_steps(parts: tuple[dict[str, torch.nn.Module], Portrait], steps: int, speakers: int) -> None:
    levels = published_sigmas(steps)
    cfg = published_model.config(sampler=SamplerConfig(sigmas=levels))
    modules, portrait = parts
    model = Generator(cfg, modules, Profile.untimed(cfg), noise="clip")
    model._portrait = lambda image: portrait
    spec = SessionSpec(session="s", image=portrait.picture, prompt="a woman speaks", seed=4, speakers=speakers)
    got, given = live(model, spec)

    plain = Plain(dict(model.dit.state_dict()), _dit_values(cfg.dit))
    still, text = portrait.still, plain.embedded(model.text.encode(spec.prompt)[0])
    left = torch.zeros(1, 3, 4, 4, 1)
    left[..., :2, :] = 1
    mask = None if speakers == 1 else torch.cat([left, 1 - left])
    reference, wanted = still.reference, []
    memories = [Memory(plain.prefill(reference, still.past, text), cfg.stream.ring_blocks) for _ in levels]
    for b, (noise, columns, distance) in enumerate(given):
        if b == cfg.stream.ring_blocks:
            renewed = plain.prefill(wanted[0][None, :, :1], still.past, text)
            memories = [Memory(renewed, memory.slots, memory.rings) for memory in memories]
        x, sound = noise[0], plain.heard_block(columns)
        for i, level in enumerate(levels):
            velocity = plain.denoise(x, 1000 * level, text, sound, memories[i], b, distance, mask=mask)
            x = x + ([*levels, 0.0][i + 1] - level) * velocity
        wanted.append(x)
    difference = max(float((a[0] - b).abs().max()) for a, b in zip(got, wanted, strict=True))
    print(f"{steps} steps, {speakers} speakers: latents differ by {difference:.1e} at most")
    assert torch.stack(wanted).std() > 0.3
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a[0], b, atol=TOLERANCE, rtol=TOLERANCE)

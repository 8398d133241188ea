"""However a stream is cut, the components give the same: pictures, latents, levels, columns."""

from __future__ import annotations

import functools
import html

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.component_config import WanVAEConfig, XLSRAudioConfig
from model.interface import WindowSpec
from model.speech_columns import live_positions
from model.umt5 import clean
from model.wan_vae import WanVAE
from model.xlsr import Level, XLSREncoder


@functools.lru_cache(1)
def vae() -> tuple[WanVAE, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    cfg = WanVAEConfig(base_width=4, width_multipliers=(1, 2, 2, 2))
    vae = WanVAE(cfg).eval().requires_grad_(False)
    latents, video = torch.randn(1, 16, 9, 2, 3), torch.rand(1, 3, 21, 16, 24) * 2 - 1
    return vae, latents, vae.decode(latents)[0], video, vae.encode(video)[0]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=9, max_size=9))
def test_any_splitting_of_a_decode(sizes: list[int]) -> None:
    model, latents, whole, _, _ = vae()
    state, pieces, at = None, [], 0
    for size in sizes:
        if at < latents.shape[2]:
            video, state = model.decode(latents[:, :, at : at + size], state)
            pieces.append(video)
            at += size
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_any_splitting_of_an_encode(first: int, sizes: list[int]) -> None:
    model, _, _, video, whole = vae()
    cuts = [1 + 4 * first, *(4 * size for size in sizes)]
    state, pieces, at = None, [], 0
    for size in cuts:
        if at < video.shape[2]:
            latents, state = model.encode(video[:, :, at : at + size], state)
            pieces.append(latents)
            at += size
    torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-4, rtol=0)


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=12), st.integers(0, 2_000))
def test_the_level_does_not_depend_on_how_the_sound_came(sizes: list[int], overlap: int) -> None:
    cfg = XLSRAudioConfig()
    wave = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(3)) * 0.05
    fresh = lambda: Level(mean=0.0, power=0.0064, heard=0, origin=0)  # noqa: E731
    whole, pieced, end = fresh(), fresh(), 0
    whole.hear(wave, 0, cfg)
    for size in sizes:
        start = max(0, min(pieced.heard, end - overlap))
        end += size
        pieced.hear(wave[start:end], start, cfg)
    assert pieced == whole


@given(st.sampled_from([16, 25]), st.integers(0, 10**9), st.lists(st.integers(1, 24), min_size=1, max_size=6))
def test_positions_tile(fps: int, first: int, sizes: list[int]) -> None:
    pieces, at = [], first
    for size in sizes:
        pieces += live_positions(at, size, fps)
        at += size
    assert pieces == live_positions(first, sum(sizes), fps)
    samples = 16_000 // fps
    last = -(-pieces[-1] // 1) * 320 + 400
    assert last <= at * samples + 80, "80 samples after a block are enough for its last picture"


@functools.lru_cache(8)
def encoder(frames_per_block: int, fps: int, lookahead: int = 16_000) -> XLSREncoder:
    torch.manual_seed(2)
    cfg = XLSRAudioConfig(
        conv_width=8, dim=16, ffn_dim=32, layers=2, heads=2, position_kernel=16, position_groups=2, gate_rms=1.0
    )
    spec = WindowSpec(left_samples=32_000, lookahead_samples=lookahead, block_samples=frames_per_block * 16_000 // fps)
    return XLSREncoder(cfg, spec, frames_per_block, fps).eval().requires_grad_(False)


@pytest.mark.parametrize("fps", [16, 25])
def test_any_block_length_gives_the_same_columns(fps: int) -> None:
    """Blocks of 3, 4, 6 and 12 pictures over a second that every window covers; the gate keeps the level fixed."""
    wave = torch.randn(14_400, generator=torch.Generator().manual_seed(4)) * 0.05
    columns = []
    for frames in (12, 6, 4, 3):
        model = encoder(frames, fps)
        spec, level = model.window, model.listen()
        padded = torch.nn.functional.pad(wave, (spec.left_samples, 48_000))
        pieces = []
        for block in range(12 // frames):
            start = block * spec.block_samples
            window = padded[None, start : start + spec.samples]
            known = spec.left_samples + len(wave) - start
            pieces.append(model.window_features(window, block, level, known))
        columns.append(torch.cat(pieces, 3))
    for other in columns[1:]:
        torch.testing.assert_close(other, columns[0], atol=1e-4, rtol=0)


def test_silence_stays_quiet_and_leaves_the_level_alone() -> None:
    cfg = XLSRAudioConfig()
    level = Level(mean=0.0, power=cfg.prior_rms**2, heard=0, origin=0)
    hiss = torch.randn(160_000, generator=torch.Generator().manual_seed(5)) * 1e-3
    level.hear(hiss, 0, cfg)
    assert level.power == cfg.prior_rms**2 and level.heard == 160_000
    assert level.apply(hiss, cfg.floor_rms).std() < 0.05
    level.hear(hiss * 100, 160_000, cfg)
    assert 0.08 < level.power**0.5 < 0.1
    assert 0.9 < level.apply(hiss * 100, cfg.floor_rms).std() < 1.25


def test_what_is_not_known_yet_is_not_taken_for_silence() -> None:
    """A window whose end is still to come equals a shorter window, not one with silence behind it."""
    long, short = encoder(12, 25), encoder(12, 25, 1_600)
    wave = torch.randn(1, 32_000 + 7_680 + 16_000, generator=torch.Generator().manual_seed(6)) * 0.05
    known = 32_000 + 7_680 + 1_600
    masked = long.window_features(wave, 9, long.listen(), known)
    torch.testing.assert_close(masked, short.window_features(wave[:, :known], 9, short.listen()), atol=1e-4, rtol=0)
    silent = torch.cat([wave[:, :known], torch.zeros(1, 14_400)], 1)
    assert (masked - long.window_features(silent, 9, long.listen())).abs().max() > 1e-3


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_prompts_are_cleaned_as_published(prompt: str) -> None:
    """The repair that plain text is spared would not have changed it."""
    published = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    assert clean(prompt) == " ".join(published.split())

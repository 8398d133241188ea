"""Speech states and columns of whole files against the published ones; live windows against the file."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from model.component_config import XLSRAudioConfig
from model.interface import WindowSpec
from model.published_keys import xlsr_key
from model.speech_columns import columns_at, columns_of_file, grid_indices, live_positions, num_clips, num_states
from model.xlsr import Level, XLSREncoder, level_of_file
from tests.parity.golden import Component, close

TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def fixture(component) -> Component:
    return component("wav2vec2")


def build(fixture: Component, window: WindowSpec, frames_per_block: int = 12, fps: int = 25) -> XLSREncoder:
    released = json.loads((fixture.released / "config.json").read_text())
    encoder = XLSREncoder(XLSRAudioConfig.from_published(released), window, frames_per_block, fps)
    named = {xlsr_key(key): value for key, value in fixture.weights.items()}
    encoder.load_state_dict({f"wav2vec2.{name}": value for name, value in named.items() if name})
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(fixture: Component) -> XLSREncoder:
    preprocessor = json.loads((fixture.released / "preprocessor_config.json").read_text())
    assert preprocessor["do_normalize"] and preprocessor["sampling_rate"] == 16_000
    return build(fixture, WindowSpec(left_samples=64_000, lookahead_samples=2_560, block_samples=7_680))


def waves(fixture: Component) -> list[Tensor]:
    waves = [fixture[f"wave_{i}"] for i in range(len(fixture.info["clips"]))]
    assert waves
    return waves


def test_states_of_files(fixture: Component, encoder: XLSREncoder) -> None:
    for i, (wave, info) in enumerate(zip(waves(fixture), fixture.info["clips"], strict=True)):
        assert len(wave) == info["samples"] and num_states(len(wave)) == info["frames50"]
        assert wave.double().mean().item() == pytest.approx(info["mean"], rel=1e-3, abs=1e-6)
        assert wave.double().var(unbiased=False).item() == pytest.approx(info["var"], rel=1e-3)
        states = encoder.states(level_of_file(wave)[None])[0]
        close(states, fixture[f"hidden_{i}"], TOLERANCE, 0)
        grid = encoder.file_states(wave)
        assert grid.shape[1] == info["frames30"]
        close(grid, fixture[f"feat30_{i}"], TOLERANCE, 0)
        padded = torch.nn.functional.pad(level_of_file(wave)[None], (0, 3_333))
        close(encoder.states(padded, len(wave))[0], fixture[f"hidden_{i}"], TOLERANCE, 0)


def test_columns_of_files(fixture: Component, encoder: XLSREncoder) -> None:
    """From the wave where all states are recorded, from the recorded grid where only some are."""
    sound = waves(fixture)
    recorded = fixture.numbered(r"bucket_(\d+)_fps(\d+)_batch(\d+)(?:_m(\d+))?")
    assert recorded
    for name, match in recorded.items():
        i, fps, clip, neighbours = (int(group or 0) for group in match.groups())
        wanted, grid = fixture[name], encoder.file_states(sound[i])
        got = columns_of_file(grid[: wanted.shape[1]], clip, fps, neighbours)
        close(got, wanted, TOLERANCE, 0)
        info = fixture.info["clips"][i]["buckets"].get(name.split("_", 2)[2])
        if info is not None:
            length = grid.shape[1]
            assert num_clips(length, clip, fps) == info["num_clips"]
            assert grid_indices(info["columns"], fps).tolist() == info["source_index"]
            assert int((got != 0).any(1).any(1).sum()) == info["nonzero_columns"]


def covering(fixture: Component, wave: Tensor, fps: int) -> tuple[XLSREncoder, Tensor, int]:
    """An encoder whose window covers the file from any block of it, the padded wave, and the number of blocks."""
    frames = min(12, (len(wave) - 80) * fps // 16_000 // 2)
    block = frames * 16_000 // fps
    blocks = (len(wave) - 80) // block
    reach = -(-blocks * block // 640) * 640
    spec = WindowSpec(left_samples=reach, lookahead_samples=len(wave), block_samples=block)
    return build(fixture, spec, frames, fps), torch.nn.functional.pad(wave, (reach, 2 * len(wave) + block)), blocks


def level_known(wave: Tensor) -> Level:
    """The level of the whole file, with nothing left to hear."""
    return Level(mean=wave.mean().item(), power=wave.var(unbiased=False).item() + 1e-7, heard=10**9, origin=0)


@pytest.mark.parametrize("fps", [16, 25])
def test_window_that_covers_the_file_equals_the_file(fixture: Component, fps: int) -> None:
    """With the file's own level the live columns are the file's states at the fixed ratio."""
    for i, wave in enumerate(waves(fixture)):
        encoder, padded, blocks = covering(fixture, wave, fps)
        assert blocks > 1
        spec, states = encoder.window, fixture[f"hidden_{i}"]
        frames = encoder.frames_per_block * blocks
        positions = live_positions(0, frames, fps)
        got = []
        for block in range(blocks):
            start = block * spec.block_samples
            window = padded[start : start + spec.samples]
            known = spec.left_samples - start + len(wave)
            got.append(encoder.window_features(window[None], block, level_known(wave), known))
        close(torch.cat(got, 3), columns_at(states[None], positions), TOLERANCE, 0)


@pytest.mark.parametrize("fps", [16, 25])
def test_fixed_ratio_drifts_from_the_published_stretch(fixture: Component, fps: int) -> None:
    """Equal at the start, at most 2.34 states of 20 ms apart at the end of the file."""
    for i in range(len(fixture.info["clips"])):
        states, grid = fixture[f"hidden_{i}"], fixture[f"feat30_{i}"]
        frames = (grid.shape[1] - 1) * fps // 30
        live = live_positions(0, frames, fps)
        stretch = (states.shape[1] - 1) / (grid.shape[1] - 1)
        drift = [abs(float(p) - k * stretch) for p, k in zip(live, grid_indices(frames, fps), strict=True)]
        print(f"file {i}, {fps} pictures a second: the published stretch is up to {20 * max(drift):.1f} ms off")
        assert drift[0] == 0 and max(drift) < 2.34
        close(columns_at(states[None], live[:1]), columns_of_file(grid, 12, fps)[..., :1], TOLERANCE, 0)


def live(encoder: XLSREncoder, wave: Tensor, level: Level) -> Tensor:
    """Columns of all blocks whose last picture the file covers, each from its own window."""
    spec = encoder.window
    padded = torch.nn.functional.pad(wave, (spec.left_samples, spec.samples))
    columns = []
    for block in range((len(wave) - 80) // spec.block_samples):
        start = block * spec.block_samples
        known = min(spec.samples, spec.left_samples + len(wave) - start)
        columns.append(encoder.window_features(padded[None, start : start + spec.samples], block, level, known))
    return torch.cat(columns, 3)


def test_first_state_needs_the_positional_convolution_only(fixture: Component) -> None:
    """It sees half a kernel of 20 ms states to either side (1.28 s as published) and is exact from there on."""
    released = json.loads((fixture.released / "config.json").read_text())
    context = -(-released["num_conv_pos_embeddings"] // 2 * 320 // 640) * 640 + 640
    encoder = build(fixture, WindowSpec(left_samples=context, lookahead_samples=context, block_samples=1_280), 2)
    for i, wave in enumerate(waves(fixture)):
        got = live(encoder, wave, level_known(wave))
        wanted = columns_at(fixture[f"hidden_{i}"][None], live_positions(0, got.shape[3], 25))
        close(got[:, 0], wanted[:, 0], TOLERANCE, 0)


def test_live_windows_against_the_file(fixture: Component) -> None:
    """What look-ahead and the running level cost, as error over variation in time; printed for the documentation."""
    for ahead in (80, 2_560, 20_480):
        encoder = build(fixture, WindowSpec(left_samples=64_000, lookahead_samples=ahead, block_samples=7_680))
        figures = []
        for i, wave in enumerate(waves(fixture)):
            states = fixture[f"hidden_{i}"][None]
            for level in (level_known(wave), encoder.listen()):
                got = live(encoder, wave, level)
                wanted = columns_at(states, live_positions(0, got.shape[3], 25))
                variation = wanted - wanted.mean(3, keepdim=True)
                figures.append(((got - wanted).norm() / variation.norm()).item())
                assert got.isfinite().all()
        print(f"look-ahead {ahead} samples: {', '.join(f'{f:.3f}' for f in figures)} (file's level, running level)")

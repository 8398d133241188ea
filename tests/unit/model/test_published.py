"""The one generator with the published model's components, at a size that a laptop runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig, RunConfig
from model.errors import ModelError, UnsupportedError
from model.generator import Generator, load_model
from model.interface import BlockRequest, SessionSpec, SessionUpdate
from model.profile import Profile
from model.published import published
from model.solvers import with_choices
from model.weights import build_modules, save_checkpoint
from tests.unit.model.published_model import config, modules, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def request(generator: Generator, block: int, seed: int = 0) -> BlockRequest:
    spec = generator.info.window
    sound = np.random.default_rng(seed).normal(0, 0.05, spec.samples + 40 * spec.block_samples).astype(np.float32)
    start = block * spec.block_samples
    return BlockRequest(session="s", block=block, epoch=0, window=sound[start : start + spec.samples])


def generator(tokenizer: Path, **changes: object) -> Generator:
    cfg = config(**changes)
    return Generator(cfg, modules(cfg, tokenizer), Profile.untimed(cfg), noise="clip")


def test_sizes_of_the_14b() -> None:
    cfg = published()
    assert cfg.vae.stride == (4, 8, 8) and cfg.geometry.samples_per_block == 7_680
    assert (cfg.geometry.latent_height, cfg.geometry.latent_width) == (48, 88)
    assert ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    with torch.device("meta"):
        vae = build_modules(config())["vae"]
    assert all(p.is_meta for p in vae.parameters()) and not list(vae.buffers())


def test_a_wrong_kind_is_named() -> None:
    values = published().to_dict()
    values["vae"]["kind"] = "wam"
    with pytest.raises(ValueError, match="vae.kind is 'wam'; choose light or wan"):
        ModelConfig.from_dict(values)


def test_blocks_follow_each_other_and_repeat_exactly(tokenizer: Path) -> None:
    runs = []
    for _ in range(2):
        model = generator(tokenizer)
        info = model.open(SessionSpec(session="s", image=face(), prompt="a woman speaks", seed=3))
        assert info.portrait.shape == (64, 64, 3)
        runs.append([model.step(request(model, block)).frames for block in range(6)])
    for first, second in zip(*runs, strict=True):
        assert first.shape == (12, 64, 64, 3) and first.std() > 0
        np.testing.assert_array_equal(first, second)


def test_sessions_take_turns(tokenizer: Path) -> None:
    model = generator(tokenizer)
    model.open(SessionSpec(session="s", image=face(), prompt="a woman speaks"))
    alone = [model.step(request(model, block)).frames for block in range(3)]
    model.open(SessionSpec(session="s", image=face(), prompt="a woman speaks"))
    model.open(SessionSpec(session="other", image=face(1), prompt="smiling"))
    for block in range(3):
        np.testing.assert_array_equal(model.step(request(model, block)).frames, alone[block])
        model.step(dataclasses.replace(request(model, block, seed=9), session="other"))


def test_sound_prompt_and_reference_matter(tokenizer: Path) -> None:
    """Random weights hardly use their conditions, so latents are compared, not pictures."""
    model = generator(tokenizer)
    model.open(SessionSpec(session="s", image=face(), prompt="a woman speaks"))
    session = model._sessions["s"]
    level = dataclasses.replace(session.levels[0])
    window = torch.from_numpy(request(model, 0).window)[None]
    columns = model.audio.window_features(window, 0, level)
    assert columns.shape == (1, 3, 16, 12)
    assert not torch.equal(columns, model.audio.window_features(torch.zeros_like(window), 0, level))
    assert not torch.equal(model.text.encode("a woman speaks"), model.text.encode("smiling")[:, :1])
    first = generator(tokenizer, vae=dataclasses.replace(model.config.vae, reference_latent="first"))
    stills = [g._portrait(face()).still for g in (model, first)]
    assert torch.equal(stills[0].past, stills[1].past)
    assert torch.equal(stills[1].reference, stills[1].past[:, :, :1])
    assert torch.equal(stills[0].reference, stills[0].past[:, :, 1:2])
    assert stills[0].past.shape == (1, 16, 19, 8, 8)


def test_warm_up_is_a_setting(tokenizer: Path) -> None:
    shown = []
    for latents in (1, 7, 21):
        model = generator(tokenizer, vae=dataclasses.replace(config().vae, warmup_latents=latents))
        model.open(SessionSpec(session="s", image=face()))
        shown.append(model.step(request(model, 0)).frames)
    assert all(frames.shape == shown[0].shape for frames in shown)
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])


def test_update_changes_face_and_prompt(tokenizer: Path) -> None:
    model = generator(tokenizer)
    model.open(SessionSpec(session="s", image=face()))
    model.step(request(model, 0))
    model.update(SessionUpdate(session="s", block=1, prompt="smiling", image=face(1)))
    assert model.step(request(model, 1)).applied == ("prompt", "image")


def test_a_stream_that_opens_late_and_far(tokenizer: Path) -> None:
    """Frame counters in the millions, and 16 pictures a second, whose blocks are no multiple of 20 ms."""
    model = generator(tokenizer, fps=16)
    model.open(SessionSpec(session="s", image=face(), first_block=1_000_001))
    for block in (1_000_001, 1_000_002, 1_000_005):
        frames = model.step(dataclasses.replace(request(model, block % 8), block=block)).frames
        assert frames.shape == (12, 64, 64, 3)


def test_a_clip_of_two_blocks_looks_back_on_two_and_then_changes_its_sink(tokenizer: Path) -> None:
    """As the published pipelines with 24 pictures a clip: noise, ring and sink all go by the clip."""
    shown = {}
    for name, choice in {"four": {}, "two": {"clip_blocks": 2}, "kept": {"clip_blocks": 2, "sink": "keep"}}.items():
        cfg = config()
        built = modules(cfg, tokenizer)
        cfg = with_choices(cfg, built, RunConfig(**choice))
        model = Generator(cfg, built, Profile.untimed(cfg))
        model.open(SessionSpec(session="s", image=face()))
        shown[name] = np.stack([model.step(request(model, block)).frames for block in range(3)])
        assert cfg.geometry.blocks_per_clip == (4 if name == "four" else 2)
    assert (shown["two"][:2] == shown["four"][:2]).all() and (shown["two"][:2] == shown["kept"][:2]).all()
    assert (shown["two"][2] != shown["four"][2]).any() and (shown["two"][2] != shown["kept"][2]).any()


def test_short_side_fit_leaves_the_published_bars(tokenizer: Path) -> None:
    wide = np.full((60, 61, 3), 200, np.uint8)
    for fit, black in (("cover", False), ("short_side", True)):
        model = generator(tokenizer, portrait_fit=fit, width=128)
        portrait = model.open(SessionSpec(session="s", image=wide)).portrait
        assert (portrait == 0).any() == black


def test_one_file_holds_it_and_it_is_timed(tmp_path: Path, tokenizer: Path) -> None:
    """The project's own checkpoint format carries the published kinds too."""
    cfg = config()
    path = tmp_path / "mini.safetensors"
    save_checkpoint(path, modules(cfg, tokenizer), cfg, {})
    model = load_model(RunConfig(checkpoint=str(path), dtype="float32", threads=1))
    assert model.info.name == "published mini" and model.info.block_s > 0


def test_a_whole_file_is_heard_as_published(tokenizer: Path) -> None:
    model = generator(tokenizer)
    sound = np.random.default_rng(1).normal(0.01, 0.1, 20_000).astype(np.float32)
    model.open(SessionSpec(session="s", image=face(), sound=sound))
    session, wanted = model._sessions["s"], model.audio.file_features(torch.from_numpy(sound), 48)
    assert wanted.shape == (1, 3, 16, 48)
    for block in (0, 2, 3):
        torch.testing.assert_close(
            model._columns(session, request(model, block)), wanted[..., 12 * block : 12 * block + 12]
        )
    beyond = model._columns(session, request(model, 4))
    assert beyond.shape == (1, 3, 16, 12) and not beyond.any()
    frames = model.step(request(model, 0)).frames
    model.open(SessionSpec(session="s", image=face(), sound=sound))
    np.testing.assert_array_equal(model.step(request(model, 0, seed=5)).frames, frames)


@pytest.mark.parametrize("sound", [np.zeros(100, np.float32), np.zeros(9000), np.full(9000, np.nan, np.float32)])
def test_a_file_that_cannot_serve_is_refused(tokenizer: Path, sound: np.ndarray) -> None:
    model = generator(tokenizer)
    with pytest.raises(ModelError, match="the sound is float"):
        model.open(SessionSpec(session="s", image=face(), sound=sound))


def test_the_tiny_kind_hears_windows_only() -> None:
    from tests.unit.model import small_model

    cfg = small_model.config()
    model = Generator(cfg, small_model.modules(cfg), Profile.untimed(cfg))
    with pytest.raises(UnsupportedError, match="hears windows only"):
        model.open(SessionSpec(session="s", image=face(), sound=np.zeros(9000, np.float32)))

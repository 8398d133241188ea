"""Several speakers in one picture, and the pose video that moves their bodies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import ModelError, UnsupportedError
from model.generator import Generator
from model.geometry import Geometry
from model.interface import BlockRequest, SessionSpec
from model.portrait import fit_portrait
from model.pose_video import PoseVideo
from model.profile import Profile
from model.sampling import SamplingChoice
from model.speakers import speaker_weights
from tests.unit.model import published_model, small_model

WIDE = Geometry(width=160, height=64)


def disc(rows: int, columns: int, row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def widened(face: np.ndarray) -> np.ndarray:
    """A face on the token grid, grown by a tenth of its larger side, rounded up, by looking at every token."""
    at = np.argwhere(face)
    radius = max(1, int(0.1 * (at.max(0) - at.min(0) + 1).max() + 0.9999))
    out = np.zeros_like(face)
    for row, column in np.ndindex(face.shape):
        out[row, column] = (np.abs(at - (row, column)).max(1) <= radius).any()
    return out


@pytest.mark.parametrize("speakers", [2, 3, 4])
def test_strips_give_every_token_one_speaker_from_left_to_right(speakers: int) -> None:
    weights = speaker_weights(speakers, None, fit_portrait, WIDE)
    assert weights.shape == (1, speakers, 3, 4, 10)
    assert torch.equal(weights.sum(1), torch.ones(1, 3, 4, 10))
    owner = weights[0, :, 0, 0].argmax(0)
    assert (owner.diff() >= 0).all() and owner[0] == 0 and owner[-1] == speakers - 1
    assert weights.sum((0, 2, 3, 4)).min() >= 3 * 4 * (10 // speakers)


def test_masks_follow_the_published_rule() -> None:
    """Cells whose centre is in the mask, the later face where two overlap, grown; 1 off the others' faces."""
    large = Geometry(width=320, height=128)
    masks = np.stack([disc(128, 320, 60, 60, 30), disc(128, 320, 60, 100, 30), disc(128, 320, 50, 240, 40)])
    weights = speaker_weights(3, masks, fit_portrait, large)[0, :, 0].numpy()
    faces = masks.reshape(3, 8, 16, 20, 16)[:, :, 7:9, :, 7:9].mean((2, 4)) > 0.5
    faces[0] &= ~faces[1]
    grown = np.stack([widened(face) for face in faces])
    for a in range(3):
        assert np.array_equal(weights[a], ~np.delete(grown, a, 0).any(0))
    assert (weights.sum(0) == 3).any(), "the background hears all"
    assert not weights[0][faces[1]].any() and weights[1][faces[1] & ~grown[0] & ~grown[2]].all()


def test_masks_are_cropped_like_the_portrait() -> None:
    tall = np.zeros((2, 160, 160), bool)
    tall[0, 48:112, :80] = tall[1, 48:112, 80:] = True
    cropped = speaker_weights(2, tall, fit_portrait, WIDE)
    whole = speaker_weights(2, tall[:, 48:112], fit_portrait, WIDE)
    assert torch.equal(cropped, whole)
    with pytest.raises(ModelError, match="speaker 1 covers nothing"):
        gone = tall.copy()
        gone[0] = False
        gone[0, :40, :80] = True
        speaker_weights(2, gone, fit_portrait, WIDE)


@pytest.mark.parametrize(
    ("speakers", "masks", "sentence"),
    [
        (5, None, "5 speakers; a picture has 1 to 4"),
        (0, None, "0 speakers"),
        (2, np.ones((3, 64, 160), bool), "one for each of 2 speakers"),
        (2, np.ones((2, 64, 160), bool), "speaker 1 covers nothing of the picture that the others leave"),
    ],
)
def test_what_does_not_fit_is_one_sentence(speakers: int, masks: np.ndarray | None, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        speaker_weights(speakers, masks, fit_portrait, WIDE)


def sounds(model: Generator, block: int, seeds: tuple[int, ...]) -> np.ndarray:
    windows = [small_model.request(model.config, block, sound=seed + 10 * block).window for seed in seeds]
    return windows[0] if len(windows) == 1 else np.stack(windows)


def play(model: Generator, seeds: tuple[int, ...], masks: np.ndarray | None = None, **spec: object) -> np.ndarray:
    """Latents-true pictures of four blocks."""
    model.open(small_model.spec(speakers=len(seeds), masks=masks, **spec))
    blocks = range(4)
    requests = [small_model.request(model.config, b, window=sounds(model, b, seeds)) for b in blocks]
    return np.concatenate([model.step(request).frames for request in requests])


@pytest.fixture(scope="module")
def model() -> Generator:
    return small_model.generator(motion={"enabled": False}, width=96)


def test_speakers_who_say_the_same_are_one_speaker(model: Generator) -> None:
    alone, both = play(model, (1,)), play(model, (1, 1))
    assert np.abs(alone.astype(int) - both).max() <= 1
    assert np.abs(alone.astype(int) - play(model, (2, 1))).max() > 1, "and each is heard"
    assert np.abs(alone.astype(int) - play(model, (1, 2))).max() > 1


def test_sounds_and_masks_go_together(model: Generator) -> None:
    """Exchanging both changes nothing, exchanging one does."""
    masks = np.zeros((2, 80, 72), bool)
    masks[0, 20:60, 4:30] = masks[1, 20:60, 44:70] = True
    first = play(model, (1, 2), masks)
    np.testing.assert_array_equal(first, play(model, (2, 1), masks[::-1]))
    assert (first != play(model, (2, 1), masks)).any()


def test_guidance_is_away_from_the_silence_of_all_speakers() -> None:
    cfg = small_model.config(motion={"enabled": False}, width=96)
    guided = Generator(cfg, small_model.modules(cfg), Profile.untimed(cfg), sampling=SamplingChoice(guidance=2.0))
    alone, both = play(guided, (1,)), play(guided, (1, 1))
    assert np.abs(alone.astype(int) - both).max() <= 1


def test_windows_and_files_must_be_as_many_as_speakers(model: Generator) -> None:
    model.open(small_model.spec(speakers=2))
    with pytest.raises(ModelError, match="for each of 2 speakers"):
        model.step(small_model.request(model.config, 0))
    with pytest.raises(UnsupportedError, match="hears windows only"):
        model.open(small_model.spec(speakers=2, sound=(np.zeros(9000, np.float32),) * 2))


# The published model's parts.


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    tokenizer: Path = published_model.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    cfg = published_model.config()
    model = Generator(cfg, published_model.modules(cfg, tokenizer), Profile.untimed(cfg), noise="clip")
    portrait = model._portrait(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    model._portrait = lambda image: portrait
    return model


def dance(pictures: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (pictures, *size, 3), dtype=np.uint8)


@torch.inference_mode()
def test_a_pose_video_is_encoded_clip_by_clip(published: Generator) -> None:
    geometry = dataclasses.replace(published.geometry, width=32, height=16, blocks_per_clip=3)
    clip = geometry.frames_per_block * geometry.blocks_per_clip
    pictures = dance(2 * clip, (16, 32))
    pictures[clip + 24 :] = 0
    pose = PoseVideo(published.vae, fit_portrait, geometry, torch.device("cpu"))
    blocks = [
        pose.block(b, pictures[12 * b : 12 * b + 12] if b < geometry.blocks_per_clip + 2 else None)
        for b in range(2 * geometry.blocks_per_clip)
    ]
    for i in range(2):
        video = torch.from_numpy(pictures[clip * i : clip * (i + 1)]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        whole, _ = published.vae.encode(torch.cat([video[:, :, :1], video], 2))
        got = torch.cat(blocks[geometry.blocks_per_clip * i :][: geometry.blocks_per_clip], 2)
        torch.testing.assert_close(got, whole[:, :, 1:], atol=1e-5, rtol=0)


def step(model: Generator, block: int, pose: np.ndarray | None = None, speakers: int = 1) -> np.ndarray:
    rng = np.random.default_rng(block)
    shape = (model.info.window.samples,) if speakers == 1 else (speakers, model.info.window.samples)
    window = rng.normal(0, 0.05, shape).astype(np.float32)
    return model.step(BlockRequest(session="s", block=block, epoch=0, window=window, pose=pose)).frames


@torch.inference_mode()
def test_the_pose_video_reaches_the_transformer(published: Generator) -> None:
    face = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    given: list[torch.Tensor] = []
    pose_of, published.dit.pose = published.dit.pose, lambda pose, *size: given.append(pose) or pose_of(pose, *size)
    try:
        published.open(SessionSpec(session="s", image=face))
        still = step(published, 0)
        assert given.pop() is None
        published.open(SessionSpec(session="s", image=face, has_pose=True))
        moved = step(published, 0, dance(12))
        assert given.pop().shape == (1, 16, 3, 8, 8)
    finally:
        del published.dit.pose
    assert still.shape == moved.shape
    latent = pose_of(torch.randn(1, 16, 3, 8, 8), 3, 8, 8)
    assert latent.shape == (1, 3, 16, published.config.dit.dim)


def test_two_speakers_and_a_file_each(published: Generator) -> None:
    """Whole files are heard at once, each with its own level, as long as the shortest."""
    rng = np.random.default_rng(0)
    files = rng.normal(0, 0.1, 30_000).astype(np.float32), rng.normal(0, 0.3, 20_000).astype(np.float32)
    face = np.zeros((80, 100, 3), np.uint8)
    published.open(SessionSpec(session="s", image=face, speakers=2, sound=files))
    columns = published._sessions["s"].columns
    for a, file in enumerate(files):
        alone = published.audio.file_features(torch.from_numpy(file), 48)
        torch.testing.assert_close(columns[a : a + 1], alone[..., : columns.shape[3]], atol=1e-5, rtol=0)
    assert step(published, 0, speakers=2).shape == (12, 64, 64, 3)
    with pytest.raises(ModelError, match="1 sounds for 2 speakers"):
        published.open(SessionSpec(session="s", image=face, speakers=2, sound=files[0]))


def test_a_checkpoint_with_its_own_motion_says_why_it_takes_no_pose_video() -> None:
    tiny_like = small_model.generator()
    with pytest.raises(UnsupportedError, match="follows its own motion controller.*leave the pose video out"):
        tiny_like.open(small_model.spec(has_pose=True))


def test_the_level_of_each_speaker_is_his_own(published: Generator) -> None:
    face = np.zeros((80, 100, 3), np.uint8)
    published.open(SessionSpec(session="s", image=face, speakers=2))
    loud = np.random.default_rng(0).normal(0, 0.3, published.info.window.samples)
    window = np.stack([np.zeros_like(loud), loud])
    published.step(BlockRequest(session="s", block=0, epoch=0, window=window.astype(np.float32)))
    quiet, shouting = published._sessions["s"].levels
    fresh = published.audio.listen()
    assert dataclasses.replace(quiet, heard=0) == fresh and shouting.power > 4 * fresh.power

"""The pipeline over real modules: what a session carries, what it must not, and where changes take effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.errors import CheckpointError, ModelError, PortraitError, UnknownSessionError, UnwantedError
from model.generator import Generator
from model.interface import SessionUpdate
from tests.unit.model.small_model import config, generator, modules, portrait, request, spec

BLOCKS = 5


def play(model: Generator, blocks=range(BLOCKS), session: str = "a", **changes) -> list[np.ndarray]:
    return [model.step(request(model.config, b, session, **changes)).frames for b in blocks]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> list[bool]:
    return [bool(np.array_equal(x, y)) for x, y in zip(a, b, strict=True)]


@pytest.fixture(scope="module")
def model() -> Generator:
    return generator()


def test_a_block_is_twelve_rgb_pictures_with_its_times(model: Generator) -> None:
    info = model.open(spec())
    assert info.portrait.shape == (64, 64, 3)
    assert info.in_domain == (info.portrait_psnr_db >= model.info.in_domain_psnr_db)
    result = model.step(request(model.config, 0, epoch=4))
    assert (result.session, result.block, result.epoch, result.applied) == ("a", 0, 4, ())
    assert result.frames.shape == (12, 64, 64, 3)
    assert result.frames.dtype == np.uint8
    assert result.frames.flags.c_contiguous
    assert set(result.stage_s) == {"audio", "dit", "vae"}
    assert all(s > 0 for s in result.stage_s.values())


def test_same_seed_same_pictures_and_every_input_counts(model: Generator) -> None:
    def run(**changes) -> list[np.ndarray]:
        model.open(spec(**changes))
        return play(model, range(3))

    first = run()
    assert same(first, run()) == [True] * 3
    for change in ({"seed": 8}, {"prompt": "happy"}, {"face": 1}):
        assert same(first, run(**change)) == [False] * 3, change
    model.open(spec())
    assert same(first, play(model, range(3), sound=99)) == [False] * 3
    model.open(spec())
    assert same(first, play(model, range(3), posture="thinking")) == [False] * 3


def test_sessions_take_turns_on_one_set_of_weights(model: Generator) -> None:
    model.open(spec("a"))
    alone_a = play(model, session="a")
    model.open(spec("b", face=1, seed=3, prompt="stern"))
    alone_b = play(model, session="b")
    model.open(spec("a"))
    model.open(spec("b", face=1, seed=3, prompt="stern"))
    turns = [(play(model, [b], "a")[0], play(model, [b], "b")[0]) for b in range(BLOCKS)]
    assert same(alone_a, [t[0] for t in turns]) == [True] * BLOCKS
    assert same(alone_b, [t[1] for t in turns]) == [True] * BLOCKS


def test_a_stream_starts_anywhere(model: Generator) -> None:
    first = 1_000_000
    model.open(spec(first_block=first))
    frames = play(model, range(first, first + 4))
    assert all(f.std() > 1 for f in frames)
    with pytest.raises(ModelError, match="rising order"):
        model.step(request(model.config, first + 1))
    assert play(model, [first + 9])[0].std() > 1  # a gap is no error


def test_positions_are_relative_once_the_reference_rolls() -> None:
    """Far from the start only differences count: the same noise and sound give the same latents at any index."""
    cfg = config(motion={"enabled": False})
    model = generator(cfg)
    late = generator(cfg)
    model.open(spec(first_block=20))
    late.open(spec(first_block=2_000_000))
    late._sessions["a"].noise.block = lambda b: model._sessions["a"].noise.block(b - 1_999_980)
    for b in range(4):
        near = model.step(request(cfg, 20 + b)).frames.astype(int)
        far = late.step(request(cfg, 2_000_000 + b, sound=20 + b)).frames.astype(int)
        assert np.abs(near - far).max() <= 1


def test_a_new_prompt_takes_effect_at_its_block_and_keeps_the_past(model: Generator) -> None:
    model.open(spec())
    before = play(model)
    model.open(spec())
    model.update(SessionUpdate(session="a", block=3, prompt="happy"))
    results = [model.step(request(model.config, b)) for b in range(BLOCKS)]
    assert [r.applied for r in results] == [(), (), (), ("prompt",), ()]
    assert same(before, [r.frames for r in results]) == [True, True, True, False, False]
    model.open(spec(prompt="happy", first_block=3))
    assert same([r.frames for r in results[3:]], play(model, range(3, BLOCKS))) == [False, False]  # rings were kept


def test_a_new_portrait_equals_a_fresh_session_from_that_block_on(model: Generator) -> None:
    model.open(spec())
    before = play(model)
    model.open(spec())
    model.update(SessionUpdate(session="a", block=2, image=portrait(1), prompt="happy"))
    results = [model.step(request(model.config, b)) for b in range(BLOCKS)]
    assert [r.applied for r in results] == [(), (), ("prompt", "image"), (), ()]
    changed = [r.frames for r in results]
    assert same(before[:2], changed[:2]) == [True, True]
    model.open(spec(face=1, prompt="happy", first_block=2))
    assert same(changed[2:], play(model, range(2, BLOCKS))) == [True] * 3


def test_updates_for_skipped_blocks_apply_at_the_next_one(model: Generator) -> None:
    model.open(spec())
    model.update(SessionUpdate(session="a", block=1, prompt="sad"))
    model.update(SessionUpdate(session="a", block=2, prompt="happy"))
    model.update(SessionUpdate(session="a", block=9, prompt="stern"))
    play(model, [0])
    assert model.step(request(model.config, 5)).applied == ("prompt",)
    assert model.step(request(model.config, 6)).applied == ()
    assert model.step(request(model.config, 10)).applied == ("prompt",)


def test_a_refused_update_changes_nothing(model: Generator) -> None:
    model.open(spec())
    before = play(model, range(2))
    model.open(spec())
    with pytest.raises(PortraitError):
        model.update(SessionUpdate(session="a", block=0, image=np.zeros((4, 4), np.uint8), prompt="x"))
    assert same(before, play(model, range(2))) == [True, True]


def test_unknown_and_closed_sessions(model: Generator) -> None:
    model.open(spec())
    model.close("a")
    model.close("never opened")
    with pytest.raises(UnknownSessionError, match="session a is not open"):
        model.step(request(model.config, 0))
    with pytest.raises(UnknownSessionError):
        model.update(SessionUpdate(session="a", block=0, prompt=""))


def test_bad_requests_are_one_sentence_and_leave_the_session_as_it_was(model: Generator) -> None:
    model.open(spec())
    good = play(model, range(2))
    model.open(spec())
    play(model, [0])
    samples = model.info.window.samples
    broken = np.zeros(samples, np.float32)
    broken[5] = np.nan
    cases = (
        ({"window": np.zeros(samples - 1, np.float32)}, f"send {samples} float32"),
        ({"window": np.zeros(samples, np.float64)}, "float64"),
        ({"window": broken}, "not finite"),
        ({"posture": "dancing"}, "dancing"),
    )
    for change, text in cases:
        with pytest.raises(ModelError, match=text):
            model.step(request(model.config, 1, **change))
    assert same(good[1:], play(model, [1])) == [True]


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": {"history": "clean"}},
        {"stream": {"sink_distance": "random"}},
        {"stream": {"replace_sink": True}},
        {"dit": {"enable_framepack": True}, "width": 128, "height": 128},
        {"motion": {"enabled": False}},
        {"vae": {"stride": (4, 8, 8)}, "dit": {"patch_size": (1, 4, 4)}},
        {"fps": 10, "width": 96},
    ],
    ids=lambda c: "-".join(c),
)
def test_every_policy_streams_and_repeats(changes: dict) -> None:
    model = generator(**changes)
    model.open(spec())
    first = play(model)
    assert all(f.std() > 1 for f in first)
    model.open(spec())
    assert same(first, play(model)) == [True] * BLOCKS
    geometry = model.geometry
    assert first[0].shape == (geometry.frames_per_block, geometry.height, geometry.width, 3)


def test_history_policy_and_sink_replacement_change_later_blocks_only() -> None:
    def run(**stream) -> list[np.ndarray]:
        model = generator(stream=stream)
        model.open(spec())
        return play(model)

    base = run()
    assert same(base, run(history="clean")) == [True] + [False] * 4
    assert same(base, run(replace_sink=True)) == [True, True] + [False] * 3


def test_clip_noise_is_drawn_per_clip() -> None:
    model = generator(noise="clip")
    model.open(spec(seed=11))
    noise = model._sessions["a"].noise
    import torch

    wanted = torch.randn(1, 8, 6, 4, 4, generator=torch.Generator().manual_seed(11 + 3))
    assert torch.equal(torch.cat([noise.block(6), noise.block(7)], 2), wanted)


def test_pose_channels_must_fit() -> None:
    cfg = config(dit={"cond_dim": 8})
    with pytest.raises(CheckpointError, match="8 pose channels"):
        generator(cfg)
    assert modules(cfg)["dit"].cond_encoder.weight.shape[1] == 8


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_block_that_nobody_wants_any_more_is_given_up_between_its_parts(part: int) -> None:
    model = generator()
    model.open(spec())
    model.step(request(model.config, 0))
    model.update(SessionUpdate(session="a", block=1, prompt="happy"))
    asked = []
    model.is_wanted = lambda request: asked.append(request) or len(asked) <= part
    with pytest.raises(UnwantedError) as caught:
        model.step(request(model.config, 1))
    assert caught.value.applied == ("prompt",) and len(asked) == part + 1
    model.is_wanted = lambda request: True
    result = model.step(request(model.config, 2))
    assert result.applied == () and result.frames.std() > 1


@torch.inference_mode()
def test_a_stream_goes_on_behind_its_own_latents(model: Generator) -> None:
    model.open(spec())
    results = [model.step(request(model.config, block)) for block in range(BLOCKS)]
    past = np.concatenate([result.latents for result in results[:-1]], 1)
    assert past.dtype == np.float16 and past.shape[1] == 3 * (BLOCKS - 1)
    last = torch.from_numpy(results[-1].latents)[None].float()
    off = []
    for before in (past, None, past[:, :, :2]):  # the last is of another size, and passed over
        model.open(spec(past=before, first_block=BLOCKS - 1))
        shown = model._screen.show(last, model._sessions["a"].screen).wait()
        off.append(np.abs(shown.astype(int) - results[-1].frames).mean())
    assert off[0] < 0.5 and off[1] > 3 * off[0] and off[1] == off[2]
    model.open(spec(past=past, first_block=BLOCKS - 1))
    assert model.step(request(model.config, BLOCKS - 1)).frames.shape == (12, 64, 64, 3)

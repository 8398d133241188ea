"""The stand-in model: deterministic, its mouth follows the sound, its faults strike."""

import time

import numpy as np
import pytest

from model.errors import ModelError, UnknownSessionError
from model.fake import FakeConfig, FakeModel, frame_loudness
from model.interface import BlockRequest, SessionSpec, SessionUpdate

CONFIG = FakeConfig()
SAMPLES = CONFIG.window.samples


def face(seed: int = 3) -> np.ndarray:
    rows = np.linspace(120, 220, 300)[:, None, None]
    return np.broadcast_to(rows + np.array([20, 0, -30]), (300, 280, 3)).astype(np.uint8)


def opened(config: FakeConfig = CONFIG, **fields: object) -> FakeModel:
    model = FakeModel(config)
    model.open(SessionSpec(session="a", image=face(), **fields))
    return model


def request(block: int, window: np.ndarray | None = None, **fields: object) -> BlockRequest:
    window = np.zeros(SAMPLES, np.float32) if window is None else window
    return BlockRequest(session="a", block=block, epoch=0, window=window, **fields)


def burst(frames: list[int]) -> np.ndarray:
    """A window whose block is loud in the given frames only."""
    window = np.zeros(SAMPLES, np.float32)
    for frame in frames:
        start = CONFIG.left_samples + frame * 640
        window[start : start + 640] = 0.2 * np.sin(np.arange(640))
    return window


def mouth(frames: np.ndarray) -> np.ndarray:
    """Dark pixels where the mouth is, per frame."""
    return (frames[:, 150:210, 90:166].mean(-1) < 60).sum((1, 2))


def test_the_mouth_follows_the_loudness_of_each_frame():
    frames = opened().step(request(0, burst([2, 3, 7]))).frames
    assert frames.shape == (12, 256, 256, 3) and frames.dtype == np.uint8
    dark = mouth(frames)
    assert set(np.flatnonzero(dark > 100)) == {2, 3, 7}
    assert (dark[[0, 1, 4, 5, 6, 8, 9, 10, 11]] == 0).all()


def test_only_the_block_moves_the_mouth():
    window = np.ones(SAMPLES, np.float32)
    window[CONFIG.left_samples : CONFIG.left_samples + 7680] = 0
    assert mouth(opened().step(request(0, window)).frames).max() == 0


def test_loudness_is_on_a_decibel_scale():
    window = np.zeros(SAMPLES, np.float32)
    window[CONFIG.left_samples :][:640] = 10 ** (-29 / 20)
    heard = frame_loudness(window, CONFIG)
    assert heard[0] == pytest.approx(0.5, abs=1e-3) and (heard[1:] == 0).all()


def test_silence_still_moves():
    model = opened()
    frames = np.concatenate([model.step(request(block)).frames for block in range(8)]).astype(int)
    assert (np.abs(np.diff(frames, axis=0)).max((1, 2, 3)) > 0).mean() > 0.6
    still = np.all(np.diff(frames, axis=0) == 0, axis=(1, 2, 3))
    longest = max(len(run) for run in "".join("x" if s else " " for s in still).split(" "))
    assert longest < 12, "half a second without any motion"


def test_the_same_windows_give_the_same_pictures_and_others_do_not():
    windows = [burst([block % 12]) for block in range(3)]
    first, second = opened(seed=5), opened(seed=5)
    for block, window in enumerate(windows):
        assert np.array_equal(first.step(request(block, window)).frames, second.step(request(block, window)).frames)
    assert not np.array_equal(first.step(request(9)).frames, opened(seed=6).step(request(9)).frames)
    assert not np.array_equal(first.step(request(9)).frames, first.step(request(8)).frames)


def test_updates_take_effect_at_their_block():
    model = opened()
    model.update(SessionUpdate(session="a", block=4, prompt="a happy woman"))
    model.update(SessionUpdate(session="a", block=2, image=255 - face()))
    assert model.step(request(1)).applied == ()
    changed = model.step(request(3))
    assert changed.applied == ("image",)
    assert (
        changed.frames[0, 5, 5].tolist()
        == (255 - model.open(SessionSpec(session="b", image=face())).portrait)[5, 5].tolist()
    )
    before = opened().step(request(4)).frames
    after = model.step(request(4))
    assert after.applied == ("prompt",) and not np.array_equal(before, after.frames)
    assert model.step(request(5)).applied == ()


def test_a_grainy_portrait_is_outside_the_domain():
    model = FakeModel()
    smooth = model.open(SessionSpec(session="a", image=face()))
    grain = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    rough = model.open(SessionSpec(session="b", image=grain))
    assert smooth.in_domain and smooth.portrait_psnr_db > 30
    assert not rough.in_domain and rough.portrait_psnr_db < 15


def test_unknown_sessions_are_refused_and_closing_is_forgiving():
    model = opened()
    model.close("a")
    model.close("a")
    with pytest.raises(UnknownSessionError, match="'a'"):
        model.step(request(0))
    with pytest.raises(UnknownSessionError):
        model.update(SessionUpdate(session="a", block=0))


def test_faults_strike_once():
    model = opened(FakeConfig(fail_block=2))
    model.step(request(1))
    with pytest.raises(ModelError, match="block 2"):
        model.step(request(2))
    model.step(request(2))
    with pytest.raises(ModelError, match="file x is missing"):
        FakeModel(FakeConfig(load_error="file x is missing"))


def test_pacing_sleeps_the_rest_of_the_block():
    slept: list[float] = []
    model = FakeModel(FakeConfig(block_s=0.5), sleep=slept.append)
    model.open(SessionSpec(session="a", image=face()))
    result = model.step(request(0))
    assert 0.3 < slept[-1] <= 0.5
    assert sum(result.stage_s.values()) == pytest.approx(0.5, abs=0.05)


def test_a_block_is_cheap():
    model = opened()
    window = burst(list(range(12)))
    times = []
    for block in range(20):
        started = time.process_time()
        model.step(request(block, window))
        times.append(time.process_time() - started)
    assert min(times) < 0.010
    print(f"block {1000 * min(times):.1f} ms")


@pytest.mark.parametrize(("width", "height", "fps"), [(320, 256, 25), (256, 384, 16)])
def test_other_sizes(width, height, fps):
    config = FakeConfig(width=width, height=height, fps=fps)
    model = opened(config)
    window = np.zeros(config.window.samples, np.float32)
    frames = model.step(request(0, window)).frames
    assert frames.shape == (12, height, width, 3)

"""However sound arrives, the same is heard: resampling, windows and the gate do not depend on chunking."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.interface import WindowSpec
from streaming.config import VadConfig, WindowConfig
from streaming.judge import WebRtcInference, make_judge
from streaming.push import PushQueue
from streaming.resample import SpeechResampler, play_out
from streaming.windows import Windows
from tests.fakes import babble

SPEC = WindowSpec(left_samples=9600, lookahead_samples=1280, block_samples=7680)
TALK = np.concatenate(
    [np.zeros(5000), babble(1.1), np.zeros(26_000), babble(0.4, seed=1), np.zeros(4000), babble(0.9, seed=2)]
).astype(np.float32)
RATES = st.sampled_from([8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])


def cut(sound: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Pieces of the given sizes, over and over."""
    pieces, at, index = [], 0, 0
    while at < len(sound):
        size = sizes[index % len(sizes)]
        pieces.append(sound[at : at + size])
        at, index = at + size, index + 1
    return pieces


@settings(max_examples=40, deadline=None)
@given(rate_hz=RATES, sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_any_chunking_resamples_to_the_same_pcm(rate_hz, sizes, seed):
    sizes = [max(size, 40) for size in sizes]
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, rate_hz // 3).astype(np.float32)

    def convert(pieces: list[np.ndarray]) -> np.ndarray:
        resampler = SpeechResampler()
        return np.concatenate([*(resampler.push_pcm(piece, rate_hz) for piece in pieces), resampler.flush()])

    whole, parts = convert([sound]), convert(cut(sound, sizes))
    assert len(whole) == len(parts) and abs(len(whole) - 16_000 // 3) <= 2
    assert np.array_equal(whole, parts)


def windows_of(pieces: list[np.ndarray], *, ahead: int = 0) -> list[np.ndarray]:
    """Windows of sound that arrives in pieces; each is closed when what came exceeds its end by `ahead` samples."""
    config = VadConfig()
    windows, closed = Windows(SPEC, WindowConfig(), config, make_judge(config)), []
    for piece in pieces:
        windows.write(windows.written, piece)
        while windows.written >= windows.window_end(len(closed)) + ahead:
            closed.append(windows.close(len(closed))[0])
    while windows.window_end(len(closed)) <= len(TALK) + SPEC.block_samples:
        closed.append(windows.close(len(closed))[0])
    return closed


REFERENCE = windows_of([TALK])


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 20_000), min_size=1, max_size=20), ahead=st.integers(0, 20_000))
def test_any_chunking_gives_the_same_windows(sizes, ahead):
    windows = windows_of(cut(TALK, sizes), ahead=ahead)
    assert len(windows) == len(REFERENCE)
    for ours, theirs in zip(windows, REFERENCE, strict=True):
        assert np.array_equal(ours.samples, theirs.samples) and ours.has_speech == theirs.has_speech


def test_the_reference_is_worth_comparing_with():
    speaking = [window.has_speech for window in REFERENCE]
    assert any(speaking) and not all(speaking)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_windows_tile_without_a_gap(sizes, seed):
    sound = np.random.default_rng(seed).uniform(0.1, 0.9, 60_000).astype(np.float32)
    windows = Windows(SPEC, WindowConfig(fade_ms=0), VadConfig(), lambda frame: _YES)
    blocks = []
    for piece in cut(sound, sizes):
        windows.write(windows.written, piece)
        while windows.written >= windows.window_end(len(blocks)):
            blocks.append(windows.close(len(blocks))[0].samples)
    left, block = SPEC.left_samples, SPEC.block_samples
    tiled = np.concatenate([samples[left : left + block] for samples in blocks])
    assert np.array_equal(tiled, sound[: len(tiled)]) and len(tiled) >= 60_000 - 2 * block
    for index, samples in enumerate(blocks[1:], 1):
        assert np.array_equal(samples[: left - block], blocks[index - 1][block:left])


class _Yes:
    is_voiced = is_certain = True


_YES = _Yes()


@settings(max_examples=30, deadline=None)
@given(
    writes=st.lists(st.tuples(st.integers(-3000, 6000), st.integers(0, 3000)), min_size=1, max_size=60),
    closes=st.lists(st.integers(0, 59), max_size=6, unique=True),
)
def test_sound_is_where_it_was_written_or_silent(writes, closes):
    """Random order, overlap, holes and closings: a sample is its own index, or zero, and never changes afterwards."""
    windows = Windows(SPEC, WindowConfig(), VadConfig(), WebRtcJudge())
    cursor, block = 0, 0
    seen: dict[int, float] = {}
    for index, (jump, length) in enumerate(writes):
        start = max(0, cursor + jump)
        windows.write(start, (np.arange(start, start + length) % 1000 + 1).astype(np.float32) / 1001)
        cursor = max(cursor, start + length)
        if index in closes:
            windows.close(block)
            block += 1
        end = max(windows.written, 1)
        sound = windows.read(0, end)
        expected = ((np.arange(end) % 1000 + 1) / 1001).astype(np.float32)
        assert ((sound == 0) | (sound == expected)).all()
        for at, value in seen.items():
            assert sound[at] == value
        seen = {at: float(sound[at]) for at in range(0, windows.frozen and min(windows.frozen, end), 517)}


class WebRtcJudge:
    """The detector without guards."""

    def __init__(self) -> None:
        self._inference = WebRtcInference(2)

    def __call__(self, frame: np.ndarray):
        verdict = _Yes()
        verdict.is_voiced = self._inference(frame)
        return verdict


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=20))
def test_sound_goes_out_the_same_in_any_pieces(sizes):
    padded = np.concatenate([np.zeros(100), TALK[5000:9000], np.zeros(5000)]).astype(np.float32)

    def read(lo: int, hi: int) -> np.ndarray:
        return padded[100 + lo : 100 + hi]

    pieces, at = [], 0
    while at < 4000:
        size = min(sizes[len(pieces) % len(sizes)], 4000 - at)
        pieces.append(play_out(read, at, size))
        at += size
    off = np.abs(np.concatenate(pieces).astype(int) - play_out(read, 0, 4000))
    assert off.max() <= 1, "rounding of sums in another order, at most"


@settings(max_examples=50, deadline=None)
@given(
    utterances=st.lists(st.lists(st.integers(0, 9000), max_size=6), min_size=1, max_size=5),
    rhythm=st.lists(st.integers(0, 3), min_size=1, max_size=8),
)
def test_pushed_speech_is_spoken_once_in_order_and_in_full(utterances, rhythm):
    queue, spoken, ended, free, hi = PushQueue(1e6), [], [], 0, 0
    turns = iter(rhythm * 1000)
    value = 0

    def close(times: int) -> None:
        nonlocal free, hi
        for _ in range(times):
            hi += SPEC.block_samples
            for laid in queue.lay(free, hi):
                assert free <= laid.start and laid.start + len(laid.samples) <= hi
                free = laid.start + len(laid.samples)
                spoken.append(laid.samples)
                ended.extend([laid.name] if laid.is_last else [])
            free = hi

    for number, pieces in enumerate(utterances):
        queue.begin(str(number))
        for size in pieces:
            queue.push(str(number), np.arange(value, value + size, dtype=np.float32) / 1e6, 16_000)
            value += size
            close(next(turns))
        queue.end(str(number))
    close(100 + value // SPEC.block_samples)
    assert ended == [str(number) for number in range(len(utterances))] and not queue.is_active
    assert np.array_equal(np.concatenate(spoken), np.arange(value, dtype=np.float32) / 1e6)

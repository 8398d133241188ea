"""Pushed speech: laid without holes, bounded, with back-pressure."""

import numpy as np
import pytest

from streaming.errors import AudioFormatError, BufferFullError
from streaming.push import RESERVE_SAMPLES, PushQueue

BLOCK = 7680


def ramp(first: int, num: int) -> np.ndarray:
    """Samples that say where they belong."""
    return (np.arange(first, first + num) / 1e6).astype(np.float32)


class Track:
    """Where the queue's sound ends up."""

    def __init__(self, buffer_s: float = 30.0) -> None:
        self.queue = PushQueue(buffer_s)
        self.sound: dict[str, list[tuple[int, int]]] = {}
        self.samples = np.zeros(0, np.float32)
        self.free = 0
        self.hi = 0

    def close(self) -> list[str]:
        """The next block; returns the utterances that ended in it."""
        self.hi += BLOCK
        ended = []
        for laid in self.queue.lay(self.free, self.hi):
            assert self.free <= laid.start <= laid.start + len(laid.samples) <= self.hi
            self.sound.setdefault(laid.name, []).append((laid.start, laid.start + len(laid.samples)))
            self.samples = np.concatenate([self.samples, laid.samples])
            self.free = laid.start + len(laid.samples)
            if laid.is_last:
                ended.append(laid.name)
        self.free = self.hi
        return ended


def test_a_whole_utterance_starts_at_once_and_ends_on_its_last_sample():
    track = Track()
    track.queue.begin("a")
    track.queue.push("a", ramp(0, 20_000), 16_000)
    track.queue.end("a")
    assert [track.close() for _ in range(3)] == [[], [], ["a"]]
    assert track.sound["a"] == [(0, 7680), (7680, 15_360), (15_360, 20_000)]
    assert np.array_equal(track.samples, ramp(0, 20_000)) and not track.queue.is_active


def test_utterances_follow_each_other_without_a_hole():
    track = Track()
    for name, first in (("a", 0), ("b", 5000)):
        track.queue.begin(name)
        track.queue.push(name, ramp(first, 5000), 16_000)
    track.queue.end("b")
    assert track.close() == ["a"] and track.close() == ["b"]
    assert track.sound == {"a": [(0, 5000)], "b": [(5000, 7680), (7680, 10_000)]}


def test_a_source_that_just_keeps_up_leaves_no_hole():
    track = Track()
    track.queue.begin("a")
    rng = np.random.default_rng(0)
    sent = 0
    for block in range(40):
        while sent < (block + 1) * BLOCK - int(rng.integers(0, RESERVE_SAMPLES)):
            track.queue.push("a", ramp(sent, 320), 16_000)
            sent += 320
        track.close()
    track.queue.end("a")
    track.close()
    runs = track.sound["a"]
    assert all(end == start for (_, end), (start, _) in zip(runs, runs[1:], strict=False))
    assert np.array_equal(track.samples, ramp(0, len(track.samples)))


def test_a_source_that_runs_dry_goes_on_where_it_can():
    track = Track()
    track.queue.begin("a")
    track.queue.push("a", ramp(0, 8000), 16_000)
    track.close()
    track.close()
    track.queue.push("a", ramp(8000, 16_000), 16_000)
    track.queue.end("a")
    while not track.close():
        pass
    assert np.array_equal(track.samples, ramp(0, 24_000)), "nothing is lost, nothing comes twice"


def test_an_empty_utterance_ends():
    track = Track()
    track.queue.begin("a")
    track.queue.end("a")
    assert track.close() == ["a"] and track.sound["a"] == [(0, 0)]


def test_other_rates_are_converted_as_one_stream():
    track = Track()
    track.queue.begin("a")
    pcm = (np.sin(np.arange(24_000) * 0.05) * 20_000).astype(np.int16)
    for at in range(0, 24_000, 777):
        track.queue.push("a", pcm[at : at + 777], 24_000)
    track.queue.end("a")
    while not track.close():
        pass
    assert len(track.samples) == 16_000
    expected = np.sin(np.arange(16_000) * 1.5 * 0.05) * 20_000 / 32_768
    assert np.abs(track.samples[100:-100] - expected[100:-100]).max() < 0.01


def test_the_buffer_is_bounded_and_presses_back():
    queue = PushQueue(1.0)
    queue.begin("a")
    assert queue.pressure() is None
    queue.push("a", ramp(0, 13_000), 16_000)
    assert queue.pressure() is True and queue.pressure() is None
    with pytest.raises(BufferFullError, match="1 s of speech"):
        queue.push("a", ramp(0, 3001), 16_000)
    assert queue.queued_samples == 13_000
    queue.lay(0, 6000)
    assert queue.pressure() is False and queue.pressure() is None
    with pytest.raises(AudioFormatError):
        queue.push("a", ramp(0, 10), 192_000)
    queue.clear()
    assert not queue.is_active and queue.queued_samples == 0

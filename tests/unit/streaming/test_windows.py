"""Windows: places, holes, freezing, the gate, interrupts."""

import numpy as np
import pytest

from model.interface import WindowSpec
from streaming.config import VadConfig, WindowConfig
from streaming.judge import FRAME_SAMPLES, Verdict
from streaming.windows import SampleRing, Windows

SPEC = WindowSpec(left_samples=4800, lookahead_samples=1280, block_samples=7680)


def loudness(frame: np.ndarray) -> Verdict:
    """Anything above -26 dBFS is speech."""
    return Verdict(float(np.sqrt(np.mean(frame**2))) > 0.05, True)


def make(fade_ms: int = 10, spec: WindowSpec = SPEC, **vad: object) -> Windows:
    settings = {"pre_roll_ms": 0, "hangover_ms": 100, **vad}
    return Windows(spec, WindowConfig(fade_ms=fade_ms), VadConfig(**settings), loudness)


def hum(num_samples: int, level: float = 0.3) -> np.ndarray:
    return (level * np.sign(np.sin(np.arange(num_samples) + 0.5))).astype(np.float32)


def test_the_ring_wraps_and_forgets():
    ring = SampleRing(10)
    for value in range(1, 34):
        ring.append(np.full(1, value, np.float32))
    assert ring.read(20, 36).tolist() == [0, 0, 0, *range(24, 34), 0, 0, 0]
    assert ring.read(-3, 3).tolist() == [0] * 6
    ring.append(np.arange(100, 125, dtype=np.float32))
    assert ring.end == 58 and ring.read(48, 58).tolist() == list(range(115, 125))
    ring.extend(62)
    assert ring.read(54, 62).tolist() == [121, 122, 123, 124, 0, 0, 0, 0]
    ring.extend(1000)
    assert not ring.read(990, 1000).any()


def test_a_window_is_left_context_block_and_lookahead():
    windows = make(fade_ms=0)
    sound = hum(30_000)
    windows.write(0, sound)
    window, _ = windows.close(1)
    assert window.block == 1 and window.has_speech
    assert np.array_equal(window.samples, sound[7680 - 4800 : 15_360 + 1280])
    first, _ = make(fade_ms=0).close(0)
    assert first.samples.shape == (SPEC.samples,) and not first.samples.any() and not first.has_speech


def test_before_the_stream_is_silence():
    windows = make(fade_ms=0)
    windows.write(0, hum(9000))
    window, _ = windows.close(0)
    assert not window.samples[:4800].any()
    assert np.array_equal(window.samples[4800:], hum(9000)[: 7680 + 1280])


def test_holes_are_silence_and_nothing_moves():
    windows = make(fade_ms=0, hangover_ms=1000)
    sound = hum(16_640)
    for start in range(0, 16_640, 640):
        if start not in (2560, 3200, 9600):
            windows.write(start, sound[start : start + 640])
    expected = sound.copy()
    expected[2560:3840] = expected[9600:10_240] = 0
    assert np.array_equal(windows.read(0, 16_640), expected)
    assert windows.late_samples == windows.repeated_samples == 0


def test_late_and_repeated_sound_is_dropped_and_counted():
    windows = make(fade_ms=0)
    windows.write(0, hum(1000))
    windows.write(500, np.full(1000, 0.2, np.float32))
    assert windows.repeated_samples == 500
    assert np.array_equal(windows.read(0, 1500), np.concatenate([hum(1000), np.full(500, 0.2, np.float32)]))
    windows.close(0)
    windows.write(8000, hum(1000))
    assert windows.late_samples == 960, "the window of block 0 reaches to 8960"
    assert windows.written == 9000 and np.array_equal(windows.read(8960, 9000), hum(1000)[960:])
    windows.write(100, hum(300))
    assert windows.late_samples == 1260 and windows.repeated_samples == 500


def test_the_gate_shuts_out_noise_and_keeps_speech_whole():
    windows = make(fade_ms=10)
    sound = np.random.default_rng(0).normal(0, 0.01, 20_000).astype(np.float32)
    sound[3200:9600] += hum(6400)
    windows.write(0, sound)
    window, _ = windows.close(1)
    start, end = 3200, 9600 + 1600  # the hangover
    lo = 7680 - 4800
    assert not window.samples[: start - lo].any()
    inside = window.samples[start + 160 - lo : end - lo]
    assert np.array_equal(inside, sound[start + 160 : end])
    ramp = window.samples[start - lo : start + 160 - lo] / sound[start : start + 160]
    assert (np.diff(ramp) > 0).all() and 0 < ramp[0] < 0.02 and ramp[-1] < 1
    assert not window.samples[end + 160 - lo :].any()
    assert np.array_equal(windows.read(0, 20_000), sound), "what is played is not gated"


def test_onset_is_applied_backwards_within_what_is_known():
    windows = make(fade_ms=0)
    sound = np.zeros(40_000, np.float32)
    sound[7680 - 320 :] = hum(40_000 - 7680 + 320)
    windows.write(0, sound)
    first, _ = windows.close(0)
    assert first.has_speech, "the look-ahead proves the last 20 ms of the block"
    assert np.array_equal(first.samples[4800:], sound[:8960])
    late = make(fade_ms=0)
    shifted = np.concatenate([np.zeros(960, np.float32), sound[:-960]])
    late.write(0, shifted)
    window, _ = late.close(0)
    assert not window.has_speech and not window.samples.any(), "two frames do not prove speech yet"
    window, _ = late.close(1)
    assert np.array_equal(window.samples, shifted[7680 - 4800 : 15_360 + 1280])


def test_edges_come_as_soon_as_they_are_known():
    windows = make()
    assert windows.write(0, hum(2 * FRAME_SAMPLES)) == []
    (started,) = windows.write(2 * FRAME_SAMPLES, hum(FRAME_SAMPLES))
    assert (started.kind, started.at, started.known_at) == ("started", 0, 960) and windows.is_speech
    _, edges = windows.close(0)
    assert [(edge.kind, edge.at) for edge in edges] == [("stopped", 960 + 1600)]


def test_what_follows_the_window_does_not_change_it():
    tail = np.zeros(60_000, np.float32)
    tail[8960 - 640 :] = hum(60_000 - 8960 + 640)
    early, later = make(), make()
    early.write(0, tail[:8960])
    later.write(0, tail)
    assert np.array_equal(early.close(0)[0].samples, later.close(0)[0].samples)
    early.write(8960, tail[8960:])
    for block in range(1, 5):
        assert np.array_equal(early.close(block)[0].samples, later.close(block)[0].samples)


def test_an_interrupt_silences_sound_and_gate():
    windows = make()
    windows.write(0, hum(30_000))
    windows.close(0)
    windows.close(1)
    windows.silence(5000, 14_000)
    sound = windows.read(0, 30_000)
    assert np.array_equal(sound[:5000], hum(30_000)[:5000]) and not sound[5160:14_000].any()
    assert np.array_equal(sound[14_000:], hum(30_000)[14_000:])
    again = windows.window(0)
    assert not again.samples[4800 + 5160 :].any() and again.has_speech
    lo = 7680 - 4800
    redone = windows.window(1)
    assert not redone.samples[5160 - lo : 14_000 - lo].any()
    assert redone.samples[14_200 - lo :].any(), "sound after the interrupt is heard"
    windows.silence(14_000, 40_000)
    assert not windows.window(1).has_speech and not windows.window(1).samples[5160 - lo :].any()


def test_skipping_goes_on_elsewhere():
    windows = make()
    windows.write(0, hum(9000))
    edges = windows.skip_to(100)
    assert [edge.kind for edge in edges] == ["stopped"] and windows.frozen == 768_000
    windows.write(768_000, hum(9000))
    window, _ = windows.close(100)
    assert window.has_speech and not window.samples[:4800].any()


def test_hours_on_the_clock_cost_nothing():
    windows = make()
    start = 24 * 3600 * 16_000 // 7680
    windows.skip_to(start)
    sound = hum(7680)
    for block in range(start, start + 60):
        windows.write(block * 7680, sound)
        window, _ = windows.close(block) if block > start else windows.close(start)
    assert window.has_speech and len(windows._speech) < 20


def test_a_block_is_closed_once():
    windows = make()
    windows.close(3)
    with pytest.raises(AssertionError, match="block 3"):
        windows.close(3)

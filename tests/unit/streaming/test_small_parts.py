"""Settings, events, figures and the block clock's arithmetic."""

import dataclasses
import json
import subprocess
import sys

import pytest

from model.fake import FakeConfig, FakeModel
from streaming.config import EngineConfig, LatencyConfig, StreamingConfig, VadConfig, WindowConfig
from streaming.events import Announcer, PlaybackReport
from streaming.stats import BlockLog, percentile
from streaming.stream import Stream, latency_target_s
from streaming.windows import Window


@pytest.mark.parametrize(
    ("kind", "field", "value", "text"),
    [
        (VadConfig, "mode", 4, "mode is 4; it must be 0 to 3"),
        (VadConfig, "start_ms", 0, "start_ms is 0; it must be 20 to 500 ms"),
        (WindowConfig, "history_s", 1, "history_s is 1; it must be 2 to 120 seconds"),
        (LatencyConfig, "floor_ms", 5000, "floor_ms is 5000; it must not exceed ceiling_ms, 4000"),
        (EngineConfig, "restart_delays_s", (1, -1), "restart_delays_s is -1; it must be 0 to 600 seconds"),
        (EngineConfig, "frame_slots", 0, "frame_slots is 0; it must be 2 to 1024"),
    ],
)
def test_settings_out_of_range_are_named(kind, field, value, text):
    with pytest.raises(ValueError) as caught:
        kind(**{field: value})
    assert str(caught.value) == text


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        StreamingConfig().vad = VadConfig()


def test_events_are_plain_json_in_order_until_unsubscribed():
    heard, also = [], []
    announcer = Announcer("s1", lambda: 1234)
    end = announcer.subscribe(heard.append)
    announcer.subscribe(also.append)
    report = PlaybackReport(segment="a", position_ms=10, interrupted=True)
    announcer.tell("playback_finished", **report.as_json())
    end()
    end()
    announcer.tell("pause")
    assert [event.type for event in also] == ["playback_finished", "pause"] and len(heard) == 1
    assert json.loads(json.dumps(heard[0].as_json())) == {
        "type": "playback_finished",
        "session": "s1",
        "pts_ms": 1234,
        "segment": "a",
        "position_ms": 10,
        "interrupted": True,
    }


def test_percentiles():
    assert percentile([], 0.95) == 0
    assert percentile([3, 1, 2], 0.5) == 2 and percentile(range(100), 0.95) == 95 and percentile([7], 1.0) == 7
    log = BlockLog()
    assert log.usual_s is None
    for index in range(100):
        log.add(took_s=float(index), waited_s=0.0)
    assert len(log.took_s) == 60 and log.usual_s == 69.5


def stream() -> Stream:
    return Stream("s", FakeModel(FakeConfig(width=64, height=64)).info, StreamingConfig(), 100.0)


def test_windows_close_when_their_lookahead_and_the_jitter_have_passed():
    one = stream()
    assert one.close_s(0) == pytest.approx(100 + 0.48 + 0.08 + 0.06)
    assert one.close_s(9) - one.close_s(8) == pytest.approx(0.48)
    assert one.sample_at(100.5) == 8000 and one.sample_at(99.0) == -16_000


def test_an_interrupt_turns_slots_into_further_blocks():
    one = stream()
    for slot in range(5):
        window, _ = one.windows.close(slot)
        one.next_slot = slot + 1
        assert one.request(window, posture="idle", deadline_s=1.0).block == slot
    again = one.interrupt(3)
    assert list(again) == [3, 4] and one.epoch == 1 and one.next_block == 7
    blocks = [one.request(one.windows.window(slot), posture="idle", deadline_s=1.0).block for slot in again]
    assert blocks == [5, 6] and [one.slot_of(block) for block in blocks] == [3, 4]
    assert list(one.interrupt(9)) == [] and one.next_block == 7
    assert isinstance(one.windows.window(4), Window)


def test_latency_falls_on_whole_frames():
    info = dataclasses.replace(FakeModel(FakeConfig(width=64, height=64, fps=16)).info, block_s=0.3)
    latency_s = latency_target_s(info, StreamingConfig())
    assert (latency_s * 16).is_integer() and latency_s >= 0.75 + 0.08 + 0.06 + 0.375 + 0.08


def test_streaming_imports_no_torch_and_no_network():
    code = """
import sys
import streaming.session, streaming.offline, streaming.engine
bad = [name for name in ("torch", "aiortc", "fastapi", "uvicorn", "websockets") if name in sys.modules]
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True)

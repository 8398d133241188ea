"""Films by the shipped checkpoint are in step with their sound, and as flat in memory as they are long.

The short form of `tests/soak/test_long_films.py`: half a minute, read from the finished file.
"""

from __future__ import annotations

from pathlib import Path

from tests.films import lengths_s, lips, make, sound_offset_ms

LENGTH_S = 30


def test_half_a_minute_of_speech_is_in_step(tmp_path: Path) -> None:
    """The first picture belongs to the first sample: the original's picture leads by 120 ms."""
    source, film, _ = make(tmp_path, LENGTH_S)
    pictures, video_s, sound_s = lengths_s(film)
    assert pictures == LENGTH_S * 25 and abs(video_s - LENGTH_S) < 0.001 and abs(sound_s - LENGTH_S) < 0.03
    track = [sound_offset_ms(source, film, at) for at in (0, LENGTH_S - 11)]
    lag_ms, correlation = lips(film, 0.0, LENGTH_S)
    print(f"sound track {[round(ms, 2) for ms in track]} ms, lips {lag_ms:.1f} ms, correlation {correlation:.3f}")
    assert all(abs(ms) <= 1 for ms in track)
    assert abs(lag_ms) <= 20 and correlation >= 0.5

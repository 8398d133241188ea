"""One and ten minutes of film by `avatarcast generate` and the shipped checkpoint: in step to the end, flat in memory.

What is read from the files is told in `tests/films.py`; lips in the first and in the last minute.
`AVATARCAST_SOAK_FILM_S` changes the longer film's length.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.films import lengths_s, lips, make, sound_offset_ms

SHORT_S, LONG_S = 60, int(os.environ.get("AVATARCAST_SOAK_FILM_S", "600"))
pytestmark = [pytest.mark.soak, pytest.mark.timeout(LONG_S * 3 + 300)]


def test_long_films_stay_in_step_and_flat_in_memory(tmp_path: Path) -> None:
    _, _, short_mb = make(tmp_path, SHORT_S)
    source, film, long_mb = make(tmp_path, LONG_S)
    pictures, video_s, sound_s = lengths_s(film)
    assert pictures == LONG_S * 25 and abs(video_s - LONG_S) < 0.001 and abs(sound_s - LONG_S) < 0.03
    track = [sound_offset_ms(source, film, at) for at in (0, LONG_S / 2, LONG_S - 12)]
    mouth = [lips(film, at) for at in (2, LONG_S - 58)]
    print(
        f"memory {short_mb:.0f} MB for {SHORT_S} s, {long_mb:.0f} MB for {LONG_S} s; sound track against its source "
        f"{[round(ms, 2) for ms in track]} ms; lips behind the sound, first and last minute "
        f"{[(round(ms, 1), round(r, 3)) for ms, r in mouth]} (ms, correlation)"
    )
    assert long_mb - short_mb < 20
    assert all(abs(ms) <= 1 for ms in track)
    assert all(abs(ms) <= 20 and r >= 0.5 for ms, r in mouth)

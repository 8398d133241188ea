"""Films over a plan of real processes: the pictures of one process, and what a killed rank does to a film."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import LinkError
from model.interface import SessionSpec
from model.parallel import ParallelConfig
from server.config import Config, ModelSection
from server.generate import FilmWish, LoadedModel, make_film
from server.plan_flags import PlanFlags
from streaming.offline import speech_frames
from tests.fakes import PORTRAIT
from tests.unit.streaming.test_offline import phrase, write_wav

pytestmark = pytest.mark.soak
SECTION = ModelSection(
    checkpoint="tiny", size="64x64", device="cpu", dtype="float32", steps="full", decoder="full", threads=1
)
LAYERS = ParallelConfig(plan="layers", pipeline=2)


def test_a_film_over_a_plan_shows_the_same_pictures() -> None:
    films = []
    for parallel in (ParallelConfig(), LAYERS):
        loaded = LoadedModel(Config(model=SECTION, parallel=parallel))
        model = loaded.load_for(SECTION, PlanFlags())
        assert (getattr(model, "depth", 1) > 1) == (parallel is LAYERS)
        model.open(SessionSpec(session="offline", image=PORTRAIT, seed=3))
        films.append(np.concatenate(list(speech_frames(model, [phrase(1.5)]))).astype(int))
        model.close("offline")
        loaded.let_go()
    assert films[0].shape == films[1].shape and np.abs(films[0] - films[1]).max() <= 1


def test_a_killed_rank_ends_the_film_and_not_the_next(tmp_path: Path) -> None:
    Image.fromarray(PORTRAIT).save(tmp_path / "face.png")
    audio = write_wav(tmp_path / "voice.wav", phrase(2.0))
    wish = FilmWish(image=tmp_path / "face.png", audio=audio, out=tmp_path / "a.mp4")
    loaded = LoadedModel(Config(model=SECTION, parallel=LAYERS))

    def kill(progress: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(loaded._model._process.pids[1], signal.SIGKILL)

    with pytest.raises(LinkError, match="rank 1 of the"):
        make_film(loaded, wish, on_progress=kill)
    assert make_film(loaded, replace(wish, num_clip=1)).frames == 48
    loaded.let_go()

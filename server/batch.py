"""`avatarcast batch`: many films with one loaded model, from a manifest or a folder.

Beside every finished film lies a record of what it was made from, `NAME.mp4.json`. With `--resume` a job is skipped
if its film is still the one of the record and its inputs, by content, are too. The record goes before a film is made
anew and comes back when it is finished, so a film that was cut off is never taken for a finished one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model.errors import ModelError
from server.config import Config
from server.errors import ServerError
from server.generate import FilmWish, LoadedModel, Meter, make_film, model_section
from server.manifest import Job
from streaming.errors import StreamingError
from streaming.offline import FilmReport

log = logging.getLogger(__name__)

State = Literal["done", "skipped", "failed", "interrupted", "not begun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    film: Path
    state: State = "not begun"
    reason: str = ""
    """Why it failed, one sentence."""
    seconds: float = 0.0
    """Length of the film made now."""
    wall_s: float = 0.0
    """Time that took."""
    fps: float = 0.0
    """Pictures made a second."""


def run_batch(config: Config, jobs: Sequence[Job], common: Mapping[str, Any], *, resume: bool, as_json: bool) -> int:
    """Make the films of all jobs, one after the other.

    Args:
        config: of all films.
        jobs: what differs.
        common: fields of `FilmWish` that all jobs share; a job's own come first.
        resume: whether finished films are skipped.
        as_json: whether the last line of stdout is a JSON object.

    Returns:
        Exit code: 0, 1 if a job failed, 130 after Ctrl-C.
    """
    outcomes = [Outcome(film=job.film) for job in jobs]
    loaded = LoadedModel(config)
    for i, job in enumerate(jobs):
        print(f"[{i + 1}/{len(jobs)}] {job.film.name}", file=sys.stderr)
        outcomes[i] = _run_job(loaded, job, common, resume)
        if outcomes[i].state == "failed":
            print(outcomes[i].reason, file=sys.stderr)
        if outcomes[i].state == "interrupted":
            break
    for line in _table(outcomes):
        print(line)
    counts = {state: sum(o.state == state for o in outcomes) for state in ("done", "skipped", "failed")}
    is_interrupted = any(o.state == "interrupted" for o in outcomes)
    if as_json:
        films = [
            {"film": str(o.film)} | {k: getattr(o, k) for k in ("state", "reason", "seconds", "fps")} for o in outcomes
        ]
        print(json.dumps(counts | {"interrupted": is_interrupted, "jobs": films}))
    return 130 if is_interrupted else int(counts["failed"] > 0)


def _run_job(loaded: LoadedModel, job: Job, common: Mapping[str, Any], resume: bool) -> Outcome:
    """One job; nothing that goes wrong in it leaves it."""
    outcome = Outcome(film=job.film)
    meter = Meter()
    try:
        job.film.parent.mkdir(parents=True, exist_ok=True)
        wish = FilmWish(out=job.film, **(dict(common) | dict(job.wish)))
        inputs = inputs_of(loaded.config, wish)
        if resume and is_finished(job.film, inputs):
            return replace(outcome, state="skipped")
        record_of(job.film).unlink(missing_ok=True)
        report = make_film(loaded, wish, on_progress=meter.show)
        if report.interrupted:
            return _made(outcome, report, "interrupted")
        write_record(job.film, inputs)
        return _made(outcome, report, "done")
    except KeyboardInterrupt:
        return replace(outcome, state="interrupted")
    except (ServerError, ModelError, StreamingError) as error:
        return replace(outcome, state="failed", reason=str(error))
    except OSError as error:
        reason = f"{error.filename or job.film} cannot be used: {error.strerror or error}; check the path"
        return replace(outcome, state="failed", reason=reason)
    except Exception as error:  # the boundary of a job: the rest must still be made
        log.exception("job %s failed", job.film)
        return replace(outcome, state="failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        meter.end()


def _made(outcome: Outcome, report: FilmReport, state: State) -> Outcome:
    fps = round(report.frames / max(report.wall_s, 1e-9), 2)
    return replace(outcome, state=state, seconds=report.seconds, wall_s=report.wall_s, fps=fps)


def record_of(film: Path) -> Path:
    """Where a film's record lies."""
    return film.with_name(f"{film.name}.json")


def inputs_of(config: Config, wish: FilmWish) -> dict[str, Any]:
    """All that decides what a film looks like; files by content, plain values as JSON has them."""
    section = model_section(config, wish)
    model = {k: v for k, v in section.launch_spec("").items() if k not in ("log_level", "threads", "load")}
    paths = {"image": (wish.image,), "audio": wish.sounds, "mask": wish.masks}
    paths["pose_video"] = () if wish.pose_video is None else (wish.pose_video,)
    files = {name: [sha256_of(path) for path in several] for name, several in paths.items()}
    plain = {name: getattr(wish, name) for name in ("prompt", "base_seed", "num_clip", "infer_frames", "parity")}
    return json.loads(json.dumps({**files, **plain, "model": model}, default=str))


def sha256_of(path: Path) -> str:
    """Digest of a file's content, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(film: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the film is there as its record says, and was made from these inputs."""
    try:
        record = json.loads(record_of(film).read_text(encoding="utf-8"))
        return record["inputs"] == inputs and record["film_bytes"] == film.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):  # no record, or none of ours
        return False


def write_record(film: Path, inputs: Mapping[str, Any]) -> None:
    """Write down that a film is finished, at once or not at all."""
    part = film.with_name(f".{film.name}.json.part")
    text = json.dumps({"film_bytes": film.stat().st_size, "inputs": inputs}, indent=1)
    part.write_text(text, encoding="utf-8")
    os.replace(part, record_of(film))


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    width = max([4, *(len(o.film.name) for o in outcomes)])
    yield f"{'film':{width}}  {'state':11}  {'length':>8}  {'pictures/s':>10}"
    for o in outcomes:
        figures = f"{o.seconds:6.1f} s  {o.fps:10.1f}" if o.seconds else f"{'-':>8}  {'-':>10}"
        yield f"{o.film.name:{width}}  {o.state:11}  {figures}  {o.reason}".rstrip()
    states = ("done", "skipped", "failed", "interrupted", "not begun")
    counts = [(sum(o.state == state for o in outcomes), state) for state in states]
    yield ", ".join(f"{count} {state}" for count, state in counts if count)

"""The jobs of `avatarcast batch`: rows of a CSV, JSON or YAML file, or the pairs of a folder.

A folder's portraits and sounds are paired by stem: `anna.png` and `anna.wav` make `anna.mp4`, and `anna.txt`, where
there is one, is its prompt. A folder with one portrait only has it speak every sound.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.errors import ConfigError

PORTRAITS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")
TEXT_KEYS = ("prompt", "size")
WHOLE_KEYS = ("base_seed", "num_clip", "infer_frames")
FILE_KEYS = ("image", "audio")
KEYS = (*FILE_KEYS, *TEXT_KEYS, *WHOLE_KEYS, "out")
"""What a job may say; the names are those of `generate`."""
MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One film of a batch."""

    film: Path
    wish: Mapping[str, Any]
    """Fields of `server.generate.FilmWish`, without `out`."""


def read_jobs(source: Path, out: Path) -> tuple[list[Job], list[str]]:
    """Read a manifest or look through a folder.

    Args:
        source: `.csv`, `.json`, `.yaml` or `.yml` file, or a folder; a manifest's paths count from its own folder.
        out: folder of the films.

    Returns:
        The jobs, at least one, and notices about what is left over.

    Raises:
        ConfigError: one sentence with the manifest, the job, the key and the remedy.
    """
    jobs, notices = _pairs(source, out) if source.is_dir() else (_rows(source, out), [])
    if not jobs:
        raise ConfigError(f"{source} holds no job; give at least one portrait and one sound")
    seen: dict[Path, int] = {}
    for number, job in enumerate(jobs, 1):
        if job.film in seen:
            first = seen[job.film]
            raise ConfigError(f"{source}: jobs {first} and {number} both make {job.film.name}; give each its own 'out'")
        seen[job.film] = number
    return jobs, notices


def _rows(source: Path, out: Path) -> list[Job]:
    rows = _parse(source, _text(source))
    if isinstance(rows, Mapping):
        rows = rows.get("jobs")
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ConfigError(f"{source} is no list of jobs; write one mapping with 'image' and 'audio' for each film")
    return [_job(row, source, number, out) for number, row in enumerate(rows, 1)]


def _text(source: Path) -> str:
    try:
        with source.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{source} has more than {MOST_BYTES // 1024**2} MiB; split the manifest")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the manifest {source} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the manifest {source} is not text; save it in UTF-8") from error


def _parse(source: Path, text: str) -> Any:
    kind = source.suffix.lower()
    try:
        if kind == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        if kind == ".json":
            return json.loads(text)
        if kind in (".yaml", ".yml"):
            return yaml.safe_load(text)
    except (csv.Error, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the manifest {source} is no valid {kind[1:].upper()} ({reason}); correct it") from error
    raise ConfigError(f"the manifest is {source}; its name must end in .csv, .json or .yaml, or be a folder")


def _job(row: Any, source: Path, number: int, out: Path) -> Job:
    where = f"{source}, job {number}"
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is no mapping; write 'image' and 'audio' and, if wanted, {', '.join(KEYS[2:])}")
    for key in row:
        if key is None:
            raise ConfigError(f"{where} has more fields than the first line has names; put text with commas in quotes")
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(KEYS)}"
            raise ConfigError(f"{where}: {key} is unknown; {hint}")
    given = {key: value for key, value in row.items() if value not in (None, "")}
    for key in FILE_KEYS:
        if key not in given:
            raise ConfigError(f"{where}: {key} is missing; name the file")
    wish: dict[str, Any] = {}
    for key, value in given.items():
        if key in WHOLE_KEYS:
            wish[key] = _whole(where, key, value)
        elif not isinstance(value, str):
            raise ConfigError(f"{where}: {key} is {value!r}; write text, in quotes")
        elif key in FILE_KEYS:
            wish[key] = source.parent / value
        elif key in TEXT_KEYS:
            wish[key] = value
    name = given.get("out", Path(given["audio"]).stem)
    return Job(film=out / (name if name.lower().endswith(".mp4") else f"{name}.mp4"), wish=wish)


def _whole(where: str, key: str, value: Any) -> int:
    try:
        if isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise ConfigError(f"{where}: {key} is {value!r}; give a whole number")


def _pairs(folder: Path, out: Path) -> tuple[list[Job], list[str]]:
    """Jobs of a folder, by name, and what has no partner."""
    portraits, sounds = _by_stem(folder, PORTRAITS), _by_stem(folder, SOUNDS)
    only = next(iter(portraits.values())) if len(portraits) == 1 else None
    jobs, notices = [], []
    for stem, sound in sounds.items():
        image = portraits.get(stem, only)
        if image is None:
            notices.append(f"{sound.name} has no portrait {stem}.png beside it; it is left out")
            continue
        wish: dict[str, Any] = {"image": image, "audio": sound}
        prompt = folder / f"{stem}.txt"
        if prompt.is_file():
            wish["prompt"] = " ".join(_text(prompt).split())
        jobs.append(Job(film=out / f"{stem}.mp4", wish=wish))
    if only is None:
        lonely = [path.name for stem, path in portraits.items() if stem not in sounds]
        notices += [f"{name} has no sound of its name; it is left out" for name in lonely]
    return jobs, notices


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ConfigError(f"{folder} holds {found[path.stem].name} and {path.name}; keep one of one name")
            found[path.stem] = path
    return found

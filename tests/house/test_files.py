"""Files of the project: links resolve, nothing points at one machine, every configuration is complete and loads."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import Config, config_names, load_config

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".md", ".yaml", ".toml", ".js", ".html", ".css", ".sh", ".json", ".svg", ""}
LONGEST_FILE = 600


def project_files() -> list[Path]:
    """Files that belong to the project: what git knows, or without git everything but hidden and built folders."""
    run = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        found = [ROOT / line for line in run.stdout.splitlines()]
    else:
        skipped = re.compile(r"(^|/)(\.venv|\.git|__pycache__|artifacts|build|dist|output|[^/]*\.egg-info)(/|$)")
        found = [p for p in ROOT.rglob("*") if not skipped.search(p.relative_to(ROOT).as_posix())]
    return [path for path in found if path.is_file() and path.suffix in TEXT]


def sections(cls: type, prefix: str = "") -> list[str]:
    """Every key that a configuration can have, as dotted paths."""
    paths = []
    for field in dataclasses.fields(cls):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            paths += sections(type(default), f"{prefix}{field.name}.")
        else:
            paths.append(f"{prefix}{field.name}")
    return paths


def keys(data: Any, prefix: str = "") -> list[str]:
    if not isinstance(data, dict):
        return [prefix.rstrip(".")]
    return [key for name, value in data.items() for key in keys(value, f"{prefix}{name}.")]


@pytest.mark.parametrize("name", config_names())
def test_every_configuration_loads(name: str) -> None:
    assert isinstance(load_config(name), Config)


@pytest.mark.parametrize("name", config_names())
def test_every_configuration_is_complete_and_explained(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    wanted = {key for key in sections(Config) if not key.startswith("model.fake.")}
    missing = wanted - set(keys(yaml.safe_load(text)))
    assert not missing, f"{name}.yaml does not name {sorted(missing)}"
    bare = [line for line in text.splitlines() if re.match(r"\s*[a-z_0-9]+:\s*\S", line) and "#" not in line]
    assert not bare, f"{name}.yaml explains nothing beside {bare}"


def test_the_default_configuration_states_the_defaults() -> None:
    assert load_config("tiny") == Config(), "a default exists once: tiny.yaml and the dataclasses disagree"


@pytest.mark.parametrize("path", [p for p in project_files() if p.suffix == ".md"], ids=lambda p: p.name)
def test_links_in_documents_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            broken.append(target)
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(target)
    assert not broken, f"{path.name} links to {broken}"


def anchors(path: Path) -> set[str]:
    """The anchors that a document's headings make, as GitHub names them."""
    headings = re.findall(r"^#+\s+(.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_nothing_points_at_one_machine() -> None:
    place = re.compile(r"(?<![\w.$}{~-])/(work|root|home/\w+|Users/\w+)/\w")
    found = {}
    for path in project_files():
        if path == Path(__file__):
            continue
        hits = [line.strip()[:100] for line in path.read_text(encoding="utf-8").splitlines() if place.search(line)]
        if hits:
            found[str(path.relative_to(ROOT))] = hits
    assert not found


@pytest.mark.parametrize(
    "path",
    [p for p in project_files() if p.suffix == ".py" and p.parts[len(ROOT.parts)] in ("server", "streaming", "model")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE, "split it by subject"
    assert text.startswith('"""'), "a module opens with what it does"


def test_packaged_files_are_declared() -> None:
    """What an installed command needs lies in packages, with a pattern that takes it along."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for package, suffixes in {"configs": {".yaml"}, "client_demo": {".html", ".css", ".js", ".svg"}}.items():
        declared = {Path(pattern).suffix for pattern in data["package-data"][package]}
        assert suffixes <= declared
    patterns = data["packages"]["find"]["include"]
    for folder in ("server", "streaming", "model", "client_demo", "configs"):
        assert f"{folder}*" in patterns
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} is no package and would not be installed"

"""Imports run one way: server -> streaming -> model; the parent process never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ("server", "streaming", "model", "client_demo", "configs", "tests")
NETWORK = ("fastapi", "starlette", "uvicorn", "aiortc", "aioice", "websockets", "aiohttp", "httpx", "requests")
MODEL_DOORS = {"model.interface", "model.geometry", "model.errors", "model.launch"}
WITHOUT_TORCH = {"interface", "geometry", "config", "errors", "fake", "launch", "portrait", "__init__"} | {
    "component_config",
    "parallel",
    "picture_size",
    "portrait_quality",
    "sampling",
    "published",
    "published_keys",
    "memory",
    "gpus",
    "plan_speed",
    "planner",
    "setting",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, *, nested: bool = True) -> Iterator[str]:
    """Every module that a file imports, as a dotted name; `from a import b` gives a.b too, as b may be a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    nodes = ast.walk(tree) if nested else _at_top(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_top(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run on import; not those for the type checker only."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from ast.walk(node)


def within(name: str, packages: tuple[str, ...] | set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", modules("model"), ids=name_of)
def test_the_model_knows_no_time_and_nobody_above(path: Path) -> None:
    wrong = [
        name for name in imports(path) if within(name, ("server", "streaming", "client_demo", "asyncio", *NETWORK))
    ]
    assert not wrong, f"{name_of(path)} imports {wrong}"


def test_only_the_solvers_use_diffusers() -> None:
    """Everything else of the model runs on machines that have torch and transformers alone."""
    users = {name_of(path) for path in modules("model") if any(within(n, ("diffusers",)) for n in imports(path))}
    assert users == {"model.solvers"}


@pytest.mark.parametrize("path", modules("streaming"), ids=name_of)
def test_streaming_knows_no_network_and_only_the_models_doors(path: Path) -> None:
    found = list(imports(path))
    wrong = [name for name in found if within(name, ("server", "client_demo", "torch", *NETWORK))]
    wrong += [name for name in found if within(name, ("model",)) and name != "model" and not within(name, MODEL_DOORS)]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize("path", modules("server"), ids=name_of)
def test_the_server_knows_no_torch(path: Path) -> None:
    at_top = list(imports(path, nested=False))
    allowed = {f"model.{name}" for name in WITHOUT_TORCH}
    wrong = [name for name in at_top if within(name, ("torch", "transformers", "diffusers", "tests"))]
    wrong += [name for name in at_top if within(name, ("model",)) and name != "model" and not within(name, allowed)]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize("path", [*modules("server"), *modules("streaming"), *modules("model")], ids=name_of)
def test_training_stands_apart(path: Path) -> None:
    if within(name_of(path), ("model.training",)):
        return
    users = [name for name in imports(path, nested=name_of(path) != "server.cli") if within(name, ("model.training",))]
    assert not users, f"{name_of(path)} imports {users}"


def test_no_cycle_between_the_server_and_its_pages() -> None:
    wrong = {name_of(p): n for p in modules("client_demo") for n in imports(p) if within(n, ("server", "streaming"))}
    assert not wrong


@pytest.mark.parametrize(
    "name", ["server.serve", "server.app", "server.cli", "streaming", "model.fake", "model.launch"]
)
def test_the_parent_process_never_loads_torch(name: str) -> None:
    code = f"import sys, {name}; print(*(m for m in ('torch', 'transformers', 'diffusers') if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.strip(), f"{name} loads {run.stdout}"


def test_help_is_quick_because_commands_load_what_they_need() -> None:
    heavy = ("fastapi", "aiortc", "av", "numpy", "uvicorn", "torch", "PIL")
    code = f"import sys, server.cli; print(*(m for m in {heavy} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.strip(), f"server.cli loads {run.stdout}"

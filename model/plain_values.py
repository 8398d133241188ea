"""Plain values, as JSON and YAML have them, to the frozen dataclasses of configurations, strictly. No torch."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import is_dataclass
from typing import Any, Literal


def read_plain(kind: Any, value: Any, path: str) -> Any:
    """Turn plain values into `kind`: a dataclass, a tuple of one element type, a number, a string, a union.

    Args:
        kind: the type.
        value: dictionaries, lists, numbers and strings, as JSON has them.
        path: of the value, with a dot at its end; for the text of errors.

    Raises:
        ValueError: an unknown key (named with its path and the nearest known name) or a bad value.
    """
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'the configuration'} is {value!r}; give a mapping")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(str(key), list(hints), 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(hints)}"
                raise ValueError(f"unknown key {path + str(key)}{hint}")
        return kind(**{k: read_plain(hints[k], v, f"{path}{k}.") for k, v in value.items()})
    name = path.rstrip(".")
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner, length = typing.get_args(kind), None
        if inner[-1] is not Ellipsis:
            length = len(inner)
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise ValueError(f"{name} is {value!r}; give a list" + (f" of {length}" if length else ""))
        return tuple(read_plain(inner[0], v, path) for v in value)
    if origin in (typing.Union, types.UnionType):
        parts = [option for option in typing.get_args(kind) if is_dataclass(option)]
        if parts:
            return read_plain(_of_kind(parts, value, name), value, path)
        for option in typing.get_args(kind):
            try:
                return read_plain(option, value, path)
            except ValueError:
                continue
        raise ValueError(f"{name} is {value!r}, which fits none of {typing.get_args(kind)}")
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{name} is {value!r}; choose {' or '.join(map(str, typing.get_args(kind)))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}; give a value of type {kind.__name__}")
    return value


def _of_kind(parts: list[Any], value: Any, name: str) -> Any:
    """The dataclass among `parts` whose `kind` is the one that `value` names; the first where it names none."""
    kinds = {part.__dataclass_fields__["kind"].default: part for part in parts}
    wanted = value.get("kind", next(iter(kinds))) if isinstance(value, dict) else next(iter(kinds))
    if wanted not in kinds:
        raise ValueError(f"{name}.kind is {wanted!r}; choose {' or '.join(kinds)}")
    return kinds[wanted]

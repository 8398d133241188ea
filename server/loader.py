"""A mapping read from YAML becomes frozen dataclasses, strictly.

Every mistake is one sentence with the full path of the key, its value and the remedy: an unknown key names its
nearest known neighbour, a wrong type says what is wanted, and a range check of the dataclass (`ValueError` from
`__post_init__`) is passed on with the section's path in front. A default exists once: in the dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from typing import Any, TypeVar

import yaml

from server.errors import ConfigError

T = TypeVar("T")


class _StrictYaml(yaml.SafeLoader):
    """The safe loader with YAML 1.2's scalars (`on` is text, `1e-3` is a number); a key given twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _StrictYaml, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConfigError(f"key {key!r} in line {key_node.start_mark.line + 1} is not text; put it in quotes")
        if key in seen:
            raise ConfigError(f"key {key!r} stands twice, again in line {key_node.start_mark.line + 1}; keep one")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictYaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF"))
_StrictYaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+.0123456789"),
)
_StrictYaml.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: it is not YAML (with the line), not a mapping, or a key stands twice.
    """
    try:
        data = yaml.load(text, Loader=_StrictYaml)  # noqa: S506 - derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"it is not valid YAML{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"it is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"it holds {_name_of(data)} at the top; it must be a mapping of sections")
    return data


def build(cls: type[T], data: object, path: str = "") -> T:
    """Make one dataclass of a mapping.

    Args:
        cls: a dataclass; nested dataclasses, tuples of them, `X | None`, `Literal`, int, float, str and bool are known.
        data: what YAML gave for it.
        path: where it stands, for messages; empty at the top.

    Raises:
        ConfigError: one sentence with the full path of the first wrong key.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{path or 'the file'} is {_shown(data)}; it must be a section of keys")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(_unknown(key, path, list(fields)))
    hints = typing.get_type_hints(cls)
    values = {key: _value(hints[key], value, _join(path, key)) for key, value in data.items()}
    missing = [n for n, f in fields.items() if n not in values and _required(f)]
    if missing:
        raise ConfigError(f"{_join(path, missing[0])} is missing; it has no default")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _unknown(key: str, path: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {_join(path, near[0])}?" if near else f"known here: {', '.join(known)}"
    return f"{_join(path, key)} is not a known key; {hint}"


def _value(kind: Any, value: object, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        return _first_fitting(options, value, path)
    if origin is typing.Literal:
        allowed = typing.get_args(kind)
        if not any(type(value) is type(option) and value == option for option in allowed):
            near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{path} is {_shown(value)}; it must be one of {', '.join(map(str, allowed))}{hint}")
        return value
    if origin in (tuple, list):
        return _sequence(kind, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} is {_shown(value)}; it must be a section of keys")
        return {key: _value(typing.get_args(kind)[1], item, _join(path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, path)
    return _scalar(kind, value, path)


def _first_fitting(options: list[Any], value: object, path: str) -> Any:
    errors: list[ConfigError] = []
    for option in options:
        try:
            return _value(option, value, path)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _sequence(kind: Any, value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{path} is {_shown(value)}; it must be a list, for example [a, b]")
    kinds = typing.get_args(kind)
    if len(kinds) == 2 and kinds[1] is Ellipsis or typing.get_origin(kind) is list:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{path} has {len(value)} entries; it must have {len(kinds)}")
    return tuple(_value(k, item, f"{path}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))


_WANTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _scalar(kind: type, value: object, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind not in _WANTED:
        raise AssertionError(f"{path}: the loader knows no {kind}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path} is {_shown(value)}; it must be {_WANTED[kind]}")
    if kind is float and not (value == value and abs(value) != float("inf")):
        raise ConfigError(f"{path} is {value}; it must be a finite number")
    return value


def _name_of(value: object) -> str:
    names = {dict: "a section", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _shown(value: object) -> str:
    text = "empty" if value is None else repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({_name_of(value)})"

"""Every mistake in a configuration is one sentence with the full path and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from server.errors import ConfigError
from server.loader import build, parse_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    mode: int = 2
    kind: Literal["quiet", "loud"] = "quiet"
    gain: float = 1.0
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 2)
    limit: int | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.mode <= 3:
            raise ValueError(f"mode is {self.mode}; it must be 0 to 3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    items: tuple[Item, ...] = ()


def test_values_of_every_kind_arrive() -> None:
    text = """
    inner: {mode: 3, kind: loud, gain: 2, names: [a, b], pair: [5, 6], limit: 9, on: true}
    items: [{url: x}, {url: y}]
    """
    got = build(Outer, parse_yaml(text))
    assert got.inner == Inner(mode=3, kind="loud", gain=2.0, names=("a", "b"), pair=(5, 6), limit=9, on=True)
    assert isinstance(got.inner.gain, float)
    assert [item.url for item in got.items] == ["x", "y"]
    assert build(Outer, {"inner": {"limit": None}}).inner.limit is None
    assert build(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("iner: {}", ["iner is not a known key", "did you mean inner?"]),
        ("inner: {mod: 1}", ["inner.mod is not a known key", "did you mean inner.mode?"]),
        ("inner: {zzzz: 1}", ["inner.zzzz", "known here: mode, kind"]),
        ("inner: {mode: loud}", ["inner.mode is 'loud'", "a whole number"]),
        ("inner: {mode: true}", ["inner.mode is True", "a whole number"]),
        ("inner: {mode: 1.5}", ["inner.mode is 1.5", "a whole number"]),
        ("inner: {mode: 7}", ["inner: mode is 7", "0 to 3"]),
        ("inner: {kind: lout}", ["inner.kind is 'lout'", "quiet, loud", "did you mean loud"]),
        ("inner: {gain: .inf}", ["inner.gain is inf", "finite"]),
        ("inner: {names: a}", ["inner.names is 'a'", "a list"]),
        ("inner: {names: [a, 1]}", ["inner.names[1] is 1", "text"]),
        ("inner: {pair: [1]}", ["inner.pair has 1 entries", "must have 2"]),
        ("inner: {on: 1}", ["inner.on is 1", "true or false"]),
        ("inner: [1]", ["inner is [1]", "a section"]),
        ("inner:", ["inner is empty", "a section"]),
        ("items: [{}]", ["items[0].url is missing"]),
        ("items: [{urls: x}]", ["items[0].urls", "items[0].url?"]),
    ],
)
def test_a_mistake_is_one_sentence_with_its_path(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, parse_yaml(text))
    sentence = str(caught.value)
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "not valid YAML in line"),
        ("a: 1\na: 2", "'a' stands twice, again in line 2"),
        ("b: {c: 1, c: 2}", "'c' stands twice"),
        ("- 1", "a list at the top"),
        ("just words", "text at the top"),
        ("1: 2", "is not text"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_broken_yaml_names_the_place(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace("(", r"\(")):
        parse_yaml(text)


def test_scalars_follow_yaml_1_2() -> None:
    text = "{a: on, b: yes, c: 1e-3, d: 5, e: true, f: -2.5, g: .5, h: 10.1.2.3, i: 0x10, j: .inf}"
    got = parse_yaml(text)
    expected = {"a": "on", "b": "yes", "c": 1e-3, "d": 5, "e": True, "f": -2.5, "g": 0.5, "h": "10.1.2.3", "i": 16}
    assert got == expected | {"j": float("inf")}
    assert type(got["d"]) is int


def test_an_empty_file_means_all_defaults() -> None:
    assert parse_yaml("# nothing\n") == {}

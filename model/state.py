"""What is carried between blocks: plain dataclasses of tensors, passed into `forward` and owned by a session.

Weights never change, so sessions take turns on one set of them. The base knows nothing but how to find the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _tensors(getattr(value, f.name))


@dataclass
class State:
    """Base of everything carried between blocks."""

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor in the fields, also inside lists, tuples, dicts and other dataclasses."""
        yield from _tensors(self)

    @property
    def nbytes(self) -> int:
        """Memory of the distinct storages behind `tensors`."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(storages.values())

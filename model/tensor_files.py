"""Files of named tensors: what they hold is told by their headers, and weights are read one tensor at a time.

Two kinds are released: `.safetensors`, and `.pth` of plain tensors, which is mapped and never unpickled freely. Headers
are checked against the file's length, so a file that was cut short is found before anything is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from model.errors import CheckpointError

FP8 = torch.float8_e4m3fn
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", FP8: "F8_E4M3"}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: F32, F16, BF16, …; others are refused by the loader."""


def entries_of(path: Path) -> dict[str, Entry]:
    """What a file holds, without reading weights.

    Raises:
        CheckpointError: the file is missing, broken or cut short.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy it from the released checkpoint")
    if path.suffix == ".safetensors":
        return _safetensors_entries(path)
    tensors = _mapped(path)
    return {name: Entry(tuple(t.shape), _NAMES.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}


def _safetensors_entries(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(f"{path} is broken or cut short ({size} bytes); copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: Entry(tuple(value["shape"]), value["dtype"]) for name, value in header.items()}
            end = max((value["data_offsets"][1] for value in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has a broken header; copy it again") from error
    if 8 + length + end != size:
        raise CheckpointError(f"{path} has {size} bytes but its header tells of {8 + length + end}; copy it again")
    return entries


def _mapped(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the library raises anything on damaged files
        raise CheckpointError(f"{path} is broken, cut short, or not a file of plain tensors; copy it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds something else than named tensors; copy the released file")
    return tensors


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Callable[[str], Tensor]]:
    """A function from a tensor's name to its value, mapped from the file where possible."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            yield file.get_tensor
    else:
        yield _mapped(path).__getitem__


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | Mapping[str, torch.dtype],
    values: Iterable[tuple[str, Tensor]],
) -> None:
    """Write a file tensor by tensor, so that only one is in memory; the name appears when the file is complete.

    Args:
        path: file to write.
        shapes: every tensor, in the order of `values`.
        dtype: of all of them, or of each.
        values: the tensors; they are converted.
    """
    dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(shapes, dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtypes[name].itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, value), wanted in zip(values, shapes, strict=True):
            assert name == wanted and tuple(value.shape) == tuple(shapes[name]), name
            flat = value.detach().to("cpu", dtypes[name]).contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
    unfinished.replace(path)

"""What is dear to compute and small to keep, on disk: encoded prompts and portraits of the published model.

An entry is one file named by the hash of everything it depends on: the checkpoint's files, the kind of value, and the
content that was encoded. It carries a checksum; one that does not fit is dropped and written anew. Files appear whole
or not at all, so processes may share a folder. Entries used longest ago are removed when the folder grows beyond its
bound. A disk that fails costs the saving and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

_FORMAT = "1"
_OFF = "off"


def cache_folder(setting: str) -> Path | None:
    """The folder that `RunConfig.cache` means; None where nothing is kept.

    Args:
        setting: a path; `auto` for the user's cache folder (`$XDG_CACHE_HOME/avatarcast`, else `~/.cache/avatarcast`);
            `off` for none.
    """
    if setting == _OFF:
        return None
    if setting != "auto":
        return Path(setting).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # the rules ignore relative ones
    except RuntimeError:  # a user without a home
        return None
    return home / "avatarcast"


def identity_of(*paths: Path) -> str:
    """Of a checkpoint's files, without reading gigabytes: where they lie, their lengths and times of writing."""
    known = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(known).encode()).hexdigest()


class DiskCache:
    """See the module.

    Args:
        folder: made when the first entry is written.
        max_bytes: of all entries.
        identity: of what computes the values; other values of the same content belong to other identities.
    """

    def __init__(self, folder: Path, max_bytes: int, identity: str) -> None:
        self._folder, self._max_bytes, self._identity = folder, max_bytes, identity

    def get(self, kind: str, content: bytes, compute: Callable[[], Tensor], device: torch.device) -> Tensor:
        """What `compute` gives for `content`, from disk where it is known.

        Args:
            kind: begins the file's name, for example `prompt`.
            content: all that the value depends on besides the identity.
            compute: called when nothing usable is there.
            device: where the value is wanted.
        """
        digest = hashlib.sha256(b"\0".join([_FORMAT.encode(), self._identity.encode(), kind.encode(), content]))
        path = self._folder / f"{kind}-{digest.hexdigest()}.safetensors"
        value = self._read(path)
        if value is None:
            value = compute()
            self._write(path, value)
        return value.to(device)

    def _read(self, path: Path) -> Tensor | None:
        try:
            with safe_open(path, "pt") as file:
                wanted, value = (file.metadata() or {}).get("sum"), file.get_tensor("value").clone()
            if _sum(value) != wanted:
                raise ValueError("its checksum differs")
            os.utime(path)  # used now
            return value
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file raises
            log.warning("%s is ignored and written anew: %s", path, error)
            return None

    def _write(self, path: Path, value: Tensor) -> None:
        value = value.detach().cpu().contiguous()
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # faces are private
            save_file({"value": value}, unfinished, {"sum": _sum(value)})
            unfinished.replace(path)
            self._trim()
        except OSError as error:
            log.warning("%s cannot be kept: %s", path, error)
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Remove what was used longest ago until the rest fits."""
        entries = []
        for path in self._folder.glob("*.safetensors*"):  # what a killed process left unfinished too
            with contextlib.suppress(OSError):
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def _sum(value: Tensor) -> str:
    return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

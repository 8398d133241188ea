"""Where an adapter lies: a file or folder of this machine, or a repository of the model hub, fetched once."""

from __future__ import annotations

import re
from pathlib import Path

from model.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def adapter_file(name: str, may_fetch: bool = True) -> Path:
    """The path that an adapter's name means.

    Args:
        name: a path, or the `owner/name` of a repository that holds one `.safetensors` file.
        may_fetch: ask the hub; otherwise only what it has given before is found.

    Returns:
        The path as given, or the local folder of the repository.

    Raises:
        CheckpointError: neither is there; one sentence.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".safetensors" or not _HUB_ID.fullmatch(name):
        return path
    import huggingface_hub  # before transformers, which is told to stay offline

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=["*.safetensors"], local_files_only=not may_fetch
        )
    except Exception as error:  # the library and what it stands on raise many kinds
        if not may_fetch:
            text = f"adapter {name} is no path and was not fetched yet; start once, or name its file"
            raise CheckpointError(text) from error
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".:")[:200] or type(error).__name__
        text = f"adapter {name} is no path, and the hub does not give it ({reason}); check the name, or give its file"
        raise CheckpointError(text) from error
    found = sorted(Path(folder).glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"repository {name} holds {len(found)} .safetensors files, not one; give the adapter's file"
        )
    return found[0]

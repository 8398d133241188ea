"""Errors of the model package.

ModelError
|- CheckpointError      a file is missing, broken, or not what its config says
|- PortraitError        the picture cannot serve as a portrait
|- UnsupportedError     the machine or the build cannot do what the configuration asks
|- LinkError            the processes of a plan cannot be joined, or one of them does not answer
|- UnknownSessionError  a request names a session that is not open
`- UnwantedError        a block was given up between two parts of it, because nobody wants it any more
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class ModelError(Exception):
    """Base of all model errors; its text is one sentence that says what to do."""


class CheckpointError(ModelError):
    """Check the named file against the named configuration."""


class PortraitError(ModelError):
    """Send another picture; the text says what is wrong with this one."""


class UnsupportedError(ModelError):
    """Change the named setting; this machine cannot do what it asks."""


class LinkError(ModelError):
    """Start the group of processes again; the text names the one at fault and the remedy."""


class UnknownSessionError(ModelError):
    """Open the session before sending blocks to it."""


class UnwantedError(ModelError):
    """Nothing to do: the block was called off while it was made.

    Args:
        applied: changes that took effect with it; the next block confirms them.
    """

    def __init__(self, applied: tuple[str, ...] = ()) -> None:
        super().__init__("the block was called off while it was made")
        self.applied = applied


def exit_code_of(program: str, work: Callable[[], object]) -> int:
    """Do a command's work: 0, or 2 after a model error, whose sentence is on stderr then.

    Args:
        program: name in front of the sentence, for example `model.forge`.
    """
    try:
        work()
    except ModelError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    return 0

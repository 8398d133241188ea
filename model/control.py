"""Messages on the pipe between the server's process and the model's. Plain values, picklable, no torch.

Pictures do not travel here but through `frame_ring`; a `Done` names the slot they lie in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from model.frame_ring import RingAddress
from model.interface import BlockRequest, ModelInfo, SessionInfo, SessionSpec, SessionUpdate, UpdateInfo

# To the model's process


@dataclass(frozen=True, slots=True)
class Open:
    spec: SessionSpec


@dataclass(frozen=True, slots=True)
class Update:
    update: SessionUpdate


@dataclass(frozen=True, slots=True)
class Step:
    request: BlockRequest


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Blocks of an older epoch than `epoch` are not wanted any more."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Close:
    session: str


@dataclass(frozen=True, slots=True)
class Release:
    """The pictures in `slot` are not needed any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave in peace."""


# From the model's process


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm."""

    info: ModelInfo
    ring: RingAddress


@dataclass(frozen=True, slots=True)
class Failed:
    """The process is about to end."""

    reason: str
    """One sentence."""
    is_final: bool
    """Whether starting again cannot help, as with a missing file."""


@dataclass(frozen=True, slots=True)
class Opened:
    info: SessionInfo


@dataclass(frozen=True, slots=True)
class Refused:
    """A session could not be opened."""

    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Updated:
    """A change is ready; told before any block that shows it."""

    info: UpdateInfo


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A change could not be made; what it would have changed stays."""

    session: str
    block: int
    parts: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A block's pictures lie in `slot`."""

    session: str
    block: int
    epoch: int
    slot: int
    started_s: float
    """Monotonic time."""
    finished_s: float
    """Monotonic time."""
    stage_s: dict[str, float] = field(default_factory=dict)
    applied: tuple[str, ...] = ()
    latents: np.ndarray | None = None
    """See `BlockResult.latents`."""


SkipReason = Literal["deadline", "stale", "failed", "no_slot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A block will not come.

    `deadline`: its time had passed before it began. `stale`: interrupted, or its session is closed. `failed`: the
    model raised, see `message`. `no_slot`: all slots of the ring were held by the reader.
    """

    session: str
    block: int
    epoch: int
    reason: SkipReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life, twice a second."""

    busy_s: float
    """How long the present job has been under way; 0 when idle."""


Command = Open | Update | Step | Interrupt | Close | Release | Stop
Report = Ready | Failed | Opened | Refused | Updated | Unchanged | Done | Skipped | Beat

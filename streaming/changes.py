"""Changes of prompt and portrait that were asked for and are not seen yet.

A change shows from the first block of at least its number on, whatever became of the blocks between: called off by an
interrupt, too late, or lost with the model's process, which is given the changed session when it starts again. So the
numbers decide which block confirms it, not what a block that nobody saw might have said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.interface import SessionInfo, UpdateInfo
from streaming.events import Announcer

Part = Literal["prompt", "image"]


@dataclass(slots=True)
class _Change:
    part: Part
    block: int
    name: str
    info: UpdateInfo | None = None


class Changes:
    """What one session waits for.

    Args:
        announcer: told `prompt_applied`, `avatar_applied`, and what was found out about either as `warning`.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._waiting: list[_Change] = []
        self.least_psnr_db = 0.0
        """Below this the model calls a portrait foreign; said with the warning."""

    def ask(self, part: Part, block: int, name: str = "") -> None:
        """A change was planned.

        Args:
            part: what changes.
            block: the first block that may show it.
            name: id of the avatar, for the event.
        """
        self._waiting.append(_Change(part, block, name))

    def found(self, info: UpdateInfo) -> None:
        """The model has prepared a change."""
        part = "prompt" if info.portrait_psnr_db is None else "image"
        for change in self._waiting:
            if (change.part, change.block) == (part, info.block):
                change.info = info

    def refused(self, block: int, parts: tuple[str, ...]) -> None:
        """The model could not prepare a change for this block; it will not be confirmed."""
        for part in parts:
            change = next((c for c in self._waiting if (c.part, c.block) == (part, block)), None)
            if change is not None:
                self._waiting.remove(change)

    def shown(self, block: int, *, slot: int, frame: int) -> None:
        """A block has come; confirms what it is the first to show, the newest of each part.

        Args:
            block: its number.
            slot, frame: where it stands on the session's clock.
        """
        due = {change.part: change for change in self._waiting if change.block <= block}
        self._waiting = [change for change in self._waiting if change.block > block]
        if "image" in due:
            self._announcer.tell("avatar_applied", avatar=due["image"].name, block=slot, frame=frame)
        if "prompt" in due:
            self._announcer.tell("prompt_applied", block=slot, frame=frame)
        for change in due.values():
            if change.info is not None:
                self.warn(change.info)

    def warn(self, info: SessionInfo | UpdateInfo) -> None:
        """Tell what the user should know of a portrait or prompt that was taken."""
        psnr_db = info.portrait_psnr_db
        if psnr_db is not None and not info.in_domain:
            self._announcer.tell(
                "warning",
                code="out_of_domain",
                message=f"the portrait is outside the model's domain ({psnr_db:.1f} dB)",
                psnr_db=round(psnr_db, 1),
                min_psnr_db=self.least_psnr_db,
            )
        if info.prompt_cut:
            text = f"the prompt is too long; this end of it is not read: {info.prompt_cut[:200]}"
            self._announcer.tell("warning", code="prompt_cut", message=text)

"""What an operator chooses about sampling: solver, steps, guidance, picture rate, picture size. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.picture_size import size_within_area

SOLVERS = ("euler", "unipc", "dpm++", "dpmpp_2m")
MOST_STEPS = 8
MOST_GUIDANCE = 30.0
MOST_CLIP_BLOCKS = 16
MOST_DISTANCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """Keys of the run configuration; what stands at its default is the checkpoint's own."""

    solver: Literal["euler", "unipc", "dpm++", "dpmpp_2m"] = "euler"
    """How a block goes from one noise level to the next; dpm++ and dpmpp_2m are two names of one method."""
    num_steps: int = 0
    """Denoising steps, 1 to 8, at the published levels; 0 takes the checkpoint's schedule."""
    shift: float = 3.0
    """Moves the published levels towards noise; 3 as published, 1 leaves them evenly spaced."""
    guidance: float = 0.0
    """Above 1 every step runs a second time without prompt and sound and moves away from that; 0 or 1 is off."""
    negative_prompt: str = ""
    """What guidance moves away from."""
    fps: int = 0
    """Pictures a second, 16 or 25; 0 takes the checkpoint's own."""
    size_rule: Literal["auto", "area", "exact"] = "auto"
    """Whether size is the picture's area or the size itself; auto takes 704*384 for an area, 704x384 for a size."""
    noise: Literal["block", "clip"] = "block"
    """Counted by block, so that a stream can start anywhere; clip draws it as the published pipelines do."""
    reference: Literal["auto", "first", "steady"] = "auto"
    """Which latent of the still portrait conditions a stream until the sink is replaced; auto: the checkpoint's own."""
    sink: Literal["auto", "keep", "replace"] = "auto"
    """Whether the stream's own first latent replaces the portrait's after a clip; auto: the checkpoint's own way."""
    sink_distance: int | Literal["auto", "random"] = "auto"
    """Latent frames by which the reference stays ahead: a number, random for every block, or the checkpoint's own."""
    rope_tables: Literal["auto", "exact", "rounded"] = "auto"
    """Rotary factors in full precision, or rounded to float16 as the published code does; auto: as the checkpoint."""
    clip_blocks: int = 0
    """Blocks of a clip, which are also what attention looks back on; 0 takes the checkpoint's own (4 as published)."""

    def check_sampling(self) -> None:
        """Raise ValueError, one sentence, for what is out of range."""
        choices = (
            ("solver", SOLVERS),
            ("size_rule", ("auto", "area", "exact")),
            ("noise", ("block", "clip")),
            ("reference", ("auto", "first", "steady")),
            ("sink", ("auto", "keep", "replace")),
            ("rope_tables", ("auto", "exact", "rounded")),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {', '.join(known)}")
        if not 0 <= self.num_steps <= MOST_STEPS:
            raise ValueError(f"num_steps is {self.num_steps}; use 1 to {MOST_STEPS}, or 0 for the checkpoint's own")
        if not 0.1 <= self.shift <= 20:
            raise ValueError(f"shift is {self.shift}; choose a value from 0.1 to 20, 3 as published")
        if not (self.guidance in (0, 1) or 1 < self.guidance <= MOST_GUIDANCE):
            raise ValueError(f"guidance is {self.guidance}; 0 or 1 is off, and guidance is above 1, up to 30")
        far = self.sink_distance
        if far not in ("auto", "random") and (not isinstance(far, int) or not 0 <= far <= MOST_DISTANCE):
            raise ValueError(f"sink_distance is {far!r}; give 0 to {MOST_DISTANCE}, random, or auto")
        if not 0 <= self.clip_blocks <= MOST_CLIP_BLOCKS:
            raise ValueError(
                f"clip_blocks is {self.clip_blocks}; use 1 to {MOST_CLIP_BLOCKS}, or 0 for the checkpoint's own"
            )
        if self.fps not in (0, 16, 25):
            raise ValueError(f"fps is {self.fps}; choose 16 or 25, or 0 for the checkpoint's own")

    @property
    def is_guided(self) -> bool:
        return self.guidance > 1


def chosen_size(size: str, rule: str, rows: int | None = None, columns: int | None = None) -> tuple[int, int] | None:
    """Picture size of a setting.

    Args:
        size: `auto`, or two sides, width first, as 704x384 or 704*384.
        rule: as `SamplingChoice.size_rule`.
        rows, columns: of the portrait, whose aspect an area keeps; None takes the aspect of `size`.

    Returns:
        Width and height; None for the checkpoint's own.

    Raises:
        ValueError: the size cannot be read, or the area is too small.
    """
    if size == "auto":
        return None
    sides = size.replace("*", "x").split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"size is {size!r}; write it as 256x256, or auto")
    width, height = int(sides[0]), int(sides[1])
    if rule == "exact" or (rule == "auto" and "*" not in size):
        return width, height
    try:
        height, width = size_within_area(rows or height, columns or width, width * height)
    except ValueError as error:
        raise ValueError(f"size is {size!r}: {error}") from error
    return width, height

"""Which (block, step) a pipeline takes next: the most urgent one whose turn it can be. Pure; no torch, no clock.

Time is counted in ticks: what one stage needs for one item. A pipeline of G stages takes an item a tick and gives it
back G ticks later. So step s of a block may start G ticks after step s - 1 did, and one tick after step s of the same
stream's block before, whose keys it sees. With several blocks under way the pipeline stays full: one block is finished
in S G / G = S ticks, S being its steps. The choice is by deadline, earliest first, so sessions share fairly; a single
stream's oldest block always goes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
    """One pass of one block through all stages."""

    stream: int
    """Number of the stream; a session that starts anew gets another."""
    block: int
    step: int


@dataclass(slots=True)
class _Block:
    """A block under way."""

    stream: int
    index: int
    deadline_s: float
    number: int
    """Order of arrival."""
    before: _Block | None
    """The stream's block before, while it is under way."""
    starts: list[int] = field(default_factory=list)
    """Tick at which each step was taken."""
    is_back: bool = True
    """Whether the latest step has really come back."""


class Scheduler:
    """Blocks in, items out.

    Args:
        stages: stages that an item passes one after the other; 1 where stages divide the steps between them.
        steps: items of a block.
        is_serial: whether a stream's blocks must not overlap, because all steps write into one ring.
    """

    def __init__(self, stages: int, steps: int, is_serial: bool = False) -> None:
        self.tick = 0
        self._stages, self._steps, self._is_serial = stages, steps, is_serial
        self._blocks: list[_Block] = []
        self._latest: dict[int, _Block] = {}
        self._count = 0

    @property
    def num_blocks(self) -> int:
        """Blocks with steps that were not taken yet."""
        return len(self._blocks)

    def add(self, stream: int, block: int, deadline_s: float = 0.0) -> None:
        """A block to be done; a stream's blocks are added in order. Without a deadline (0) it is the least urgent."""
        deadline_s = deadline_s or float("inf")
        new = _Block(stream, block, deadline_s, self._count, self._latest.get(stream))
        self._count += 1
        self._latest[stream] = new
        self._blocks.append(new)

    def forget(self, stream: int) -> None:
        """No more blocks of a stream will come; those under way go on."""
        self._latest.pop(stream, None)

    def take(self) -> Item | None:
        """The item to start at this tick, if any may; a tick passes with it."""
        ready = [block for block in self._blocks if self._may_start(block)]
        if not ready:
            return None
        block = min(ready, key=lambda b: (b.deadline_s, b.number))
        item = Item(block.stream, block.index, len(block.starts))
        block.starts.append(self.tick)
        block.is_back = False
        if len(block.starts) == self._steps:
            self._blocks.remove(block)
            block.before = None
        self.tick += 1
        return item

    def idle(self) -> None:
        """A tick passes without an item."""
        self.tick += 1

    def returned(self, item: Item) -> None:
        """An item has come back, whatever the ticks say."""
        for block in self._blocks:
            if (block.stream, block.index, len(block.starts)) == (item.stream, item.block, item.step + 1):
                block.is_back = True

    def _may_start(self, block: _Block) -> bool:
        step = len(block.starts)
        if step and not block.is_back and self.tick < block.starts[-1] + self._stages:
            return False
        before = block.before
        if before is None:
            return True
        done = len(before.starts)
        return done == self._steps if self._is_serial else done > step

"""Pictures in shared memory: slots of one block each, owned by one side at a time.

The model's process creates the memory and writes; the reader attaches and at once removes the name, so that nothing is
left behind however either of them ends. Ownership passes with messages (`Done` to the reader, `Release` back), never
through the memory itself, so no ordering of memory accesses is relied on. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class RingAddress:
    """Where a ring lies."""

    name: str
    slots: int
    block_shape: tuple[int, int, int, int]
    """frames, height, width, 3; uint8."""

    @property
    def num_bytes(self) -> int:
        return self.slots * int(np.prod(self.block_shape))


class RingWriter:
    """The model's side.

    Args:
        slots: blocks the ring holds.
        block_shape: frames, height, width, 3.
        name: of the memory; None takes any.
    """

    def __init__(self, slots: int, block_shape: tuple[int, int, int, int], *, name: str | None = None) -> None:
        num_bytes = slots * int(np.prod(block_shape))
        self._memory = SharedMemory(name=name, create=True, size=num_bytes)
        self.address = RingAddress(name=self._memory.name, slots=slots, block_shape=block_shape)
        self._blocks = np.ndarray((slots, *block_shape), np.uint8, buffer=self._memory.buf)
        self._free = list(range(slots))

    def write(self, frames: np.ndarray) -> int | None:
        """Copy a block into a free slot, which then belongs to the reader.

        Args:
            frames: [frames, height, width, 3] uint8.

        Returns:
            The slot; None if the reader holds them all.
        """
        if not self._free:
            return None
        slot = self._free.pop()
        self._blocks[slot] = frames
        return slot

    def release(self, slot: int) -> None:
        """Take a slot back from the reader."""
        assert slot not in self._free, f"slot {slot} was released twice"
        self._free.append(slot)

    def close(self) -> None:
        """Let go of the memory; the reader's mapping stays valid."""
        del self._blocks
        self._memory.close()


class RingReader:
    """The server's side.

    Args:
        address: from the writer.
        give_back: told the slot whose pictures are not needed any more.
    """

    def __init__(self, address: RingAddress, give_back: Callable[[int], None]) -> None:
        self._memory = SharedMemory(name=address.name)
        self._memory.unlink()
        self._blocks: np.ndarray | None = np.ndarray(
            (address.slots, *address.block_shape), np.uint8, buffer=self._memory.buf
        )
        self._give_back = give_back
        self._held: set[int] = set()
        self._is_retired = False

    def read(self, slot: int) -> tuple[np.ndarray, Callable[[], None]]:
        """Look at a slot without copying.

        Returns:
            [frames, height, width, 3] uint8, valid until the second value, a release, is called; calling that twice
            does nothing more.
        """
        assert self._blocks is not None and slot not in self._held
        self._held.add(slot)
        frames = self._blocks[slot]
        frames.flags.writeable = False

        def release() -> None:
            if slot in self._held:
                self._held.discard(slot)
                if self._is_retired:
                    self._close_if_unused()
                else:
                    self._give_back(slot)

        return frames, release

    def retire(self) -> None:
        """The writer is gone: unmap the memory once the last block is released."""
        self._is_retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._held or self._blocks is None:
            return
        self._blocks = None
        # Views may outlive their release by a moment; without these references the last of them unmaps the memory.
        self._memory._buf = self._memory._mmap = None  # noqa: SLF001
        self._memory.close()


def remove(name: str) -> None:
    """Remove memory that its writer left behind without a reader; does nothing if there is none."""
    try:
        memory = SharedMemory(name=name)
    except FileNotFoundError:
        return
    memory.unlink()
    memory.close()

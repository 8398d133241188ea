"""How long a block's stages took, without waiting for a GPU in between."""

from __future__ import annotations

import time

import torch


class StageClock:
    """Marks at the ends of stages, on the device's own clock where it works behind the caller's back."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: what does the work; the first stage begins now.
        """
        self._is_cuda = device.type == "cuda"
        self._marks = [("", self._now())]

    def _now(self) -> float | torch.cuda.Event:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, stage: str) -> None:
        """The stage ends here."""
        self._marks.append((stage, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, once the last has ended."""
        if self._is_cuda:
            self._marks[-1][1].synchronize()
        spans = zip(self._marks, self._marks[1:], strict=False)
        return {stage: self._between(before, after) for (_, before), (stage, after) in spans}

    def _between(self, before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
        return before.elapsed_time(after) / 1000 if self._is_cuda else after - before

"""What is being spoken, as segments: when each begins and ends to be heard, and how far it was heard.

A segment is a run of speech with an id: a stretch found by voice activity, or an utterance that was pushed. Its sound
lies on the sample clock in one or more runs (pushed sound may arrive with holes). Every segment that began gets exactly
one `playback_finished`, whatever happens to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from model.geometry import SAMPLE_RATE_HZ
from streaming.events import PlaybackReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A segment begins or ends to be heard."""

    kind: Literal["playback_started", "playback_finished"]
    report: PlaybackReport


@dataclass(slots=True)
class _Segment:
    name: str
    runs: list[list[int | None]] = field(default_factory=list)
    """[start, end) on the sample clock; the last end is None while it grows."""
    is_complete: bool = False
    has_started: bool = False

    def heard(self, sample: int) -> int:
        """Samples of the segment before `sample`."""
        return sum(
            max(0, (sample if end is None else min(sample, end)) - start) for start, end in self.runs if start < sample
        )

    @property
    def start(self) -> int | None:
        return self.runs[0][0] if self.runs else None

    @property
    def end(self) -> int | None:
        """Sample at which it will have been heard; None while that is open."""
        if not self.is_complete:
            return None
        return self.runs[-1][1] if self.runs else 0


class SegmentBook:
    """The segments that were announced and not yet finished, in order."""

    def __init__(self) -> None:
        self._segments: list[_Segment] = []

    @property
    def is_playing(self) -> bool:
        """Whether a segment is being heard."""
        return any(segment.has_started for segment in self._segments)

    def __contains__(self, name: str) -> bool:
        return any(segment.name == name for segment in self._segments)

    def begin(self, name: str) -> None:
        """Announce a segment."""
        assert name not in self, f"segment {name!r} is open already"
        self._segments.append(_Segment(name))

    def extend(self, name: str, start: int, end: int | None) -> None:
        """Lay sound of a segment on [start, end); None: until `complete` says where it ends."""
        runs = self._get(name).runs
        if runs and runs[-1][1] == start:
            runs[-1][1] = end
        else:
            runs.append([start, end])

    def complete(self, name: str, end: int | None = None) -> None:
        """Nothing will be added any more; `end` closes a run that was left open."""
        segment = self._get(name)
        segment.is_complete = True
        if segment.runs and segment.runs[-1][1] is None:
            assert end is not None, "an open run needs an end"
            segment.runs[-1][1] = max(end, segment.runs[-1][0] or 0)

    def next_sample(self) -> int | None:
        """The sample at which `advance` will next have something to say."""
        waiting = [s.end if s.has_started or not s.runs else s.start for s in self._segments]
        return min((sample for sample in waiting if sample is not None), default=None)

    def advance(self, sample: int) -> Iterator[Turn]:
        """Everything up to `sample` has been heard; yields what began and ended, in order."""
        for segment in list(self._segments):
            if not segment.has_started and segment.start is not None and segment.start <= sample:
                segment.has_started = True
                report = PlaybackReport(segment=segment.name, position_ms=0, interrupted=False)
                yield Turn(kind="playback_started", report=report)
            if segment.end is not None and segment.end <= sample:
                self._segments.remove(segment)
                yield Turn(kind="playback_finished", report=_report(segment, sample, interrupted=False))

    def interrupt(self, sample: int) -> tuple[PlaybackReport, list[Turn]]:
        """Cut everything off at `sample`.

        Returns:
            The report on the segment that was being heard (or `segment=None`), and the end of every segment that was
            announced, in order.
        """
        answer = PlaybackReport(segment=None, position_ms=0, interrupted=False)
        turns = []
        for segment in self._segments:
            report = _report(segment, sample, interrupted=True)
            if answer.segment is None and segment.has_started:
                answer = report
            turns.append(Turn(kind="playback_finished", report=report))
        self._segments.clear()
        return answer, turns

    def _get(self, name: str) -> _Segment:
        return next(segment for segment in self._segments if segment.name == name)


def _report(segment: _Segment, sample: int, *, interrupted: bool) -> PlaybackReport:
    position_ms = segment.heard(sample) * 1000 // SAMPLE_RATE_HZ
    return PlaybackReport(segment=segment.name, position_ms=position_ms, interrupted=interrupted)

"""What a session says: segments from the microphone or pushed, and the telling of when each is heard.

While pushed speech waits or grows, the microphone is not spoken. Every segment that is announced is told to have
finished exactly once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np

from streaming.clock import Clock, Timer
from streaming.events import Announcer, PlaybackReport
from streaming.playout import Playout
from streaming.push import PushQueue
from streaming.segments import SegmentBook, Turn
from streaming.vad import Edge
from streaming.windows import Windows


class Voice:
    """The speaking side of one session.

    Args:
        clock: the session's clock.
        playout: says when a sample is heard.
        announcer: told `playback_started`, `playback_finished`, `pause` and `resume`.
        push_buffer_s: pushed sound that may wait.
        changed: called when it begins or ceases to be heard.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        playout: Playout,
        announcer: Announcer,
        push_buffer_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.laid_until = 0
        """End of the pushed speech that lies on the sample clock."""
        self._clock = clock
        self._playout = playout
        self._announcer = announcer
        self._changed = changed
        self._queue = PushQueue(push_buffer_s)
        self._book = SegmentBook()
        self._numbers = itertools.count(1)
        self._growing: str | None = None  # the microphone's segment that has no end yet
        self._timer: Timer | None = None

    @property
    def is_playing(self) -> bool:
        """Whether a segment is being heard."""
        return self._book.is_playing

    def is_pushed(self, sample: int) -> bool:
        """Whether pushed speech has the word at a sample: some waits, grows, or lies there and beyond."""
        return self._queue.is_active or self.laid_until > sample

    # Pushed speech

    def begin(self, name: str | None, *, spoken_until: int, is_held: bool = False) -> str:
        """Announce a pushed segment; the one before it is complete, and so is what the microphone was saying.

        Args:
            name: its name; None makes one up.
            spoken_until: end of the newest sound.
            is_held: it stays open until `end`, even if another one begins.

        Returns:
            Its name, changed if another one of that name is not finished.
        """
        if self._growing is not None:
            self._book.complete(self._growing, spoken_until)
            self._growing = None
            self._schedule()
        name = name or f"segment-{next(self._numbers)}"
        while name in self._book:
            name = f"{name}-{next(self._numbers)}"
        self._queue.begin(name, is_held=is_held)
        self._book.begin(name)
        return name

    def push(self, name: str, pcm: np.ndarray, rate_hz: int) -> bool:
        """Add sound to a pushed segment.

        Returns:
            False if the segment is not open any more, as after an interrupt; the sound is then dropped.

        Raises:
            BufferFullError, AudioFormatError: see `PushQueue.push`.
        """
        if not self._queue.accepts(name):
            return False
        self._queue.push(name, pcm, rate_hz)
        self._press()
        return True

    def end(self, name: str) -> None:
        """A pushed segment is complete."""
        self._queue.end(name)

    def lay(self, windows: Windows, slot: int) -> int:
        """Put pushed speech on the sample clock as far as a slot's window needs it, and further where it waits already.

        Returns:
            Sample up to which it is known what will be heard; 0 where that is the window's end. Silence after the end
            of what was pushed is known as well, while a slot still holds some of it.
        """
        hi, ahead = windows.window_end(slot), windows.most_end(slot)
        for laid in self._queue.lay(max(windows.frozen, windows.written), hi, ahead):
            windows.write(laid.start, laid.samples)
            if len(laid.samples):
                self.laid_until = laid.start + len(laid.samples)
                self._book.extend(laid.name, laid.start, self.laid_until)
            if laid.is_last:
                self._book.complete(laid.name)
        self._press()
        self._schedule()
        has_ended = not self._queue.is_active and self.laid_until > windows.start(slot)
        return ahead if has_ended else self.laid_until

    # The microphone

    def heard(self, edges: Iterable[Edge]) -> None:
        """Speech of the microphone, which is spoken, began or ended."""
        for edge in edges:
            if edge.kind == "started":
                self._grow(edge.at)
            elif self._growing is not None:
                self._book.complete(self._growing, edge.at)
                self._growing = None
        self._schedule()

    # Endings

    def interrupt(self, now_s: float, *, goes_on_at: int | None) -> tuple[PlaybackReport, bool]:
        """Cut off everything that is or will be said.

        Args:
            now_s: clock time.
            goes_on_at: sample from which speech of the microphone, open at this moment, is spoken again; None if there
                is none.

        Returns:
            The report on what was heard, and whether anything was cut off at all.
        """
        sample = self._playout.heard_sample(now_s)
        self._tell(self._book.advance(sample))
        report, turns = self._book.interrupt(sample)
        self._queue.clear()
        self.laid_until = 0
        self._growing = None
        self._tell(turns)
        self._press()
        if turns and goes_on_at is not None:
            self._grow(goes_on_at)
        self._schedule()
        return report, bool(turns)

    def close(self, now_s: float) -> None:
        """The session ends: finish every segment, forget the timer."""
        self.interrupt(now_s, goes_on_at=None)
        if self._timer is not None:
            self._timer.cancel()

    def _grow(self, start: int) -> None:
        self._growing = f"speech-{next(self._numbers)}"
        self._book.begin(self._growing)
        self._book.extend(self._growing, start, None)

    def _press(self) -> None:
        pressed = self._queue.pressure()
        if pressed is not None:
            self._announcer.tell("pause" if pressed else "resume")

    def _schedule(self) -> None:
        """Wake at the next moment at which a segment begins or ends to be heard."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sample = self._book.next_sample()
        if sample is not None:
            self._timer = self._clock.call_at(self._playout.sample_s(sample), self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._tell(self._book.advance(self._playout.heard_sample(self._clock.now())))
        self._schedule()

    def _tell(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            if turn.kind == "playback_started":
                self._announcer.tell(turn.kind, segment=turn.report.segment)
            else:
                self._announcer.tell(turn.kind, **turn.report.as_json())
            self._changed()

"""Blocks under way: from closed windows to requests, from results to playout, and what each cost.

At most one answer comes for each request. Requests of an older epoch, and of a model that died, are forgotten here as
they are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from streaming.changes import Changes
from streaming.clock import Clock
from streaming.engine import BlockDone, BlockSkipped, EnginePort
from streaming.events import Announcer
from streaming.playout import Playout
from streaming.stats import BlockLog, SessionCounters
from streaming.stream import Stream, posture_of
from streaming.windows import Window


@dataclass(slots=True)
class _Asked:
    slot: int
    closed_s: float


class Blocks:
    """The work of one session.

    Args:
        session: session id.
        engine: the model's door.
        clock: the session's clock.
        playout: takes the pictures.
        announcer: told `block` and `warning`.
        changes: of prompt and portrait, confirmed by the blocks that show them.
        stream: the block clock.
        margin_s: time that handing over may take.
    """

    def __init__(
        self,
        *,
        session: str,
        engine: EnginePort,
        clock: Clock,
        playout: Playout,
        announcer: Announcer,
        changes: Changes,
        stream: Stream,
        margin_s: float,
    ) -> None:
        self.counters = SessionCounters()
        self.log = BlockLog()
        self._session = session
        self._engine = engine
        self._clock = clock
        self._playout = playout
        self._announcer = announcer
        self._changes = changes
        self._stream = stream
        self._margin_s = margin_s
        self._asked: dict[int, _Asked] = {}
        self._answered_s = clock.now()  # when the last block came

    def ask(self, window: Window, posture: str, *, not_before_s: float = 0.0) -> None:
        """Send a closed window to the model.

        Args:
            window: of the present epoch.
            posture: while nobody speaks.
            not_before_s: frames due before this are given up; it is then the deadline.
        """
        deadline_s = max(self._due_s(window.block), not_before_s)
        request = self._stream.request(window, posture=posture_of(window, posture), deadline_s=deadline_s)
        if self._engine.submit(request):
            self._asked[request.block] = _Asked(window.block, self._clock.now())
        elif self._engine.state == "ready":
            self.counters.deadline_misses += 1
        else:
            self.counters.skipped_blocks += 1

    def redo(self, posture: str) -> None:
        """Compute what can still be shown again, as an interrupt left it; the picture holds until then."""
        stream = self._stream
        usual_s = self.log.usual_s or stream.info.block_s
        soonest_s = self._clock.now() + self._busy_s(usual_s) + usual_s + self._margin_s
        slot = stream.next_slot
        while slot > 0 and self._due_s(slot) > soonest_s:
            slot -= 1
        again = stream.interrupt(slot)
        self._engine.interrupt(self._session, stream.epoch)
        self._asked.clear()
        self._playout.drop()
        self._playout.expect_from(math.ceil((soonest_s - self._due_s(0)) * stream.geometry.fps))
        for slot in again:
            self.ask(stream.windows.window(slot), posture, not_before_s=soonest_s)

    def forget(self) -> None:
        """The model that was asked is gone."""
        self._asked.clear()

    def done(self, done: BlockDone) -> None:
        """Pictures have come."""
        asked = self._asked.pop(done.block, None)
        if asked is None or done.epoch != self._stream.epoch:
            done.release()
            return
        self._answered_s = self._clock.now()
        self.counters.blocks += 1
        self.log.add(took_s=done.finished_s - done.started_s, waited_s=done.started_s - asked.closed_s)
        frame = self._stream.geometry.block_start_frame(asked.slot)
        self._playout.add(frame, done.frames, done.release)
        self._changes.shown(done.block, slot=asked.slot, frame=frame)
        self._tell_times(done, asked)

    def skipped(self, skipped: BlockSkipped) -> None:
        """Pictures will not come."""
        if self._asked.pop(skipped.block, None) is None or skipped.reason == "stale":
            return
        if skipped.reason == "deadline":
            self.counters.deadline_misses += 1
            return
        self.counters.failed_blocks += 1
        message = skipped.message or "the pictures found no room; raise streaming.engine.frame_slots"
        self._announcer.tell("warning", code="internal", message=message)

    def _busy_s(self, usual_s: float) -> float:
        """How long the block under way will probably take yet; a model that can calls it off after a part."""
        if not self._asked:
            return 0.0
        begun_s = max(self._answered_s, min(asked.closed_s for asked in self._asked.values()))
        info = self._stream.info
        slower = usual_s / info.block_s if info.block_s else 1.0
        longest_s = info.part_s * slower or usual_s
        return min(max(0.0, begun_s + usual_s - self._clock.now()), longest_s)

    def _due_s(self, slot: int) -> float:
        return self._playout.frame_s(self._stream.geometry.block_start_frame(slot))

    def _tell_times(self, done: BlockDone, asked: _Asked) -> None:
        """One line of the page's latency waterfall; moments are session media time."""
        media_ms: Callable[[float], int] = lambda at_s: round(1000 * (at_s - self._playout.start_s))  # noqa: E731
        self._announcer.tell(
            "block",
            index=asked.slot,
            window_closed_ms=media_ms(asked.closed_s),
            queued_ms=round(1000 * (done.started_s - asked.closed_s), 1),
            **{f"{name}_ms": round(1000 * seconds, 1) for name, seconds in done.stage_s.items()},
            arrived_ms=media_ms(self._clock.now()),
            due_ms=media_ms(self._due_s(asked.slot)),
        )

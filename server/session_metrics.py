"""One session's share of the server's metrics: what its events and counters mean for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from server.metrics import Metrics
from streaming.events import Event
from streaming.session import Session

STAGE_FIELDS = {"audio": "audio_ms", "dit": "dit_ms", "vae": "vae_ms"}


class SessionMetrics:
    """Follows one session.

    Args:
        metrics: the server's.
        session: the conversation.
        on_block: told the seconds of work of every block, for admission.
    """

    def __init__(self, metrics: Metrics, session: Session, on_block: Callable[[float], None]) -> None:
        self._metrics = metrics
        self._session = session
        self._on_block = on_block
        self.encode_s = 0.0
        """Seconds of encoding so far."""
        self._encode_s = 0.0
        self._encoded = 0
        self._seen = {"underruns": 0, "deadline_misses": 0}

    def report(self, event: Event) -> None:
        """Take one event of the session."""
        if event.type == "block":
            self._block(event)
        elif event.type == "stats":
            self.refresh()

    def _block(self, event: Event) -> None:
        metrics, data = self._metrics, event.data
        metrics.blocks.inc()
        work_s = 0.0
        for stage, field in STAGE_FIELDS.items():
            seconds = _number(data.get(field)) / 1000
            work_s += seconds
            metrics.block_seconds.labels(stage).observe(seconds)
        metrics.queue_seconds.observe(max(0.0, _number(data.get("queued_ms")) / 1000))
        self._on_block(work_s)

    def refresh(self) -> None:
        """Count what the session's own counters have gained."""
        stats = self._session.stats()
        now = {"underruns": stats.underruns, "deadline_misses": stats.deadline_misses}
        self._metrics.underruns.inc(now["underruns"] - self._seen["underruns"])
        self._metrics.deadline_misses.inc(now["deadline_misses"] - self._seen["deadline_misses"])
        self._seen = now

    def encoded(self, seconds: float) -> None:
        """One picture was encoded; the stage is reported a block's worth at a time, like the others."""
        self._metrics.frames_encoded.inc()
        self.encode_s += seconds
        self._encode_s += seconds
        self._encoded += 1
        stream = self._session.stream
        if self._encoded >= (stream.geometry.frames_per_block if stream else 12):
            self._metrics.block_seconds.labels("encode").observe(self._encode_s)
            self._encode_s, self._encoded = 0.0, 0

    def picture_left(self, index: int, now_s: float) -> None:
        """A picture of session media time has left to its first viewer."""
        self._metrics.frames_sent.inc()
        latency_s = self.mouth_latency_s(index, now_s)
        if latency_s is not None:
            self._metrics.mouth_latency.observe(latency_s)

    def mouth_latency_s(self, index: int, now_s: float) -> float | None:
        """How long after the arrival of its first sample a picture has left; None for one before the stream.

        Args:
            index: picture of session media time.
            now_s: when it left.
        """
        stream, playout = self._session.stream, self._session.playout
        if stream is None:
            return None
        frame_s = playout.start_s + index / playout.fps - playout.sample_s(0)
        return now_s - (stream.start_s + frame_s) if frame_s >= 0 else None

    def first_picture(self, asked_s: float) -> None:
        """The first picture of a peer has left."""
        self._metrics.ttff.observe(time.monotonic() - asked_s)

    def silent(self, seconds: float) -> None:
        """Speech fell silent this long after an interrupt was asked for."""
        self._metrics.interrupt_seconds.observe(seconds)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0

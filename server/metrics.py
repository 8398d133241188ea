"""Counters and histograms, all named as `docs/protocol.md` lists them, in one registry of its own.

One `Metrics` belongs to one server, so that tests can run several side by side. Per-frame numbers live here and
nowhere else: frames are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)

STAGES = ("audio", "dit", "vae", "encode")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0)
_SMALL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """Everything `/metrics` shows. Attributes are named like the metrics, without the prefix and suffixes."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"avatarcast_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"avatarcast_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, labels: tuple[str, ...] = (), buckets=_SECONDS) -> Histogram:
            return Histogram(f"avatarcast_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.sessions = gauge("sessions", "Live sessions")
        self.tickets = gauge("tickets", "Clients that wait for a session")
        self.session_seconds = counter("session_seconds_total", "Seconds that ended sessions lasted")
        self.blocks = counter("blocks_total", "Blocks generated")
        self.frames_sent = counter("frames_sent_total", "Pictures that left to viewers, encoded once a session")
        self.underruns = counter("underruns_total", "Due times with no new picture to show")
        self.deadline_misses = counter("deadline_misses_total", "Blocks that came after their first picture was due")
        self.block_seconds = histogram("block_seconds", "Seconds of work for one block", ("stage",))
        self.mouth_latency = histogram("mouth_latency_seconds", "Sample arrives to its picture leaves")
        self.ttff = histogram("ttff_seconds", "Offer arrives to first picture leaves")
        self.av_drift = gauge("av_drift_seconds", "Picture minus sound where they leave, worst live session")
        self.rtf = gauge("rtf", "Seconds of work a second of stream, p95 of the last blocks")
        self.queue_seconds = histogram("queue_seconds", "Seconds a block waits before work on it begins")
        self.interrupt_seconds = histogram("interrupt_seconds", "Interrupt arrives to speech is silent")
        self.engine_restarts = counter("engine_restarts_total", "Times the engine process was started again")
        self.gpu_memory = gauge("gpu_memory_bytes", "Memory in use", ("device",))
        self.rejected = counter("rejected_total", "Refused requests", ("code",))
        self.loop_lag = histogram("event_loop_lag_seconds", "How late the event loop wakes", buckets=_SMALL_SECONDS)
        self.frames_encoded = counter("frames_encoded_total", "Pictures given to an H264 encoder")
        self.bitrate = gauge("encode_bitrate_kbps", "Rate of the shared encoder, lowest live session; 0 without one")
        self.bitrate_changes = counter("bitrate_changes_total", "Times a viewer's reports moved an encoder's rate")
        self.keyframe_requests = counter("keyframe_requests_total", "Key frames that viewers asked for")

    def render(self) -> bytes:
        """The page of `/metrics`, in Prometheus's text format."""
        return generate_latest(self.registry)


class LoopLag:
    """Measures how late the event loop wakes: the figure that says whether anything blocks it.

    A task sleeps for a fixed time again and again; what the sleep takes longer is the lag.
    """

    def __init__(self, metrics: Metrics, *, period_s: float = 0.02, keep: int = 3000) -> None:
        self._metrics = metrics
        self._period_s = period_s
        self._recent: deque[float] = deque(maxlen=keep)

    def p99_s(self) -> float:
        """99th percentile of the recent lags in seconds; 0 before the first."""
        return percentile(self._recent, 0.99)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(self._period_s)
            lag = max(0.0, time.monotonic() - before - self._period_s)
            self._recent.append(lag)
            self._metrics.loop_lag.observe(lag)


def percentile(values, share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed (nearest rank); 0 for none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0

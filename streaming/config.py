"""Settings of the time-keeping half: voice activity, windows, latency, and the watch over the engine process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def _check(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be {low} to {high} {unit}".rstrip())


@dataclass(frozen=True, slots=True, kw_only=True)
class VadConfig:
    """When sound counts as speech. Decisions fall on frames of 20 ms."""

    kind: Literal["webrtc", "silero"] = "webrtc"
    """webrtc: small and quick, good down to 10 dB of signal to noise; silero: better in noise, needs the extra."""
    mode: int = 2
    """Aggressiveness of webrtc, 0 (takes most for speech) to 3."""
    threshold: float = 0.5
    """Probability from which silero's verdict is speech."""
    level_floor_dbfs: float = -50.0
    """Quieter frames are never speech."""
    noise_margin_db: float = 4.0
    """Speech must stand this far above the steady background."""
    noise_window_s: float = 4.0
    """The background is the quietest moment of this long a past; longer than any single syllable."""
    start_ms: int = 60
    """Speech must last this long to begin a segment; the segment then begins where the speech did."""
    pre_roll_ms: int = 20
    """A segment is opened this much before its first speech frame, for soft consonants."""
    hangover_ms: int = 300
    """Quiet of this length ends a segment."""
    longest_turn_s: float = 30.0
    """A segment without a pause is cut here, so that noise taken for speech cannot hold the mouth open."""
    rearm_ms: int = 200
    """After such a cut, quiet of this length must come before speech can begin again."""

    def __post_init__(self) -> None:
        _check("mode", self.mode, 0, 3, "")
        _check("threshold", self.threshold, 0, 1, "")
        _check("level_floor_dbfs", self.level_floor_dbfs, -100, 0, "dBFS")
        _check("noise_margin_db", self.noise_margin_db, 0, 30, "dB")
        _check("noise_window_s", self.noise_window_s, 0.5, 60, "seconds")
        _check("start_ms", self.start_ms, 20, 500, "ms")
        _check("pre_roll_ms", self.pre_roll_ms, 0, 500, "ms")
        _check("hangover_ms", self.hangover_ms, 20, 3000, "ms")
        _check("longest_turn_s", self.longest_turn_s, 1, 600, "seconds")
        _check("rearm_ms", self.rearm_ms, 20, 3000, "ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """How input is laid on the session's sample clock."""

    jitter_ms: int = 60
    """A window closes this long after its last sample was due, for audio that the network delays."""
    history_s: float = 12.0
    """Sound kept behind the newest sample; must hold the model's left context and the latency."""
    fade_ms: int = 10
    """Length of the fades where the speech gate opens and closes."""
    gap_ms: int = 10
    """A jump of the source's timestamps smaller than this is rounding, not loss."""
    jump_ms: int = 1000
    """A jump larger than this is a new start of the source, not loss."""

    def __post_init__(self) -> None:
        _check("jitter_ms", self.jitter_ms, 0, 1000, "ms")
        _check("history_s", self.history_s, 2, 120, "seconds")
        _check("fade_ms", self.fade_ms, 0, 50, "ms")
        _check("gap_ms", self.gap_ms, 1, 100, "ms")
        _check("jump_ms", self.jump_ms, 100, 60_000, "ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """How far presentation runs behind the sample clock: block + look-ahead + jitter + compute + margin."""

    compute_factor: float = 1.5
    """Room for a block's time on this machine: its measured median times this."""
    margin_ms: int = 80
    """Room for hand-over between processes, encoding, and the loop."""
    floor_ms: int = 0
    """Never less than this, for example to compare machines at one latency."""
    ceiling_ms: int = 4000
    """Never more than this; a slower model then misses deadlines, and the picture holds."""

    def __post_init__(self) -> None:
        _check("compute_factor", self.compute_factor, 1, 10, "")
        _check("margin_ms", self.margin_ms, 0, 2000, "ms")
        _check("floor_ms", self.floor_ms, 0, 60_000, "ms")
        _check("ceiling_ms", self.ceiling_ms, 100, 60_000, "ms")
        if self.floor_ms > self.ceiling_ms:
            raise ValueError(f"floor_ms is {self.floor_ms}; it must not exceed ceiling_ms, {self.ceiling_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The watch over the model's process."""

    start_timeout_s: float = 180.0
    """Longest time a start may take, loading and warming up included."""
    step_timeout_s: float = 30.0
    """A block that takes longer than this has hung; the process is restarted."""
    heartbeat_timeout_s: float = 5.0
    """A process silent for this long is restarted."""
    stop_timeout_s: float = 3.0
    """Time to leave in peace before the process is killed."""
    max_pending_blocks: int = 3
    """Blocks one session may have waiting or in work; a further one is refused and counted."""
    frame_slots: int = 12
    """Blocks of pictures the shared memory holds, for all sessions together."""
    restart_delays_s: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0)
    """Pauses before the restarts; when they are used up without a healthy minute between, the engine has failed."""
    healthy_s: float = 60.0
    """A process that lived this long starts the row of pauses anew."""

    def __post_init__(self) -> None:
        _check("start_timeout_s", self.start_timeout_s, 1, 3600, "seconds")
        _check("step_timeout_s", self.step_timeout_s, 0.1, 3600, "seconds")
        _check("heartbeat_timeout_s", self.heartbeat_timeout_s, 1.5, 600, "seconds")
        _check("stop_timeout_s", self.stop_timeout_s, 0.1, 60, "seconds")
        _check("max_pending_blocks", self.max_pending_blocks, 1, 32, "")
        _check("frame_slots", self.frame_slots, 2, 1024, "")
        _check("healthy_s", self.healthy_s, 0, 3600, "seconds")
        for delay in self.restart_delays_s:
            _check("restart_delays_s", delay, 0, 600, "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingConfig:
    """The `streaming` section of a configuration file."""

    vad: VadConfig = field(default_factory=VadConfig)
    """Voice activity."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """Sample clock and windows."""
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    """Distance between hearing and showing."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The model's process."""

"""Pictures and sound by time.

Presentation follows the clock and nothing else: picture v is due at start + v / fps, piece j of sound at start +
j * 20 ms, counted from the session's first picture. The stream's frame 0 and sample 0 are laid on one such moment, and
from then on every frame and its sound are due together. Whoever sends them *pulls*: sleep until `next_picture_s`, call
`frame_due`. A pull never waits: without a new frame the last picture repeats while sound goes on, and frames that come
after their time are dropped and counted, so latency cannot creep.

Before the first generated frame the portrait shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from model.geometry import SAMPLE_RATE_HZ
from streaming.resample import OUT_RATE_HZ, UPSAMPLING, play_out

PIECE_MS = 20
PIECE_SAMPLES = SAMPLE_RATE_HZ * PIECE_MS // 1000
PIECE_S = PIECE_MS / 1000
_EARLY_S = 0.001  # a pull this much before its time counts as on time: timers round
_CATCH_UP_PIECES = 10  # sound that is pulled later than 200 ms is skipped instead of sent in a burst


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture to send now."""

    index: int
    """Picture of session media time; rises by more than 1 where pulls came too late."""
    pts_s: Fraction
    """Session media time, seconds."""
    frame: int | None
    """Frame of the stream that is due; None before the stream."""
    image: np.ndarray
    """[height, width, 3] uint8 RGB, read-only; the same object as before when it repeats."""
    is_fresh: bool
    """Whether this is the due frame itself and not a repetition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """20 ms of sound to send now."""

    index: int
    """Piece of session media time."""
    pts: int
    """Session media time in 1/48000 s."""
    pcm: np.ndarray
    """[960] int16, 48 kHz mono."""


@dataclass(slots=True)
class PlayoutCounters:
    """What playout did, since the session began."""

    fresh_frames: int = 0
    """Generated frames handed out."""
    held_frames: int = 0
    """Repetitions after the first generated frame, for whatever reason."""
    underruns: int = 0
    """Those of them where a frame was expected."""
    late_frames: int = 0
    """Frames that arrived after their time and were dropped."""
    skipped_frames: int = 0
    """Frames nobody pulled in time."""
    skipped_sounds: int = 0
    """Pieces of sound nobody pulled in time."""


@dataclass(slots=True)
class _Block:
    first_frame: int
    frames: np.ndarray
    release: Callable[[], None]


class Playout:
    """One session's presentation; pulled by one sender.

    Args:
        fps: pictures a second.
        start_s: clock time of picture 0.
        portrait: [height, width, 3] uint8 RGB shown until there is something better.
    """

    def __init__(self, *, fps: int, start_s: float, portrait: np.ndarray) -> None:
        self.counters = PlayoutCounters()
        self.start_s = start_s
        self.fps = fps
        self._image = _locked(portrait)
        self._next_picture = 0
        self._next_piece = 0
        self._first_picture: int | None = None  # where the stream's frame 0 is shown
        self._read: Callable[[int, int], np.ndarray] | None = None
        self._blocks: dict[int, _Block] = {}
        self._frames_per_block = 1
        self._expected_from: int | None = None
        self._has_shown = False
        self._picture_lag_s: deque[float] = deque(maxlen=fps)
        self._sound_lag_s: deque[float] = deque(maxlen=1000 // PIECE_MS)

    # When things are due

    @property
    def next_picture_s(self) -> float:
        """Clock time at which the next picture is due."""
        return self.start_s + self._next_picture / self.fps

    @property
    def next_sound_s(self) -> float:
        """Clock time at which the next piece of sound is due."""
        return self.start_s + self._next_piece * PIECE_S

    def frame_s(self, frame: int) -> float:
        """Clock time at which a frame of the stream is due."""
        assert self._first_picture is not None, "the stream has not begun"
        return self.start_s + (self._first_picture + frame) / self.fps

    def sample_s(self, sample: int) -> float:
        """Clock time at which a sample of the stream is heard."""
        return self.start_s + (self._origin + sample) / SAMPLE_RATE_HZ

    def heard_sample(self, now_s: float) -> int:
        """The sample of the stream that is heard at `now_s`; negative before the stream."""
        return round((now_s - self.start_s) * SAMPLE_RATE_HZ) - self._origin

    @property
    def next_sample(self) -> int:
        """First sample of the stream that has not been handed out."""
        return self._next_piece * PIECE_SAMPLES - self._origin

    @property
    def av_drift_ms(self) -> float:
        """How much later than their time pictures left than sound did, over the last second."""
        if not self._picture_lag_s or not self._sound_lag_s:
            return 0.0
        return 1000 * (_mean(self._picture_lag_s) - _mean(self._sound_lag_s))

    @property
    def picture_lag_s(self) -> float:
        """How much later than their time pictures left, over the last second."""
        return _mean(self._picture_lag_s) if self._picture_lag_s else 0.0

    # Filling

    def begin(self, *, first_picture: int, frames_per_block: int, read: Callable[[int, int], np.ndarray]) -> None:
        """Lay the stream's frame 0 on picture `first_picture`.

        Args:
            first_picture: not yet pulled.
            frames_per_block: frames of every block that `add` will bring.
            read: samples [lo, hi) of the stream as float32, zeros where there are none.
        """
        assert self._first_picture is None, "a stream begins once"
        self._first_picture, self._frames_per_block, self._read = first_picture, frames_per_block, read

    def show(self, portrait: np.ndarray) -> None:
        """Show another portrait, unless generated frames have been shown already."""
        if not self._has_shown:
            self._image = _locked(portrait)

    def add(self, first_frame: int, frames: np.ndarray, release: Callable[[], None]) -> None:
        """Take a block of frames; those whose time has passed are dropped and counted.

        Args:
            first_frame: its first frame, a multiple of the block.
            frames: [frames_per_block, height, width, 3] uint8 RGB.
            release: called once when the frames are not needed any more.
        """
        late = min(max(0, self._next_frame - first_frame), len(frames))
        self.counters.late_frames += late
        if late == len(frames) or first_frame in self._blocks:
            release()
            return
        if self._expected_from is None:
            self._expected_from = first_frame
        self._blocks[first_frame] = _Block(first_frame, frames, release)

    def expect_from(self, frame: int | None) -> None:
        """Count a missing frame as an underrun from `frame` on; None: expect nothing until told otherwise."""
        self._expected_from = 1 << 62 if frame is None else frame

    def drop(self) -> None:
        """Forget all frames that wait, after an interrupt; the last picture holds until new ones come."""
        for block in self._blocks.values():
            block.release()
        self._blocks.clear()

    def expire(self, now_s: float) -> None:
        """Drop what nobody pulled in time, so that a session without viewers holds no frames."""
        behind = self._due_picture(now_s) - self._frames_per_block
        if behind > self._next_picture:
            self._skip_pictures(behind)

    @property
    def queued_s(self) -> float:
        """Length of the frames that wait to be shown."""
        waiting = sum(self._frames_per_block - max(0, self._next_frame - first) for first in self._blocks)
        return waiting / self.fps

    # Pulling

    def frame_due(self, now_s: float) -> Picture | None:
        """The picture to send now.

        Returns:
            The newest picture whose time has come; None if it was handed out before.
        """
        due = self._due_picture(now_s)
        if due < self._next_picture:
            return None
        self._skip_pictures(due)
        self._picture_lag_s.append(now_s - self.next_picture_s)
        self._next_picture = due + 1
        frame = None if self._first_picture is None else due - self._first_picture
        is_fresh = frame is not None and self._advance(frame)
        return Picture(index=due, pts_s=Fraction(due, self.fps), frame=frame, image=self._image, is_fresh=is_fresh)

    def next_audio(self, now_s: float) -> Sound | None:
        """The piece of sound to send now; call again until None.

        Returns:
            The next piece in order if its time has come. Pieces overdue by more than 200 ms are skipped and counted.
        """
        due = int((now_s - self.start_s + _EARLY_S) // PIECE_S)
        if due < self._next_piece:
            return None
        if due - self._next_piece > _CATCH_UP_PIECES:
            self.counters.skipped_sounds += due - self._next_piece
            self._next_piece = due
        self._sound_lag_s.append(now_s - self.next_sound_s)
        start, index = self.next_sample, self._next_piece
        self._next_piece += 1
        if self._read is None or start + PIECE_SAMPLES <= 0:
            pcm = np.zeros(PIECE_SAMPLES * UPSAMPLING, np.int16)
        else:
            pcm = play_out(self._read, start, PIECE_SAMPLES)
        return Sound(index=index, pts=index * OUT_RATE_HZ * PIECE_MS // 1000, pcm=pcm)

    @property
    def _origin(self) -> int:
        """Sample of session media time at which the stream's sample 0 is heard; past any clock before the stream."""
        if self._first_picture is None:
            return 1 << 62
        return self._first_picture * SAMPLE_RATE_HZ // self.fps

    @property
    def _next_frame(self) -> int:
        """First frame of the stream that has not been handed out."""
        return self._next_picture - (self._first_picture or 0)

    def _due_picture(self, now_s: float) -> int:
        return int((now_s - self.start_s + _EARLY_S) * self.fps // 1)

    def _advance(self, frame: int) -> bool:
        """Make `frame` the image, if it is there."""
        block = self._blocks.get(frame - frame % self._frames_per_block)
        if block is not None:
            self._image = _locked(block.frames[frame - block.first_frame])
            self._has_shown = True
            self.counters.fresh_frames += 1
        elif self._has_shown:
            self.counters.held_frames += 1
            self.counters.underruns += self._expected_from is not None and frame >= self._expected_from
        self._release_before(frame + 1)
        return block is not None

    def _skip_pictures(self, due: int) -> None:
        """Pass over pictures that nobody pulled."""
        if due > self._next_picture and self._has_shown:
            self.counters.skipped_frames += due - self._next_picture
        self._next_picture = max(due, self._next_picture)
        self._release_before(self._next_frame)

    def _release_before(self, frame: int) -> None:
        for first in [first for first in self._blocks if first + self._frames_per_block <= frame]:
            self._blocks.pop(first).release()


def _locked(image: np.ndarray) -> np.ndarray:
    """A read-only copy, so that a sender may keep it while shared memory is used again."""
    copy = image.copy()
    copy.flags.writeable = False
    return copy


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values)

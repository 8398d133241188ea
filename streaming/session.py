"""One conversation: sound in by any door, pictures and sound out by the clock, and what happened told as events.

The road of one block: sound is laid on the sample clock (`timeline`, `push`, `windows`); when the clock passes the end
of a window it is closed and sent to the engine as one `BlockRequest` with the moment its first picture is due; the
pictures enter `playout` beside their sound. Whatever comes late is dropped and counted; nothing waits.

A session shows its portrait from the first moment. When the model is ready the stream begins; when the model dies the
last picture stays, the block clock runs on, and the stream resumes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import av
import numpy as np

from model.interface import POSTURES, ModelInfo, SessionInfo, SessionSpec, SessionUpdate, UpdateInfo
from streaming.blocks import Blocks
from streaming.changes import Changes
from streaming.clock import Clock
from streaming.config import StreamingConfig
from streaming.engine import BlockDone, BlockSkipped, EnginePort, EngineState
from streaming.errors import EngineError, SessionClosedError, StreamingError
from streaming.events import Announcer, Event, PlaybackReport, SessionState
from streaming.microphone import Microphone
from streaming.playout import Playout
from streaming.stats import BlockLog, Stats, percentile
from streaming.stream import Stream, latency_target_s
from streaming.vad import Edge
from streaming.voice import Voice

log = logging.getLogger(__name__)

Mode = Literal["echo", "push"]
_MAX_BEHIND = 4  # blocks that are made up for after a stall of the loop; beyond that they are passed over
_REPORT_S = 1.0
_HAND_OVER_S = 0.03  # between processes, each way


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """When a change will show."""

    block: int
    """Slot of the sample clock."""
    frame: int
    """First frame of it."""


class Session:
    """One speaker and its viewers' stream. Not thread-safe: everything is called on the loop.

    Args:
        spec: id, portrait, prompt and seed; `first_block` is set here.
        engine: the model's door.
        config: settings.
        clock: the clock everything runs on.
        fps: pictures a second; must be the model's.
        mode: `echo` speaks what the microphone hears, `push` only what is pushed.
        push_buffer_s: pushed sound that may wait.
    """

    def __init__(
        self,
        spec: SessionSpec,
        *,
        engine: EnginePort,
        config: StreamingConfig,
        clock: Clock,
        fps: int = 25,
        mode: Mode = "echo",
        push_buffer_s: float = 30.0,
    ) -> None:
        self.id = spec.session
        self.mode: Mode = mode
        self.info: SessionInfo | None = None
        """What opening found out about the portrait; None until the model has opened the session."""
        self.stream: Stream | None = None
        """None until the model is ready."""
        self.blocks: Blocks | None = None
        """As `stream`."""
        self.playout = Playout(fps=fps, start_s=clock.now(), portrait=spec.image)
        self._spec = spec
        self._engine = engine
        self._config = config
        self._clock = clock
        self._announcer = Announcer(spec.session, self._media_ms)
        self._changes = Changes(self._announcer)
        self._microphone = Microphone(config)
        self._voice = Voice(
            clock=clock,
            playout=self.playout,
            announcer=self._announcer,
            push_buffer_s=push_buffer_s,
            changed=self._refresh_state,
        )
        self._state: SessionState = "idle"
        self._hint = "idle"
        self._prompt = self._model_prompt = spec.prompt
        self._idle_prompt: str | None = None
        self._is_user_heard = False
        self._is_lost = False
        self._is_closed = False
        self._reported = (clock.now(), 0)
        self._runner: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] = lambda: None

    # Life

    async def start(self) -> None:
        """Begin to run; returns at once. Pictures may be pulled from `playout` from now on."""
        assert self._runner is None, "a session starts once"
        self._unlisten = self._engine.listen(self._engine_changed)
        self._runner = asyncio.create_task(self._run(), name=f"session {self.id}")

    async def close(self) -> None:
        """End the session: every segment finishes, blocks under way are forgotten. Later calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._refresh_state()
        self._voice.close(self._clock.now())
        self._unlisten()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        await self._engine.close_session(self.id)
        self.playout.drop()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._live(), name=f"blocks of {self.id}")
                group.create_task(self._report(), name=f"stats of {self.id}")
        except* Exception as errors:
            log.exception("session %s has failed", self.id, exc_info=errors)
            self._lose("internal", "the session has failed; open another")

    async def _live(self) -> None:
        """Open the session as soon as there is a model, then close one window after the other."""
        try:
            info = await self._engine.ready()
            if info.geometry.fps != self.playout.fps:
                text = f"the model makes {info.geometry.fps} pictures a second, the session expects {self.playout.fps}"
                raise EngineError(text)
            self.info = await self._engine.open_session(self._spec, self)
        except StreamingError as error:
            self._lose(error.code, str(error))
            return
        self.playout.show(self.info.portrait)
        self._changes.least_psnr_db = info.in_domain_psnr_db
        self._changes.warn(self.info)
        stream, blocks = self._begin(info)
        while True:
            await self._clock.sleep_until(stream.close_s(stream.next_slot))
            self._catch_up(stream, blocks)
            self._close_window(stream, blocks)

    def _begin(self, info: ModelInfo) -> tuple[Stream, Blocks]:
        """Lay sample 0 so that frame 0 falls on a picture time and blocks fall between those of other sessions."""
        latency_s = latency_target_s(info, self._config)
        earliest_s = self._engine.claim_phase(self.id, self._clock.now())
        first_picture = math.ceil((earliest_s + latency_s - self.playout.start_s) * self.playout.fps - 1e-6)
        start_s = self.playout.start_s + first_picture / self.playout.fps - latency_s
        stream = self.stream = Stream(self.id, info, self._config, start_s)
        self.playout.begin(
            first_picture=first_picture, frames_per_block=info.geometry.frames_per_block, read=stream.windows.read
        )
        blocks = self.blocks = Blocks(
            session=self.id,
            engine=self._engine,
            clock=self._clock,
            playout=self.playout,
            announcer=self._announcer,
            changes=self._changes,
            stream=stream,
            margin_s=_HAND_OVER_S,
        )
        log.info("session %s: latency %.0f ms", self.id, 1000 * latency_s)
        return stream, blocks

    # Sound in

    def push_audio(self, frame: av.AudioFrame) -> None:
        """Hear a frame of the microphone; its timestamp places it.

        Raises:
            AudioFormatError: `unsupported_rate` and its like; the next good frame is taken again.
            SessionClosedError: the session has ended.
        """
        self._check_open()
        samples = self._microphone.convert(frame)
        if self.stream is None or self._microphone.is_muted:
            return
        now = self.stream.sample_at(self._clock.now())
        if self.mode == "push" or self._voice.is_pushed(now):
            edges = self._microphone.overhear(samples)
        else:
            windows = self.stream.windows
            start = self._microphone.place(frame, len(samples), now=now, is_quiet=not windows.is_speech)
            edges = windows.write(start, samples)
            self._voice.heard(edges)
        self._tell_edges(edges)

    def begin_segment(self, name: str | None = None, *, is_held: bool = False) -> str:
        """Announce an utterance to be pushed; returns its name, made up if none is given.

        Args:
            name: its name.
            is_held: it stays open until `end_segment`; otherwise the next one that begins completes it.
        """
        self._check_open()
        if self.mode == "echo":
            self._tell_speech(False)
        return self._voice.begin(name, spoken_until=self.stream.windows.written if self.stream else 0, is_held=is_held)

    def push_pcm(self, pcm: np.ndarray, rate_hz: int, segment: str) -> bool:
        """Push sound of an announced utterance.

        Args:
            pcm: [n] int16, or float32 in -1..1, mono.
            rate_hz: its sample rate.
            segment: from `begin_segment`.

        Returns:
            False if the segment is not open any more, as after an interrupt; the sound is then dropped.

        Raises:
            AudioFormatError: `unsupported_rate`.
            BufferFullError: wait for the `resume` event.
            SessionClosedError: the session has ended.
        """
        self._check_open()
        return self._voice.push(segment, pcm, rate_hz)

    def end_segment(self, segment: str) -> None:
        """The utterance is complete; `playback_finished` follows when it has been heard."""
        self._voice.end(segment)

    def mute(self, on: bool) -> None:
        """Do not hear the microphone."""
        self._microphone.is_muted = on
        if on:
            self._tell_speech(False)

    def tap_microphone(self, listener: Callable[[np.ndarray], None] | None) -> None:
        """Hand everything the microphone hears, 16 kHz mono float32, to one listener as well."""
        self._microphone.listener = listener

    # Control

    def interrupt(self) -> PlaybackReport:
        """Stop speaking now: sound that was not sent yet is silent, pictures of it are computed anew.

        Every interrupt is answered by `playback_finished`; its segment is None if there was nothing to stop.
        """
        now_s = self._clock.now()
        stream = self.stream
        cut = goes_on_at = None
        is_open = False
        if stream is not None:
            now = stream.sample_at(now_s)
            is_open = stream.windows.is_speech and not self._voice.is_pushed(now)
            if self._voice.laid_until > stream.windows.frozen:
                stream.windows.retract()
            cut = max(self.playout.next_sample, self.playout.heard_sample(now_s))
            goes_on_at = max(cut, now, stream.windows.written)
        report, was_cut = self._voice.interrupt(now_s, goes_on_at=goes_on_at if is_open else None)
        if self.blocks is not None and was_cut:
            stream.windows.silence(cut, goes_on_at)
            self.blocks.redo(self._posture())
        if not was_cut:
            self._announcer.tell("playback_finished", **report.as_json())
        self._refresh_state()
        return report

    def set_prompt(self, prompt: str) -> Planned:
        """Change the prompt at the next block; `prompt_applied` confirms.

        While an idle prompt is in force and nobody speaks, it waits for the next block with speech.
        """
        self._check_open()
        self._prompt = prompt
        if self._idle_prompt is not None and self._model_prompt == self._idle_prompt:
            return self._planned()
        self._model_prompt = prompt
        return self._plan(prompt=prompt)

    def set_idle_prompt(self, prompt: str | None) -> Planned:
        """Use another prompt in blocks without speech, or none other; each change is told as `prompt_applied`."""
        self._check_open()
        self._idle_prompt = prompt
        return self._planned()

    def set_avatar(self, image: np.ndarray, name: str = "") -> Planned:
        """Change the portrait at the next block; `avatar_applied` confirms with `name`.

        Args:
            image: [height, width, 3] uint8 RGB, any size.
            name: avatar id for the event.
        """
        self._check_open()
        if self.blocks is None:
            self.playout.show(image)
        return self._plan(image=image, name=name)

    def set_posture(self, posture: str) -> None:
        """Listen or think until told otherwise or until speech begins.

        Raises:
            StreamingError: no such posture.
        """
        if posture not in POSTURES[:3]:
            raise StreamingError(f"state is {posture!r}; send {', '.join(POSTURES[:3])}")
        self._hint = posture
        self._refresh_state()

    def announce_error(self, code: str, message: str) -> None:
        """Tell that something asked of the session has failed; it goes on."""
        self._announcer.tell("error", code=code, message=message)

    def announce_closing(self, deadline_s: float) -> None:
        """Tell that the session will be ended in so many seconds."""
        self._announcer.tell("closing", deadline_s=deadline_s)

    # Watching

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event; the returned function ends that."""
        return self._announcer.subscribe(listener)

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def latency_s(self) -> float | None:
        """From a sample's arrival until its frame is due; None until the stream has begun."""
        if self.stream is None:
            return None
        return self.playout.sample_s(0) - self.stream.start_s

    def stats(self) -> Stats:
        """Figures of the moment; `fps` counts since the last `stats` event."""
        now_s, fresh = self._clock.now(), self.playout.counters.fresh_frames
        since_s, before = self._reported
        log = self.blocks.log if self.blocks else BlockLog()
        usual_s = log.usual_s or 0.0
        return Stats(
            fps=round((fresh - before) / max(now_s - since_s, 1e-3), 2),
            block_ms_p50=round(1000 * usual_s, 1),
            block_ms_p95=round(1000 * percentile(log.took_s, 0.95), 1),
            latency_ms=round(1000 * ((self.latency_s or 0.0) + self.playout.picture_lag_s), 1),
            queue_ms=round(1000 * percentile(log.waited_s, 0.5), 1),
            av_drift_ms=round(self.playout.av_drift_ms, 2),
            rtf=round(usual_s / self.stream.geometry.block_s, 3) if self.stream else 0.0,
            underruns=self.playout.counters.underruns,
            deadline_misses=self.blocks.counters.deadline_misses if self.blocks else 0,
            late_samples=self.stream.windows.late_samples if self.stream else 0,
        )

    # The engine's calls

    def next_block(self) -> int:
        return self.stream.next_block if self.stream else 0

    def block_done(self, done: BlockDone) -> None:
        if self.blocks is None or self._is_closed:
            done.release()
        else:
            self.blocks.done(done)

    def block_skipped(self, skipped: BlockSkipped) -> None:
        if self.blocks is not None:
            self.blocks.skipped(skipped)

    def updated(self, info: UpdateInfo) -> None:
        self._changes.found(info)

    def update_refused(self, block: int, parts: tuple[str, ...], reason: str) -> None:
        self._changes.refused(block, parts)
        self.announce_error("unsupported_media" if "image" in parts else "internal", reason)

    def session_lost(self, reason: str) -> None:
        self._lose("engine_down", reason)

    # Blocks

    def _catch_up(self, stream: Stream, blocks: Blocks) -> None:
        """After a long stall of the loop, pass over windows whose time is long gone."""
        behind = int((self._clock.now() - stream.close_s(stream.next_slot)) / stream.geometry.block_s)
        if behind > _MAX_BEHIND:
            blocks.counters.deadline_misses += behind
            stream.next_slot += behind
            self._hear_windows(stream.windows.skip_to(stream.next_slot))

    def _close_window(self, stream: Stream, blocks: Blocks) -> None:
        slot = stream.next_slot
        was_pushed = self._voice.is_pushed(stream.windows.frozen)
        known = self._voice.lay(stream.windows, slot)
        window, edges = stream.windows.close(slot, known)
        self._follow_speech(is_speech=window.has_speech)
        stream.next_slot = slot + 1
        if not was_pushed:
            self._hear_windows(edges)
        self.playout.expire(self._clock.now())
        blocks.ask(window, self._posture())

    def _posture(self) -> str:
        """What the body does while it says nothing: who only speaks what is pushed listens to the user's voice."""
        if self._hint == "idle" and self.mode == "push" and self._is_user_heard:
            return "listening"
        return self._hint

    def _follow_speech(self, *, is_speech: bool) -> None:
        """Before a block is asked for, put the prompt in force that its sound calls for."""
        wanted = self._prompt if is_speech or self._idle_prompt is None else self._idle_prompt
        if wanted != self._model_prompt:
            self._model_prompt = wanted
            self._plan(prompt=wanted)

    def _plan(self, *, prompt: str | None = None, image: np.ndarray | None = None, name: str = "") -> Planned:
        update = SessionUpdate(session=self.id, block=self.next_block(), prompt=prompt, image=image)
        if self.stream is None:
            self._spec = replace(self._spec, **{part: getattr(update, part) for part in update.parts})
        for part in update.parts:
            self._changes.ask(part, update.block, name)
        self._engine.update(update)
        return self._planned()

    def _planned(self) -> Planned:
        """The block that is asked for next."""
        slot = self.stream.next_slot if self.stream else 0
        return Planned(block=slot, frame=slot * self.stream.geometry.frames_per_block if self.stream else 0)

    # States and events

    def _hear_windows(self, edges: list[Edge]) -> None:
        """Edges that closing a window made known; pushed speech is nobody's speech."""
        if self.mode == "echo":
            self._voice.heard(edges)
            self._tell_edges(edges)

    def _tell_edges(self, edges: list[Edge]) -> None:
        for edge in edges:
            self._tell_speech(edge.kind == "started")

    def _tell_speech(self, is_heard: bool) -> None:
        """The user speaks, or does so no longer; told in turns, whichever detector heard it."""
        if is_heard != self._is_user_heard:
            self._is_user_heard = is_heard
            self._announcer.tell("speech_started" if is_heard else "speech_stopped")
            self._refresh_state()

    def _engine_changed(self, state: EngineState) -> None:
        if state == "ready" and self.stream is not None:
            self.playout.expect_from(self.stream.geometry.block_start_frame(self.stream.next_slot))
        elif state != "ready":
            if self.blocks is not None:
                self.blocks.forget()
            self.playout.expect_from(None)
        if state == "failed" and self.stream is not None:
            self._lose("engine_down", self._engine.failure)
        self._refresh_state()

    def _lose(self, code: str, message: str) -> None:
        """There will be no more blocks; the last picture stays."""
        self._is_lost = True
        self.playout.expect_from(None)
        self._announcer.tell("error", code=code, message=message)
        self._refresh_state()

    def _refresh_state(self) -> None:
        if self._voice.is_playing and self._hint == "thinking":
            self._hint = "idle"
        state = self._present_state()
        if state != self._state:
            self._state = state
            self._announcer.tell("state", state=state)

    def _present_state(self) -> SessionState:
        if self._is_closed:
            return "closing"
        if self._is_lost or (self.stream is not None and self._engine.state != "ready"):
            return "degraded"
        if self._voice.is_playing:
            return "speaking"
        if self._hint == "thinking":
            return "thinking"
        return "listening" if self._is_user_heard or self._hint == "listening" else "idle"

    async def _report(self) -> None:
        due_s = self._clock.now()
        while True:
            due_s += _REPORT_S
            await self._clock.sleep_until(due_s)
            self._announcer.tell("stats", **self.stats().as_json())
            self._reported = (self._clock.now(), self.playout.counters.fresh_frames)

    def _media_ms(self, at_s: float | None = None) -> int:
        """Session media time."""
        return round(1000 * ((self._clock.now() if at_s is None else at_s) - self.playout.start_s))

    def _check_open(self) -> None:
        if self._is_closed:
            raise SessionClosedError(f"session {self.id} has ended; open another")

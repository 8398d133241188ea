"""How soon after an interrupt the sound is silent and the mouth at rest, where media leave the server.

    pytest -m soak -s tests/bench/test_interrupt.py

Several sessions on the stand-in, paced, and one on tiny; for a quiet machine, so not in the default suite.

Sessions are real: hub, engine process, encoder, tracks on the real clock; only the network is missing. Speech is
pushed, and cut off at moments that fall anywhere within a block. A mouth is at rest once it stays so. The stand-in's
mouth is drawn, so its opening is known; for tiny it is read from pixels with a direction that is learned from
undisturbed speech and silence, as the lip-sync tests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from server.bench import load_voice, synthetic_voice
from server.config import Config, Secrets
from server.hub import Hub
from server.live import LiveSession
from server.loader import build
from server.schemas import NewSession
from server.tracks import VideoTrack
from streaming.events import Event
from streaming.playout import Picture
from tests.e2e.lipsync import _learn, loudness, smooth
from tests.fakes import mouth_opening

RATE_HZ = 48_000
PIECE_MS, FRAME_MS = 20, 40
SILENT = 300  # of 32767; the cut fades within 10 ms
QUIET_S = 1.7  # after each interrupt; the mouth must come to rest within it
TINY_BLOCK_S = 0.17
RECORDED = Path("/usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb-0880.wav")

Opening = Callable[[np.ndarray], np.ndarray]


@dataclass(slots=True)
class Trace:
    """What one session sent, and when it was interrupted; times of the session's clock."""

    live: LiveSession
    sounds: list[tuple[float, int]] = field(default_factory=list)
    """When a piece left, and its peak."""
    pictures: list[tuple[float, np.ndarray]] = field(default_factory=list)
    """When a picture left, and what is looked at of it."""
    fresh: list[float] = field(default_factory=list)
    """When pictures left that are no repetition."""
    interrupts: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)


async def send_sound(trace: Trace, now: Callable[[], float]) -> None:
    """Note the peak of every piece when it leaves; read before Opus, which adds no more than its 6.5 ms."""
    broadcast = trace.live.broadcast
    listener = broadcast.listen()
    while (timed := await listener.next()) is not None:
        await broadcast.until(timed.due_s)
        trace.sounds.append((now(), int(np.abs(timed.sound.pcm.astype(int)).max())))


async def send_pictures(trace: Trace) -> None:
    track = VideoTrack(trace.live.broadcast)
    try:
        while True:
            await track.recv()
    except MediaStreamError:
        return


def watch_pictures(trace: Trace, look: Callable[[Picture], np.ndarray], send_delay_s: float) -> None:
    """Note what every picture shows at the moment it is pulled, with the time at which it leaves."""
    playout = trace.live.session.playout
    frame_due = playout.frame_due

    def noted(now_s: float) -> Picture | None:
        picture = frame_due(now_s)
        if picture is not None:
            leaves_s = playout.start_s + picture.index / playout.fps + send_delay_s
            trace.pictures.append((leaves_s, look(picture)))
            if picture.is_fresh:
                trace.fresh.append(leaves_s)
        return picture

    playout.frame_due = noted  # type: ignore[method-assign]


async def talk(trace: Trace, voice: np.ndarray, times: int, now: Callable[[], float], seed: int) -> None:
    """Push speech and cut it off, `times` times."""
    draw = random.Random(seed)
    started = asyncio.Event()

    def listen(event: Event) -> None:
        if event.type == "playback_started":
            started.set()
        elif event.type == "playback_finished":
            trace.reports.append(dict(event.data))

    session = trace.live.session
    session.subscribe(listen)
    for _ in range(times):
        started.clear()
        name = session.begin_segment()
        begin = draw.randrange(len(voice))
        session.push_pcm(np.tile(voice, 3)[begin : begin + 6 * RATE_HZ], RATE_HZ, name)
        session.end_segment(name)
        await asyncio.wait_for(started.wait(), 10)
        await asyncio.sleep(0.9 + draw.random() * 1.2)
        trace.interrupts.append(now())
        await trace.live.interrupt()
        await asyncio.sleep(QUIET_S + draw.random() * 0.48)


async def measure(
    config: Config, sessions: int, times: int, voice: np.ndarray, look: Callable[[Picture], np.ndarray]
) -> list[Trace]:
    hub = Hub(config, Secrets())
    await hub.start()
    try:
        await hub.wait_started()
        assert hub.start_error is None
        now = hub._around.clock.now
        lives = [await hub.open_session(NewSession(mode="push", seed=n), None, client="b") for n in range(sessions)]
        traces = [Trace(live) for live in lives]
        for trace in traces:
            watch_pictures(trace, look, config.encode.send_delay_ms / 1000)
        sending = [asyncio.create_task(send_sound(trace, now)) for trace in traces]
        sending += [asyncio.create_task(send_pictures(trace)) for trace in traces]
        await asyncio.sleep(2)
        with contextlib.ExitStack() as held:
            for live in lives:
                held.enter_context(live.speaking_door())
            await asyncio.gather(*(talk(trace, voice, times, now, n) for n, trace in enumerate(traces)))
        for live in lives:
            await hub.close_session(live, "measured")
        await asyncio.gather(*sending)
        return traces
    finally:
        await hub.stop()


def last_above(events: list[tuple[float, float]], at_s: float, limit: float) -> float:
    """Milliseconds from `at_s` until the last of the events within QUIET_S that is above `limit`."""
    above = [t for t, value in events if at_s <= t < at_s + QUIET_S and value > limit]
    return 1000 * (max(above, default=at_s) - at_s)


def figures(traces: list[Trace], opened: list[list[tuple[float, float]]], limit: float) -> dict[str, Any]:
    sound, anew, mouth = [], [], []
    for trace, openings in zip(traces, opened, strict=True):
        for at_s in trace.interrupts:
            sound.append(last_above(list(trace.sounds), at_s, SILENT) + PIECE_MS)
            # Everything computed before was dropped, so the next picture that is no repetition hears silence.
            anew.append(1000 * (min((t for t in trace.fresh if t > at_s + 0.02), default=at_s + QUIET_S) - at_s))
            mouth.append(last_above(openings, at_s, limit) + FRAME_MS)
    cut = [report for trace in traces for report in trace.reports]
    assert len(cut) == len(sound) and all(report["interrupted"] for report in cut), "one report an interrupt"
    percentiles = {
        name: {f"p{p}": round(float(np.percentile(values, p)), 1) for p in (50, 95)} | {"max": round(max(values), 1)}
        for name, values in (("sound_silent_ms", sound), ("picture_of_silence_ms", anew), ("mouth_at_rest_ms", mouth))
    }
    return {"sessions": len(traces), "interrupts": len(sound), **percentiles}


def show(title: str, found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{title}\n{json.dumps(found)}")


@pytest.mark.soak
@pytest.mark.parametrize(("sessions", "block_s"), [(4, 0.10), (2, TINY_BLOCK_S)])
async def test_sessions_on_the_paced_stand_in(
    sessions: int, block_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """As full as admission lets an engine be: one block at a time, and 4 x 0.17 s do not fit into 0.48 s."""
    fake = {"width": 64, "height": 64, "block_s": block_s}
    config = build(Config, {"model": {"kind": "fake", "fake": fake}, "limits": {"max_sessions": sessions}})
    voice = (synthetic_voice(9.0) * 32767).astype(np.int16)
    traces = await measure(config, sessions, 8, voice, lambda picture: np.array(mouth_opening(picture)))
    opened = [[(t, float(value)) for t, value in trace.pictures] for trace in traces]
    assert max(value for _, value in opened[0]) > 0.15, "the mouth was seen to open"
    found = figures(traces, opened, 0.05)
    show(f"{sessions} sessions, stand-in, {1000 * block_s:.0f} ms a block", found, capsys)
    assert found["sound_silent_ms"]["p95"] <= 150
    assert found["mouth_at_rest_ms"]["p95"] <= 480 + 150


@pytest.mark.soak
async def test_one_session_on_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    voice = (load_voice(RECORDED) * 32767).astype(np.int16)
    traces = await measure(Config(), 1, 16, voice, _mouth_region)
    opened, limit, follows = _learned_opening(traces[0])
    found = figures(traces, [opened], limit) | {"opening_follows_sound": round(follows, 3)}
    show("one session, tiny", found, capsys)
    assert follows > 0.5, "the mouth was not read well enough to say when it rests"
    assert found["sound_silent_ms"]["p95"] <= 150
    assert found["picture_of_silence_ms"]["p95"] <= 480 + 150
    assert found["mouth_at_rest_ms"]["p50"] <= 480 + 150, "read from pixels with noise: the tail is no promise"


def _mouth_region(picture: Picture) -> np.ndarray:
    height, width = picture.image.shape[:2]
    region = picture.image[int(0.55 * height) : int(0.85 * height) : 2, int(0.3 * width) : int(0.7 * width) : 2]
    return region.astype(np.float32).mean(-1).reshape(-1)


def _learned_opening(trace: Trace) -> tuple[list[tuple[float, float]], float, float]:
    """Mouth opening of every picture, the limit below which it is at rest, and how well it follows the sound.

    Learned without the half second after each interrupt, where sound and mouth part on purpose.
    """
    times = np.array([t for t, _ in trace.pictures])
    crops = np.stack([crop for _, crop in trace.pictures]).astype(np.float64)
    at = np.array([t for t, _ in trace.sounds])
    peaks = np.array([peak for _, peak in trace.sounds]) / 32767 / 3
    near = [peaks[(at > t - 0.04) & (at < t + 0.04)] for t in times]
    sound = smooth(loudness(np.array([float(values.max()) if len(values) else 0.0 for values in near])))
    calm = ~np.any([(times > t - 0.1) & (times < t + 1.0) for t in trace.interrupts], axis=0)
    direction, offset = _learn(smooth(crops[calm]), sound[calm])
    opening = crops @ direction + offset
    rests = np.any([(times > t + 1.0) & (times < t + QUIET_S) for t in trace.interrupts], axis=0)
    speaks = calm & (sound > 0.5)
    limit = float(opening[rests].mean() + opening[speaks].mean()) / 2
    follows = float(np.corrcoef(opening[calm], sound[calm])[0, 1])
    return list(zip(times.tolist(), opening.tolist(), strict=True)), limit, follows

"""The session's encoder: one stream of packets for any number of viewers."""

from __future__ import annotations

import asyncio
import time

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from server import encoder as module
from server.config import EncodeConfig
from server.encoder import EncodedPicture, H264Encoder, SessionEncoder, measure_encode_s

SIZE = 64


def picture(index: int, size: int = SIZE) -> np.ndarray:
    """A moving ramp, different for every index."""
    rows, columns = np.mgrid[0:size, 0:size]
    base = np.stack([rows * 3, columns * 3, 255 - rows * 3], axis=-1).astype(np.uint8)
    return np.roll(base, index, axis=1)


def decode(packets: list[av.Packet]) -> list[av.VideoFrame]:
    context = av.CodecContext.create("h264", "r")
    frames = [frame for packet in packets for frame in context.decode(packet)]
    return frames + list(context.decode(None))


def small(**changes: object) -> H264Encoder:
    return H264Encoder(width=SIZE, height=SIZE, fps=25, config=EncodeConfig(bitrate_kbps=1000, **changes))  # type: ignore[arg-type]


async def make(**changes: object) -> SessionEncoder:
    return SessionEncoder(width=SIZE, height=SIZE, fps=25, config=EncodeConfig(bitrate_kbps=1000, **changes))  # type: ignore[arg-type]


async def take(viewer: module.Viewer, count: int) -> list[EncodedPicture]:
    taken = []
    for _ in range(count):
        item = await asyncio.wait_for(viewer.next(), 5)
        assert item is not None
        taken.append(item)
    return taken


def test_every_picture_comes_back_at_once_in_order_and_in_its_colours() -> None:
    encoder = small()
    packets = [encoder.encode(picture(k), k) for k in range(30)]
    frames = decode(packets)
    assert len(frames) == 30
    assert [packet.pts for packet in packets] == [3600 * k for k in range(30)]
    assert all(packet.dts == packet.pts for packet in packets), "B-frames reorder"
    for index in (0, 29):
        shown = frames[index].reformat(format="rgb24", src_colorspace=6, src_color_range=1).to_ndarray()
        assert np.abs(shown.astype(int) - picture(index)).mean() < 6
    assert (frames[0].colorspace, frames[0].color_range) == (6, 1)


def test_the_stream_is_baseline_with_parameter_sets_in_every_key_frame() -> None:
    encoder = small(gop_s=0.4)
    packets = [encoder.encode(picture(k), k) for k in range(25)]
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    assert keys == [0, 10, 20]
    for key in keys:
        kinds = {part[0] & 31 for part in bytes(packets[key]).split(b"\x00\x00\x01")[1:]}
        assert {7, 8, 5} <= kinds, "SPS, PPS and IDR"
    sps = next(p for p in bytes(packets[0]).split(b"\x00\x00\x01")[1:] if p[0] & 31 == 7)
    assert sps[1] == 66, "baseline"


def test_a_key_frame_can_be_asked_for_and_begins_a_decodable_stream() -> None:
    encoder = small()
    packets = [encoder.encode(picture(k), k, keyframe=k == 7) for k in range(12)]
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == [0, 7]
    assert len(decode(packets[7:])) == 5


def test_the_bitrate_is_kept() -> None:
    chance = np.random.default_rng(3)
    encoder = H264Encoder(width=256, height=256, fps=25, config=EncodeConfig(bitrate_kbps=800))
    sizes = [encoder.encode(chance.integers(0, 255, (256, 256, 3), np.uint8), k).size for k in range(75)]
    kbps = sum(sizes[25:]) * 8 / 2 / 1000
    assert 400 < kbps < 1000


@pytest.mark.parametrize(("profile", "number"), [("baseline", 66), ("main", 77), ("high", 100)])
def test_the_profile_can_be_chosen(profile: str, number: int) -> None:
    encoder = small(profile=profile)
    packets = [encoder.encode(picture(k), k) for k in range(5)]
    sps = next(p for p in bytes(packets[0]).split(b"\x00\x00\x01")[1:] if p[0] & 31 == 7)
    assert sps[1] == number
    assert len(decode(packets)) == 5 and all(packet.dts == packet.pts for packet in packets)


def portrait_with_text(index: int, size: int = 256) -> np.ndarray:
    """A talking face with grain, and two lines of small writing under it."""
    drawn = Image.new("RGB", (size, size), (236, 232, 226))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((0.3 * size, 0.15 * size, 0.7 * size, 0.7 * size), fill=(214, 170, 140))
    gap = 0.03 * size * (1 + np.sin(index / 2))
    pen.ellipse((0.42 * size, 0.55 * size - gap, 0.58 * size, 0.55 * size + gap), fill=(120, 40, 40))
    pen.text((8, size - 44), "avatarcast: welcome to hall 4", fill=(20, 20, 20))
    pen.text((8, size - 28), "Please speak here, 12:45", fill=(20, 20, 20))
    grain = np.random.default_rng(index).integers(-2, 3, (size, size, 1))
    return np.clip(np.asarray(drawn).astype(np.int16) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kbps", [2500, 800])
def test_writing_stays_readable_and_key_frames_cause_no_stutter(kbps: int) -> None:
    """Of every picture: brightness of the writing against the original, and the time it takes on the way."""
    config = EncodeConfig(bitrate_kbps=kbps)
    encoder = H264Encoder(width=256, height=256, fps=25, config=config)
    packets = [encoder.encode(portrait_with_text(k), k) for k in range(125)]
    quality = []
    for k, frame in enumerate(decode(packets)):
        shown = frame.reformat(format="rgb24", src_colorspace=6, src_color_range=1).to_ndarray()
        lines = (slice(256 - 46, 256 - 14), slice(0, 200))
        error = (shown[lines].astype(float) - portrait_with_text(k)[lines]).mean(-1)
        quality.append(10 * np.log10(255**2 / np.mean(error**2)))
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    slowest_ms = max(packets[k].size for k in keys[1:]) * 8 / kbps
    print(f"{kbps} kbit/s: writing {min(quality):.1f} dB at least, a key frame takes {slowest_ms:.0f} ms of the rate")
    assert keys == [0, 50, 100]
    assert min(quality) > 33
    assert min(quality[k] - quality[k - 1] for k in keys[1:]) > -1, "a pulse at key frames"
    assert slowest_ms <= 150


async def test_two_viewers_share_one_encode() -> None:
    encoder = await make()
    first, second = encoder.subscribe(), encoder.subscribe()
    for k in range(10):
        encoder.submit(picture(k), k, 100.0 + k)
    one, two = await take(first, 8), await take(second, 8)
    assert [p.index for p in one] == [p.index for p in two]
    assert all(a.packet is b.packet for a, b in zip(one, two, strict=True))
    assert one[0].keyframe
    assert one[0].due_s == 100.0 + one[0].index
    assert encoder.encoded <= 10
    await encoder.close()


async def test_a_late_viewer_begins_at_its_own_key_frame() -> None:
    encoder = await make(gop_s=10.0)
    first = encoder.subscribe()
    encoder.submit(picture(0), 0, 0.0)
    await take(first, 1)
    await asyncio.sleep(module.KEYFRAME_SPACING_S)
    late = encoder.subscribe()
    encoder.submit(picture(1), 1, 0.0)
    (begin,) = await take(late, 1)
    assert begin.keyframe
    assert begin.index == 1
    assert len(decode([begin.packet])) == 1
    await encoder.close()


async def test_key_frame_requests_are_joined_and_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYFRAME_SPACING_S", 0.15)
    asked = []
    encoder = SessionEncoder(
        width=SIZE,
        height=SIZE,
        fps=25,
        config=EncodeConfig(gop_s=10.0),
        on_keyframe_request=lambda: asked.append(1),
    )
    viewer = encoder.subscribe()
    end = time.monotonic() + 0.6
    k = 0
    while time.monotonic() < end:
        encoder.request_keyframe()
        encoder.submit(picture(k), k, 0.0)
        await take(viewer, 1)
        await asyncio.sleep(0.01)
        k += 1
    assert len(asked) == k
    assert 2 <= encoder.keyframes <= 6
    await encoder.close()


async def test_a_viewer_that_does_not_read_costs_bounded_memory_and_recovers() -> None:
    encoder = await make(gop_s=10.0)
    slow, quick = encoder.subscribe(), encoder.subscribe()
    for k in range(2 * module.MAX_WAITING_PACKETS + 5):
        encoder.submit(picture(k), k, 0.0)
        await take(quick, 1)
    assert len(slow._waiting) <= module.MAX_WAITING_PACKETS
    assert slow.dropped >= module.MAX_WAITING_PACKETS
    assert quick.dropped == 0
    taken = []
    for k in range(2 * module.MAX_WAITING_PACKETS + 5, 200):
        encoder.submit(picture(k), k, 0.0)
        await take(quick, 1)
        taken += await take(slow, len(slow._waiting))
        await asyncio.sleep(0.005)
    assert taken[0].keyframe, "after a loss the viewer begins at a key frame"
    assert taken[0].index > module.MAX_WAITING_PACKETS
    assert [p.index for p in taken] == list(range(taken[0].index, 200))
    await encoder.close()


async def test_pictures_beyond_the_encoders_pace_drop_the_oldest() -> None:
    encoder = await make()
    viewer = encoder.subscribe()
    for k in range(100):
        encoder.submit(picture(k), k, 0.0)
    assert encoder.dropped > 0
    last = await take(viewer, 1)
    while last[-1].index != 99:
        last += await take(viewer, 1)
    indexes = [p.index for p in last]
    assert indexes == sorted(set(indexes))
    await encoder.close()


async def test_closing_frees_viewers_and_the_thread() -> None:
    encoder = await make()
    viewer = encoder.subscribe()
    waiting = asyncio.create_task(viewer.next())
    await asyncio.sleep(0)
    await encoder.close()
    assert await waiting is None
    assert not encoder._thread.is_alive()
    assert encoder.viewers == 0
    encoder.submit(picture(0), 0, 0.0)
    late = encoder.subscribe()
    assert await late.next() is None
    await encoder.close()


async def test_closing_with_a_full_inbox_does_not_hang() -> None:
    encoder = await make()
    for k in range(50):
        encoder.submit(picture(k), k, 0.0)
    await asyncio.wait_for(encoder.close(), 5)


async def test_the_cost_is_reported() -> None:
    costs: list[float] = []
    encoder = SessionEncoder(width=SIZE, height=SIZE, fps=25, config=EncodeConfig(), on_encoded=costs.append)
    viewer = encoder.subscribe()
    encoder.submit(picture(0), 0, 0.0)
    await take(viewer, 1)
    assert len(costs) == 1
    assert 0 < costs[0] < 1
    await encoder.close()
    assert 0 < measure_encode_s(width=64, height=64, fps=25, config=EncodeConfig()) < 2

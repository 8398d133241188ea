"""One Opus encoder a session; like the pictures, sound is encoded once and its packets go to every viewer.

A piece takes about a tenth of a millisecond, so it is encoded on the event loop, in order, where it is pulled.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av import AudioFrame, Packet

from streaming.playout import Sound
from streaming.resample import OUT_RATE_HZ

TIME_BASE = Fraction(1, OUT_RATE_HZ)
BITRATE_BPS = 64_000


class OpusEncoder:
    """Pieces of 20 ms in, one packet each out."""

    def __init__(self) -> None:
        context = av.CodecContext.create("libopus", "w")
        context.sample_rate, context.layout, context.format = OUT_RATE_HZ, "mono", "s16"
        context.bit_rate, context.time_base = BITRATE_BPS, TIME_BASE
        context.options = {"application": "voip"}
        self._context = context
        self._samples = 0

    def encode(self, sound: Sound) -> Packet:
        """Encode the next piece.

        Returns:
            One packet with the piece's `pts` in 1/48000.
        """
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(sound.pcm)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = OUT_RATE_HZ, self._samples, TIME_BASE
        self._samples += frame.samples
        packets = self._context.encode(frame)
        assert len(packets) == 1, f"a piece of {frame.samples} samples gave {len(packets)} packets"
        packets[0].pts, packets[0].time_base = sound.pts, TIME_BASE
        return packets[0]

"""Sound becomes one Opus packet a piece, with the piece's own time."""

from __future__ import annotations

import numpy as np
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterFrame

from server.opus import OpusEncoder
from streaming.playout import Sound


def test_pieces_come_out_one_by_one_with_their_time_even_after_a_gap() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    tone = (8000 * np.sin(np.arange(960) * 2 * np.pi * 500 / 48_000)).astype(np.int16)
    level = 0.0
    for index in (0, 1, 2, 50, 51, 40):
        packet = encoder.encode(Sound(index=index, pts=960 * index, pcm=tone))
        assert packet.pts == 960 * index
        frame = decoder.decode(JitterFrame(data=bytes(packet), timestamp=packet.pts))[0]
        assert (frame.samples, frame.sample_rate) == (960, 48_000)
        level = float(np.sqrt(np.mean(np.square(frame.to_ndarray().astype(float)))))
    assert 0.9 < level / (8000 / np.sqrt(2)) < 1.1

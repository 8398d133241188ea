"""Any sound to 16 kHz mono, and out again at 48 kHz."""

import av
import numpy as np
import pytest

from streaming.errors import AudioFormatError
from streaming.resample import SpeechResampler, play_out


def tone(rate_hz: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)


def frame_of(samples: np.ndarray, rate_hz: int, form: str = "s16", layout: str = "mono") -> av.AudioFrame:
    """A frame whose channels all carry `samples`."""
    scale = {"u8": 128, "s16": 32767, "s32": 2**31 - 1}.get(form.removesuffix("p"), 1)
    kind = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}[form.rstrip("p")]
    channels = av.AudioLayout(layout).nb_channels
    values = (samples * scale + (128 if form.startswith("u8") else 0)).clip(-(2**31), 2**31 - 1)
    stacked = np.repeat(values.astype(kind)[None], channels, 0)
    packed = stacked if form.endswith("p") else stacked.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=form, layout=layout)
    frame.sample_rate = rate_hz
    return frame


def whole(samples: np.ndarray, rate_hz: int, chunk: int, **form: str) -> np.ndarray:
    resampler = SpeechResampler()
    parts = [
        resampler.push(frame_of(samples[at : at + chunk], rate_hz, **form)) for at in range(0, len(samples), chunk)
    ]
    return np.concatenate([*parts, resampler.flush()])


@pytest.mark.parametrize("form", ["u8", "s16", "s16p", "s32", "flt", "fltp", "dbl"])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_every_form_keeps_level_and_pitch(form, layout):
    heard = whole(tone(48_000), 48_000, 960, form=form, layout=layout)
    assert len(heard) == 8000 and heard.dtype == np.float32
    assert np.abs(heard[200:-200] - tone(16_000)[200:-200]).max() < (0.02 if form == "u8" else 0.003)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000])
def test_every_rate_lands_on_the_same_samples(rate_hz):
    heard = whole(tone(rate_hz), rate_hz, rate_hz // 50)
    assert abs(len(heard) - 8000) <= 1
    assert np.abs(heard[200:-200] - tone(16_000)[200 : len(heard) - 200]).max() < 0.005


@pytest.mark.parametrize("rate_hz", [0, 1, 7_999, 96_001, 192_000])
def test_absurd_rates_are_refused_with_their_code(rate_hz):
    resampler = SpeechResampler()
    frame = frame_of(np.zeros(160), 16_000)
    frame.sample_rate = rate_hz
    with pytest.raises(AudioFormatError, match=f"{rate_hz} Hz") as caught:
        resampler.push(frame)
    assert caught.value.code == "unsupported_rate"
    with pytest.raises(AudioFormatError):
        resampler.push_pcm(np.zeros(10, np.int16), rate_hz)
    assert len(resampler.push(frame_of(tone(16_000), 16_000))) == 8000, "the source recovers"


def test_form_changes_lose_nothing():
    resampler = SpeechResampler()
    parts = [
        resampler.push(frame_of(tone(48_000), 48_000, layout="stereo")),
        resampler.push(frame_of(tone(44_100), 44_100)),
        resampler.push(frame_of(tone(16_000), 16_000, form="flt")),
        resampler.flush(),
    ]
    assert abs(sum(map(len, parts)) - 24_000) <= 2


def test_wild_numbers_are_tamed():
    wild = np.array([np.nan, np.inf, -np.inf, 40.0, -40.0, 0.25], np.float32)
    assert SpeechResampler().push_pcm(wild, 16_000).tolist() == [0, 0, 0, 1, -1, 0.25]


def test_the_callers_timestamp_is_left_alone():
    resampler = SpeechResampler()
    for pts in (7, 123_456_789, 3):
        frame = frame_of(np.zeros(960), 48_000)
        frame.pts = pts
        resampler.push(frame)
        assert frame.pts == pts


def test_raw_pcm_and_empty_pieces():
    resampler = SpeechResampler()
    assert len(resampler.push_pcm(np.zeros(0, np.int16), 24_000)) == 0
    pcm = (tone(24_000) * 32767).astype(np.int16)
    heard = np.concatenate([resampler.push_pcm(pcm[:5001], 24_000), resampler.push_pcm(pcm[5001:], 24_000)])
    heard = np.concatenate([heard, resampler.flush()])
    assert np.abs(heard[200:-200] - tone(16_000)[200:-200]).max() < 0.003
    assert len(resampler.flush()) == 0


def reader(sound: np.ndarray):
    padded = np.concatenate([np.zeros(1000), sound, np.zeros(1000)]).astype(np.float32)
    return lambda lo, hi: padded[1000 + lo : 1000 + hi]


def test_pieces_join_without_a_seam_and_stand_on_their_samples():
    sound = tone(16_000, hz=1000)
    read = reader(sound)
    pieces = np.concatenate([play_out(read, at, 320) for at in range(0, 8000, 320)])
    assert len(pieces) == 24_000 and pieces.dtype == np.int16
    assert np.array_equal(pieces, play_out(read, 0, 8000))
    expected = tone(48_000, hz=1000) * 32767
    assert np.abs(pieces[300:-300] - expected[300:-300]).max() < 40


def test_the_passband_is_flat_and_images_are_gone():
    for hz in (100, 1000, 4000, 7000):
        out = play_out(reader(tone(16_000, 1.0, hz)), 0, 16_000)[2400:-2400] / 32767
        spectrum = np.abs(np.fft.rfft(out * np.blackman(len(out)))) / (0.42 * len(out) / 2)
        peaks = np.fft.rfftfreq(len(out), 1 / 48_000)
        wanted = spectrum[np.abs(peaks - hz) < 20].max()
        others = spectrum[np.abs(peaks - hz) > 60].max()
        assert 20 * np.log10(wanted / 0.5) == pytest.approx(0, abs=0.3)
        assert 20 * np.log10(others / 0.5) < -60


def test_loud_sound_is_limited_not_wrapped():
    out = play_out(reader(np.sign(tone(16_000, 1.0, 100)).astype(np.float32)), 0, 16_000)
    assert out.max() == 32767 and out.min() <= -32767
    assert (np.sign(out[60:220]) == 1).all()

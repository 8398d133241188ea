"""Synthetic speech: curves close where lips close, sound and mouth are in step, held-out means held out."""

import random

import numpy as np
import pytest

from model.training import corpus
from model.training import speech as S

espeak_here = pytest.mark.skipif(
    S.find_espeak() is None, reason="no espeak-ng library on this machine: install libespeak-ng1"
)
OPEN, PRESS, TUCK, ROUND = (S.PARAMS.index(name) for name in ("open", "press", "ftuck", "round"))


@pytest.fixture(scope="module")
def espeak():
    return S.shared_espeak()


def words(text: str) -> set[str]:
    return {w.strip(".,?!:'").lower() for w in text.replace("-", " ").split()}


def test_there_are_22_classes_of_8_targets():
    assert len(S.VISEMES) == 22 and S.NAMES[0] == "sil"
    assert all(len(target) == len(S.PARAMS) == 8 for target in S.VISEMES.values())
    assert set(S.IPA.values()) | {"sil"} == set(S.VISEMES)


@pytest.mark.parametrize(
    "phone, visemes",
    [
        ("p", ("PP",)),
        ("ˈaɪ", ("aa", "ih")),
        ("uː", ("ou",)),
        ("tʃ", ("CH",)),
        ("tˈ", ("DD",)),
        ("_:", ("sil",)),
        ("", ("sil",)),
    ],
)
def test_ipa_is_read(phone, visemes):
    assert S.ipa_visemes(phone) == visemes


def test_lips_close_for_bilabials_for_at_least_60_ms():
    y, classes = S.curves([(0.0, 0.2, ("aa",)), (0.2, 0.26, ("PP",)), (0.26, 0.5, ("aa",))], 0.5)
    assert y.shape == (50, 8) and classes.shape == (50,)
    assert y[10, OPEN] > 0.8 and y[38, OPEN] > 0.8
    assert y[22:24, OPEN].max() < 0.02 and y[22:24, PRESS].min() > 0.85
    assert (y[:, OPEN] < 0.15 * y[:, OPEN].max()).sum() >= 6
    assert S.NAMES[classes[23]] == "PP"


def test_f_and_v_tuck_the_lip():
    y, _ = S.curves([(0.0, 0.2, ("aa",)), (0.2, 0.28, ("FF",)), (0.28, 0.5, ("aa",))], 0.5)
    assert y[24, TUCK] > 0.85 and y[24, OPEN] < 0.15 and y[24, PRESS] < 0.1


def test_open_vowels_never_press():
    y, _ = S.curves([(0.0, 0.3, ("aa",)), (0.3, 0.6, ("sil",))], 0.6)
    assert y[5:25, PRESS].max() < 0.02 and y[58, OPEN] < 0.05


def test_a_diphthong_moves_from_one_to_the_other():
    y, classes = S.curves([(0.0, 0.4, ("aa", "ou"))], 0.4)
    assert y[8, OPEN] > 1.5 * y[32, OPEN] and y[32, ROUND] > y[8, ROUND] + 0.4
    assert {S.NAMES[c] for c in classes} == {"aa", "ou"}


def test_slowness_widens_the_blend():
    segments = [(0.0, 0.3, ("aa",)), (0.3, 0.6, ("sil",))]
    quick, slow = S.curves(segments, 0.6, 0.9)[0], S.curves(segments, 0.6, 1.1)[0]
    assert slow[34, OPEN] > quick[34, OPEN]


def test_held_out_voices_share_no_variant_with_training():
    variant = lambda voices: {v.split("+")[1] for v in voices}  # noqa: E731
    assert not variant(S.HELD_VOICES) & variant(S.TRAIN_VOICES)
    assert {"sv"} == {v.split("+")[0] for v in S.HELD_VOICES} - {v.split("+")[0] for v in S.TRAIN_VOICES}


def test_the_vocabulary_is_large_and_split():
    everything = set(corpus.NOUNS) | set(corpus.VERBS) | set(corpus.ADJECTIVES)
    assert len(everything) > 450
    for words_ in (corpus.NOUNS, corpus.VERBS, corpus.ADJECTIVES, corpus.NAMES):
        train, held = corpus.split(words_, False), corpus.split(words_, True)
        assert not set(train) & set(held) and len(train) + len(held) == len(set(words_)) and len(held) > 5


def test_training_never_says_a_held_out_word():
    held_only = {w for w in corpus.split(corpus.NOUNS, True) if " " not in w}
    spoken = set().union(*(words(corpus.sentence(random.Random(k))) for k in range(600)))
    also_elsewhere = set().union(
        *(words(t) for t in (*corpus.PHRASES, *corpus.OPENERS)),
        *(set(corpus.split(other, False)) for other in (corpus.VERBS, corpus.ADJECTIVES, corpus.NAMES, corpus.PLACES)),
        {w.lower() for w in corpus.split(corpus.NAMES, False)},
        corpus.ADVERBS,
    )
    assert not (spoken & held_only) - also_elsewhere
    held = [corpus.sentence(random.Random(k), held=True) for k in range(100)]
    assert all(words(text) & held_only for text in held)


@pytest.mark.parametrize("language", sorted(corpus.OTHER))
def test_other_languages_have_sentences_of_their_own(language):
    train = {corpus.sentence(random.Random(k), language) for k in range(300)}
    held = {corpus.sentence(random.Random(k), language, held=True) for k in range(300)}
    own = {text + "." for text in corpus.OTHER[language]}
    assert train & own and held & own and not train & held & own


def test_without_the_library_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="espeakng-loader"):
        S.Espeak(str(tmp_path))


@espeak_here
def test_every_voice_of_both_lists_speaks(espeak):
    for voice in sorted(set(S.TRAIN_VOICES + S.HELD_VOICES)):
        wave, segments, _ = espeak.say("Mama.", voice)
        assert np.abs(wave).max() > 0.01 and ("PP",) in [names for _, _, names in segments], voice


@espeak_here
def test_say_gives_sound_with_phones(espeak):
    wave, segments, seconds = espeak.say("Bob may buy a boat.", "en-us+m3")
    assert wave.dtype == np.float32 and abs(len(wave) / 16000 - seconds) < 0.01 and 0.05 < np.abs(wave).max() <= 1
    assert segments[0][0] == 0 and all(a[1] == b[0] for a, b in zip(segments, segments[1:], strict=False))
    visemes = [v for _, _, names in segments for v in names]
    assert visemes.count("PP") == 5


@espeak_here
def test_an_unknown_voice_is_refused(espeak):
    with pytest.raises(S.VoiceRefused):
        espeak.say("hello", "no-such-language+m3")


def loudness(wave: np.ndarray, n: int) -> np.ndarray:
    """Log energy between 300 and 3000 Hz at 100 Hz."""
    padded = np.concatenate([np.zeros(160), wave, np.zeros(640)])
    frames = np.stack([padded[k * 160 + 80 - 40 : k * 160 + 80 - 40 + 400] for k in range(n)]) * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    return np.log(power[:, 10:96].sum(1) + 1e-5)


@espeak_here
@pytest.mark.parametrize("voices", [["en-us+m3", "en-gb-x-rp+f2", "de+m5"], S.HELD_VOICES[:4]], ids=["train", "held"])
def test_mouth_and_sound_are_in_step(espeak, voices):
    lags, total = range(-12, 13), np.zeros(25)
    for k in range(24):
        text = corpus.sentence(random.Random(k), held=voices[0] in S.HELD_VOICES)
        wave, segments, seconds = espeak.say(text, voices[k % len(voices)], 160)
        y, _ = S.curves(segments, seconds)
        energy, n = loudness(wave, len(y)), len(y)
        for j, lag in enumerate(lags):
            total[j] += np.corrcoef(y[15 + lag : n - 15 + lag, OPEN], energy[15 : n - 15])[0, 1] / 24
    best = list(lags)[int(total.argmax())] * 10
    assert abs(best) <= 20, f"the mouth is {best} ms late against the sound"
    assert total.max() > 0.35


@espeak_here
def test_a_stream_repeats_and_holds_a_quarter_of_silence():
    shares = []
    for seed in range(6):
        job = S.StreamJob(seed=seed, seconds=30.0, voices=("en-us+m3", "en-us+f2"))
        wave, y, classes, voice = S.make_stream(job)
        assert wave.shape == (480_000,) and y.shape == (3000, 8) and classes.shape == (3000,)
        assert voice == job.voices[seed % 2]
        shares.append((classes == 0).mean())
    assert 0.18 < np.mean(shares) < 0.36
    _, y_again, classes_again, _ = S.make_stream(job)
    assert (classes == classes_again).mean() > 0.9 and np.abs(y - y_again.astype(float)).mean() < 3
    other = S.make_stream(S.StreamJob(seed=seed + 2, seconds=30.0, voices=job.voices))[2]
    assert (classes == other).mean() < 0.5


@espeak_here
def test_the_mouth_rests_in_silence_and_closes_in_closures():
    _, y, classes, _ = S.make_stream(S.StreamJob(seed=3, seconds=30.0, voices=("en-us+m3",)))
    quiet = np.convolve(classes != 0, np.ones(51), "same") == 0
    assert quiet.any() and np.abs(y[quiet]).max() <= 2
    shut, wide = classes == S.NAMES.index("PP"), classes == S.NAMES.index("aa")
    assert y[shut, OPEN].mean() < 5 and y[wide, OPEN].mean() > 50


@espeak_here
def test_a_refused_voice_is_replaced_from_its_own_list():
    held = S.StreamJob(seed=0, seconds=6.0, voices=("no-such-language+m1", "en-us+f3"), held=True)
    assert S.make_stream(held)[3] == "en-us+f3"
    with pytest.raises(S.VoiceRefused):
        S.make_stream(S.StreamJob(seed=0, seconds=6.0, voices=("no-such-language+m1",)))


@espeak_here
def test_a_corpus_is_written(tmp_path):
    out = tmp_path / "held.npz"
    assert S.make_corpus(24 / 3600, out, jobs=1, seconds=12.0, voices=S.HELD_VOICES) == 2
    data = np.load(out)
    assert data["wav"].shape == (2, 192_000) and data["wav"].dtype == np.int16
    assert data["curves"].shape == (2, 1200, 8) and data["cls"].shape == (2, 1200)
    assert list(data["voice"]) == S.HELD_VOICES[:2]

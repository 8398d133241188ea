"""Voice activity: the state machine on injected verdicts, the guards, and the two real inferences on speech."""

import shutil
import subprocess
import sys
import time
import wave

import numpy as np
import pytest

from streaming.config import VadConfig
from streaming.judge import FRAME_SAMPLES, LevelGate, NoiseJudge, SileroInference, Verdict, WebRtcInference
from streaming.vad import Edge, Vad, VadState

LOUD = np.full(FRAME_SAMPLES, 0.1, np.float32)


class Script:
    """Verdicts from a string: X is certainly speech, x may be, anything else is not."""

    def __init__(self, text: str) -> None:
        self._verdicts = iter(text)

    def __call__(self, frame: np.ndarray) -> Verdict:
        sign = next(self._verdicts)
        return Verdict(sign in "xX", sign == "X")


def edges(script: str, **settings: object) -> list[tuple[str, int, int]]:
    """Edges of a script, in frames."""
    config = VadConfig(**{"pre_roll_ms": 0, "hangover_ms": 100, "start_ms": 60, **settings})
    vad = Vad(config, Script(script))
    found = [vad.step(LOUD) for _ in script]
    return [(e.kind, e.at // FRAME_SAMPLES, e.known_at // FRAME_SAMPLES) for e in found if e]


def test_speech_begins_only_with_a_certain_frame_and_not_too_far_back():
    assert edges("xxxxxxxx....") == []
    assert edges(".xxxxX") == [("started", 1, 6)]
    assert edges("X..xxx....") == [], "certainty does not outlast its run"
    assert edges("x" * 20 + "X") == [("started", 9, 21)]


def test_a_segment_begins_where_speech_did_and_ends_after_the_hangover():
    assert edges("..XXXXX.....XX") == [("started", 2, 5), ("stopped", 12, 12)]


def test_short_noises_and_short_pauses_change_nothing():
    assert edges("XX.XX.XX......") == []
    assert edges("XXX....X....X....") == [("started", 0, 3)]


def test_pre_roll_reaches_back_but_not_into_the_last_segment():
    assert edges("....XXX", pre_roll_ms=40) == [("started", 2, 7)]
    assert edges("XXX.....XXX", pre_roll_ms=40)[-1] == ("started", 8, 11)
    assert edges("XXX......XXX", pre_roll_ms=40)[-1] == ("started", 8, 12)
    assert edges("XXX", pre_roll_ms=40) == [("started", 0, 3)]


def test_a_turn_without_pause_is_cut_and_needs_quiet_before_the_next():
    stuck = "X" * 60 + "." * 9 + "X" * 5 + "." * 10 + "XXX"
    assert edges(stuck, longest_turn_s=1, rearm_ms=200) == [
        ("started", 0, 3),
        ("stopped", 50, 50),
        ("started", 84, 87),
    ]


def test_skipping_ends_the_open_segment():
    vad = Vad(VadConfig(), Script("X" * 10))
    assert [vad.step(LOUD) for _ in range(3)][-1].kind == "started"
    assert vad.skip_to(9600) == Edge(kind="stopped", at=960, known_at=960)
    assert vad.state is VadState.QUIET and vad.position == 9600
    assert vad.skip_to(0) is None
    assert [vad.step(LOUD) for _ in range(3)][-1] == Edge(kind="started", at=0, known_at=960)


def noise(level_db: float, seconds: float, seed: int = 0, pink: bool = False) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal(int(seconds * 16_000))
    if pink:
        spectrum = np.fft.rfft(white)
        white = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 40)), len(white))
    return (white / white.std() * 10 ** (level_db / 20)).astype(np.float32)


def frames_of(sound: np.ndarray) -> np.ndarray:
    return sound[: len(sound) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


def test_the_level_gate_learns_a_steady_background():
    gate = LevelGate(VadConfig(noise_window_s=2))
    steady = frames_of(noise(-30, 8))
    passed = np.array([gate(frame) for frame in steady])
    assert passed[:90].all(), "before it can know better, sound passes"
    assert not passed[120:].any()
    assert gate(frames_of(noise(-20, 0.02))[0]), "speech above the background passes"
    assert gate.background_db == pytest.approx(-30 - 3, abs=1.5), "half of white noise lies in the speech band"
    quiet = LevelGate(VadConfig())
    assert not any(quiet(frame) for frame in frames_of(noise(-56, 1)))


def test_the_gate_forgets_a_background_that_has_ended():
    gate = LevelGate(VadConfig(noise_window_s=2))
    for frame in [*frames_of(noise(-25, 3)), *frames_of(noise(-80, 0.5))]:
        gate(frame)
    assert gate.background_db == -50
    assert gate(frames_of(noise(-28, 0.02))[0])


def run(sound: np.ndarray, inference, **settings: object) -> np.ndarray:
    """Which frames lie in a segment."""
    config = VadConfig(**settings)
    vad = Vad(config, NoiseJudge(config, inference))
    inside = np.zeros(len(sound) // FRAME_SAMPLES, bool)
    began = None
    for frame in frames_of(sound):
        edge = vad.step(frame)
        if edge and edge.kind == "started":
            began = edge.at // FRAME_SAMPLES
        elif edge:
            inside[began : edge.at // FRAME_SAMPLES] = True
            began = None
    if began is not None:
        inside[began:] = True
    return inside


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> tuple[np.ndarray, np.ndarray]:
    """Two sentences with pauses of 2 s at 16 kHz, and which frames are loud speech."""
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    parts, loud = [], []
    for text in ("Please bring me four bags of sugar and a map.", "She said goodbye to everybody in the morning."):
        path = tmp_path_factory.mktemp("speech") / "a.wav"
        subprocess.run(["espeak-ng", "-w", str(path), text], check=True)
        with wave.open(str(path)) as file:
            raw, rate = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768, file.getframerate()
        at = np.arange(int(len(raw) * 16_000 / rate)) * rate / 16_000
        parts += [np.zeros(32_000), np.interp(at, np.arange(len(raw)), raw)]
    sound = np.concatenate([*parts, np.zeros(32_000)]).astype(np.float32)
    sound *= 10 ** (-23 / 20) / sound[np.abs(sound) > 0.01].std()
    levels = 10 * np.log10(np.mean(frames_of(sound) ** 2, axis=1) + 1e-12)
    loud = levels > -35
    return sound, loud


INFERENCES = {"webrtc": lambda: WebRtcInference(2), "silero": lambda: SileroInference(0.5)}


@pytest.fixture(params=["webrtc", "silero"])
def inference(request):
    if request.param == "silero":
        pytest.importorskip("onnxruntime", reason="the silero extra is not installed")
    return INFERENCES[request.param]()


@pytest.mark.parametrize("snr_db", [None, 20, 10])
@pytest.mark.parametrize("pink", [False, True])
def test_speech_opens_and_noise_does_not(speech, inference, snr_db, pink):
    sound, loud = speech
    lead = noise(-90, 6)
    if snr_db is not None:
        lead = noise(-23 - snr_db, 6, seed=1, pink=pink)
        sound = sound + noise(-23 - snr_db, len(sound) / 16_000, seed=2, pink=pink)
    inside = run(np.concatenate([lead, sound]), inference)[300:]
    assert inside[: len(loud)][loud].mean() > 0.93
    rest = ~np.convolve(loud, np.ones(41), "same").astype(bool)  # farther than 400 ms from speech
    assert inside[: len(loud)][rest].mean() < 0.05


@pytest.mark.parametrize("pink", [False, True])
@pytest.mark.parametrize("level_db", [-45, -30, -15])
def test_noise_alone_keeps_the_mouth_shut(level_db, pink):
    assert not run(noise(level_db, 30, pink=pink), WebRtcInference(2)).any()
    sudden = np.concatenate([np.zeros(16_000, np.float32), noise(level_db, 5, pink=pink)])
    assert not run(sudden, WebRtcInference(2)).any(), "a fan is switched on"


def test_silero_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Exception, match=r"avatarcast\[silero\]"):
        SileroInference(0.5)


def test_neither_inference_imports_torch():
    code = (
        "import sys, streaming.judge as v; v.WebRtcInference(2)\ntry: v.SileroInference(.5)\nexcept Exception: pass\n"
    )
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inference_is_quick(inference):
    frames = frames_of(noise(-30, 2))
    inference(frames[0])
    started = time.process_time()
    for frame in frames:
        inference(frame)
    per_frame_ms = (time.process_time() - started) / len(frames) * 1000
    print(f"{per_frame_ms:.3f} ms a frame")
    assert per_frame_ms < 5

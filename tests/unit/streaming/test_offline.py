"""Films: the live path without a clock, in step, flat in memory, playable however they end."""

import os
import signal
import subprocess
import sys
import tracemalloc
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from model.errors import ModelError, PortraitError
from model.fake import FakeConfig, FakeModel
from model.interface import SessionSpec
from streaming.errors import MediaFileError
from streaming.offline import generate, speech_frames, speech_of
from tests.fakes import PORTRAIT, Room, babble

SMALL = FakeConfig(width=64, height=64)


def write_wav(path: Path, sound: np.ndarray, rate_hz: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat((sound * 32767).astype(np.int16), channels).tobytes())
    return path


def phrase(seconds: float = 1.0) -> np.ndarray:
    """Silence, speech, silence."""
    return np.concatenate([np.zeros(8000), babble(seconds), np.zeros(12_345)]).astype(np.float32)


def read_film(path: Path) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Pictures, sound at 16 kHz, and when each starts."""
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
        frames = list(container.decode(audio=0))
        start_s = float(frames[0].time)
        sound = [out.to_ndarray()[0] for frame in frames for out in resampler.resample(frame)]
    images = np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])
    return images, np.concatenate(sound), float(pictures[0].time), start_s


def mouth_open(images: np.ndarray) -> np.ndarray:
    return (images[:, 36:54, 22:42].mean(-1) < 80).mean((1, 2)) > 0.05


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000])
def test_a_film_is_as_long_as_its_sound_and_in_step(tmp_path, rate_hz):
    sound = phrase()
    at = np.arange(int(len(sound) * rate_hz / 16_000)) * 16_000 / rate_hz
    audio = write_wav(tmp_path / "a.wav", np.interp(at, np.arange(len(sound)), sound), rate_hz, channels=2)
    heard = []
    report = generate(FakeModel(SMALL), image=PORTRAIT, audio=audio, out=tmp_path / "a.mp4", on_progress=heard.append)
    num_frames = -(-len(sound) // 640)
    assert report.frames == num_frames and not report.interrupted and report.in_domain
    assert (report.width, report.height) == (64, 64) and report.seconds == num_frames / 25
    assert [p.frames for p in heard][-1] == num_frames and heard[-1].eta_s == 0 and heard[0].num_frames == num_frames
    images, played, video_s, audio_s = read_film(report.path)
    assert len(images) == num_frames and video_s == 0 and abs(audio_s) < 0.001
    assert abs(len(played) / 16_000 - num_frames / 25) < 0.06
    level = np.array([np.abs(played[i * 640 : (i + 1) * 640]).max() > 0.05 for i in range(num_frames)])
    lips = mouth_open(images)
    assert abs(int(np.flatnonzero(level)[0]) - int(np.flatnonzero(lips)[0])) <= 1
    assert (level == lips).mean() > 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.wav"]


def test_offline_hears_what_the_session_hears(tmp_path):
    audio = write_wav(tmp_path / "a.wav", phrase())
    pieces = np.concatenate(list(speech_of(audio)))
    assert np.abs(pieces - phrase()).max() < 1e-4


def tiny_model():
    """The shipped checkpoint in float32, if it is there."""
    path = Path(__file__).parents[3] / "model" / "checkpoints" / "tiny.safetensors"
    if not path.exists():
        pytest.skip("model/checkpoints/tiny.safetensors is not there")
    from model.generator import load_model

    return load_model({"checkpoint": str(path), "dtype": "float32", "steps": "light", "threads": 1})


@pytest.mark.parametrize("make", [lambda: FakeModel(SMALL), tiny_model], ids=["fake", "tiny"])
async def test_offline_and_live_show_the_same_pictures(make):
    sound = np.concatenate([phrase(1.3), phrase(0.8)])
    rng = np.random.default_rng(0)
    image = PORTRAIT
    model = make()
    tolerance = 0 if isinstance(model, FakeModel) else 1
    model.open(SessionSpec(session="offline", image=image, seed=3))
    cuts = np.sort(rng.integers(0, len(sound), 40))
    offline = np.concatenate(list(speech_frames(model, np.split(sound, cuts))))
    model.close("offline")
    async with Room(model=model, block_s=0.1, image=image) as room:
        await room.until(0)
        await room.speak(sound, chunk=160)
        await room.run(3.0)
        live = {picture.frame: picture.image for picture in room.pictures if picture.is_fresh}
    assert len(offline) == -(-len(sound) // 640)
    difference = [np.abs(live[k].astype(int) - offline[k]).max() for k in range(len(offline))]
    assert max(difference) <= tolerance
    assert len({image.tobytes() for image in offline}) > 20, "and they move"


class Deep(FakeModel):
    """A model that works on three blocks at once, finishes one at every second look, and counts."""

    depth = 3

    def __init__(self) -> None:
        super().__init__(SMALL)
        self.under_way: list = []
        self.most = self.looks = 0

    def submit(self, request) -> None:
        self.under_way.append(request)
        self.most = max(self.most, len(self.under_way))
        assert len(self.under_way) <= self.depth

    def advance(self, limit_s: float = 0.0):
        self.looks += 1
        return self.step(self.under_way.pop(0)) if self.looks % 2 else None


def test_a_model_that_works_on_several_blocks_is_kept_full(tmp_path) -> None:
    model, sound = Deep(), phrase(2.0)
    films = []
    for each in (FakeModel(SMALL), model):
        each.open(SessionSpec(session="offline", image=PORTRAIT))
        films.append(np.concatenate(list(speech_frames(each, [sound]))))
        each.close("offline")
    assert np.array_equal(*films) and model.most == 3 and not model.under_way
    audio = write_wav(tmp_path / "a.wav", sound)
    cut = generate(model, image=PORTRAIT, audio=audio, out=tmp_path / "a.mp4", should_stop=lambda: True)
    assert cut.interrupted and cut.frames == 12
    assert not model.under_way, "what was begun does not come out in the next film"


def test_ctrl_c_leaves_a_playable_film(tmp_path):
    audio = write_wav(tmp_path / "a.wav", np.tile(phrase(), 80))
    # A suite started in the background inherits an ignored SIGINT; the child under test must not.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import numpy as np
from model.fake import FakeConfig, FakeModel
from streaming.offline import generate
model = FakeModel(FakeConfig(width=64, height=64, block_s=0.05))
def tell(progress):
    print(progress.frames, flush=True)
report = generate(model, image=np.full((64, 64, 3), 128, np.uint8), audio=Path({str(audio)!r}),
                  out=Path({str(tmp_path / "a.mp4")!r}), on_progress=tell)
sys.exit(130 if report.interrupted else 0)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 60:
            break
    os.kill(process.pid, signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=20) == 130
    process.stdout.close()
    images, sound, *_ = read_film(tmp_path / "a.mp4")
    assert 60 <= len(images) < 1600 and abs(len(sound) / 16_000 - len(images) / 25) < 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.wav"]


def test_asking_to_stop_ends_after_the_block(tmp_path):
    audio = write_wav(tmp_path / "a.wav", phrase(3.0))
    seen = []
    report = generate(
        FakeModel(SMALL),
        image=PORTRAIT,
        audio=audio,
        out=tmp_path / "a.mp4",
        on_progress=seen.append,
        should_stop=lambda: len(seen) == 2,
    )
    assert report.interrupted and report.frames == 24 and len(read_film(report.path)[0]) == 24


def test_a_failing_model_leaves_nothing_and_spares_the_old_film(tmp_path):
    audio = write_wav(tmp_path / "a.wav", phrase(3.0))
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(ModelError, match="asked to fail"):
        generate(
            FakeModel(FakeConfig(width=64, height=64, fail_block=3)),
            image=PORTRAIT,
            audio=audio,
            out=tmp_path / "a.mp4",
        )
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.wav"]
    with pytest.raises(PortraitError):
        generate(FakeModel(SMALL), image=PORTRAIT[0], audio=audio, out=tmp_path / "b.mp4")


def test_bad_files_are_named_in_one_sentence(tmp_path):
    def refusal(audio: Path, out: Path = tmp_path / "x.mp4") -> str:
        with pytest.raises(MediaFileError) as caught:
            generate(FakeModel(SMALL), image=PORTRAIT, audio=audio, out=out)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in refusal(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("hello")
    assert "not a sound file" in refusal(tmp_path / "text.wav")
    assert "holds no sound" in refusal(write_wav(tmp_path / "empty.wav", np.zeros(0)))
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(PORTRAIT, format="rgb24")))
        container.mux(stream.encode(None))
    assert "no sound track" in refusal(tmp_path / "mute.mp4")
    good = write_wav(tmp_path / "a.wav", phrase())
    assert "cannot be written to" in refusal(good, tmp_path / "no" / "such" / "x.mp4")
    if Path("/dev/full").exists():
        (tmp_path / ".full.mp4.part").symlink_to("/dev/full")
        assert "No space left" in refusal(good, tmp_path / "full.mp4")
    assert not list(tmp_path.glob(".*.part"))


def test_a_damaged_file_gives_what_can_be_heard(tmp_path):
    audio = write_wav(tmp_path / "a.wav", phrase(3.0))
    with av.open(str(audio)) as source, av.open(str(tmp_path / "a.mp3"), "w") as target:
        stream = target.add_stream("mp3", rate=16_000, layout="mono")
        for frame in source.decode(audio=0):
            frame.pts = None
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(2000, len(data) - 2000, 30):
        data[at] ^= 0xFF
    (tmp_path / "a.mp3").write_bytes(data)
    report = generate(FakeModel(SMALL), image=PORTRAIT, audio=tmp_path / "a.mp3", out=tmp_path / "a.mp4")
    assert report.frames > 60


def test_memory_does_not_grow_with_length(tmp_path):
    def peak(repeats: int) -> int:
        audio = write_wav(tmp_path / "a.wav", np.tile(phrase(), repeats))
        tracemalloc.start()
        generate(FakeModel(SMALL), image=PORTRAIT, audio=audio, out=tmp_path / "a.mp4")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(2)
    short, long = peak(4), peak(40)
    print(f"{short / 1e6:.1f} MB for {4 * 2.3:.0f} s, {long / 1e6:.1f} MB for {40 * 2.3:.0f} s")
    assert long < short + 1_000_000

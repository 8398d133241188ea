"""A portrait and a WAV file to pictures, with the live generator and nothing but torch beside it.

For machines without a media library: it loads any checkpoint that `model.config.RunConfig` names, feeds the sound
block by block, and writes frames as PNG files. It also says what loading and every block cost in time and memory.

    python -m model.clip PORTRAIT.png SPEECH.wav FRAMES --checkpoint FOLDER --device cuda [--set solver=unipc ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.config import RunConfig
from model.errors import PortraitError, UnsupportedError, exit_code_of
from model.geometry import SAMPLE_RATE_HZ
from model.gpus import installed_gpus
from model.interface import BlockRequest, SessionSpec
from model.memory import GB
from model.parallel import ParallelConfig, Plan
from model.planner import choose
from model.portrait import decode_image
from model.setting import setting_of

_SESSION = "clip"
_LOOK_S = 0.02
"""How often the host's memory is looked at."""


class HostMemory:
    """The largest anonymous memory of this process while it is open; file pages that are mapped do not count."""

    def __enter__(self) -> HostMemory:
        self.peak_bytes = anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def read_wave(path: Path) -> np.ndarray:
    """A 16-bit PCM WAV file as [samples] float32, 16 kHz, mono; other rates are interpolated.

    Raises:
        UnsupportedError: it is no such file, or has no samples.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UnsupportedError(f"{path} cannot be read as WAV ({error}); give a 16-bit PCM WAV file") from error
    if width != 2 or not data:
        raise UnsupportedError(f"{path} has {8 * width}-bit samples, {len(data)} bytes; give a 16-bit PCM WAV file")
    sound = np.frombuffer(data, "<i2").reshape(-1, channels).mean(1) / 32768
    if rate != SAMPLE_RATE_HZ:
        count = len(sound) * SAMPLE_RATE_HZ // rate
        sound = np.interp(np.arange(count) * rate / SAMPLE_RATE_HZ, np.arange(len(sound)), sound)
    return sound.astype(np.float32)


def make_clip(
    run: Mapping[str, Any],
    image: np.ndarray,
    sound: np.ndarray,
    folder: Path,
    *,
    num_blocks: int,
    prompt: str = "",
    seed: int = 0,
    parity: bool = False,
) -> dict[str, Any]:
    """Load, generate, write `00000.png` and so on.

    Args:
        run: fields of `RunConfig`.
        image: portrait, [h, w, 3] uint8 RGB.
        sound: [samples] float32 at 16 kHz.
        folder: gets the frames; made where missing.
        num_blocks: most blocks; fewer where the sound ends before.
        parity: hear the whole file at once, as published.

    Returns:
        Figures: seconds of loading and of blocks, peak memory in GB (1e9 bytes), sizes.

    Raises:
        ModelError: the text says what to change.
    """
    import torch

    from model.generator import load_model

    plan = fitting_plan(run)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with HostMemory() as host:
        model = load_model(run, plan)
        load_s, load_gb = time.perf_counter() - start, host.peak_bytes / 1e9
        model.open(
            SessionSpec(session=_SESSION, image=image, prompt=prompt, seed=seed, sound=sound if parity else None)
        )
        open_s = time.perf_counter() - start - load_s
        geometry, spec = model.info.geometry, model.info.window
        count = min(num_blocks, -(-len(sound) // geometry.samples_per_block))
        padded = np.pad(sound, (spec.left_samples, spec.most_samples))
        block_s, frame = [], 0
        for block in range(count):
            window = padded[geometry.block_start_sample(block) :][: spec.most_samples]
            begun = time.perf_counter()
            request = BlockRequest(session=_SESSION, block=block, epoch=0, window=window, posture="speaking")
            frames = model.step(request).frames
            block_s.append(time.perf_counter() - begun)
            for picture in frames:
                Image.fromarray(picture).save(folder / f"{frame:05}.png")
                frame += 1
        peak_gb = host.peak_bytes / 1e9
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "checkpoint": model.info.name,
        "size": f"{geometry.width}x{geometry.height}",
        "frames": frame,
        "load_s": round(load_s, 3),
        "open_s": round(open_s, 3),
        "block_s_first": round(block_s[0], 4),
        "block_s_median": round(statistics.median(block_s), 4),
        "block_s_worst": round(max(block_s), 4),
        "block_length_s": geometry.block_s,
        "host_anonymous_peak_gb_loading": round(load_gb, 3),
        "host_anonymous_peak_gb": round(peak_gb, 3),
        "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if on_gpu else 0.0,
        "profile": model.info.profile,
    }


def fitting_plan(run: Mapping[str, Any]) -> Plan | None:
    """How one GPU holds the model, decided before anything is loaded; None on a processor, which is not looked at.

    Raises:
        UnsupportedError: by how much it misses and what would help, or a setting is wrong.
    """
    if run.get("device", "auto") == "cpu" or not (cards := installed_gpus()):
        return None
    try:
        wanted = RunConfig.from_dict(dict(run))
        index = int(wanted.device.partition(":")[2] or 0)
        weights, kv = ("bf16" if name == "auto" else name for name in (wanted.weights_dtype, wanted.kv_dtype))
        outcome = choose(setting_of(wanted), cards[index:][:1] or cards[:1], ParallelConfig(plan="single"), weights, kv)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    if outcome.chosen is None:
        miss = outcome.misses[0]
        raise UnsupportedError(f"the model lacks {miss.by / GB:.1f} GB on {cards[0].name}; remedy: {miss.remedy}")
    return outcome.chosen.plan


def settings(words: list[str]) -> dict[str, Any]:
    """`key=value` words as plain values: numbers where they are such, true and false, else text.

    Raises:
        UnsupportedError: a word has no `=`.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UnsupportedError(f"--set {word} has no value; write --set {word}=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[key] = value if isinstance(value, int | float | bool) else text
    return values


def main(arguments: list[str] | None = None) -> int:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m model.clip", description="Generate frames without media libraries."
    )
    parser.add_argument("portrait", type=Path)
    parser.add_argument("sound", type=Path)
    parser.add_argument("frames", type=Path, help="folder for PNG files")
    parser.add_argument("--checkpoint", default="tiny", help="tiny, a file, a released folder, random:mini, random:14b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="auto")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=4, help="most blocks; 4 are a clip of the published model")
    parser.add_argument("--parity", action="store_true", help="hear the whole file at once, as published")
    parser.add_argument("--set", action="append", default=[], help="any other key of the model's configuration")
    given = parser.parse_args(arguments)

    def work() -> None:
        try:
            image = decode_image(given.portrait.read_bytes())
        except (OSError, PortraitError) as error:
            raise UnsupportedError(f"portrait is {given.portrait}: {error}") from error
        if given.blocks < 1:
            raise UnsupportedError(f"--blocks is {given.blocks}; give 1 or more")
        run = {"checkpoint": given.checkpoint, "device": given.device, "size": given.size, **settings(given.set)}
        figures = make_clip(
            run,
            image,
            read_wave(given.sound),
            given.frames,
            num_blocks=given.blocks,
            prompt=given.prompt,
            seed=given.seed,
            parity=given.parity,
        )
        print(json.dumps(figures))

    return exit_code_of("model.clip", work)


if __name__ == "__main__":
    sys.exit(main())

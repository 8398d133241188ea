"""`avatarcast generate`: portrait and sound file to an MP4, with the live generator in this process.

`make_film` is the one way to a film; `avatarcast batch` and `avatarcast studio` go it too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import LinkError, PortraitError
from model.interface import AvatarModel, SessionInfo
from model.parallel import Plan
from model.portrait import MAX_BYTES, decode_image
from model.sampling import chosen_size
from model.setting import model_sizes
from server.config import Config, ModelSection
from server.errors import ConfigError
from server.film_inputs import check_pose_video, read_masks, split_masks, split_sounds
from server.original_flags import flag_of
from server.plan_flags import PlanFlags
from server.planning import plan_to_run
from server.preview import is_known_early, preview_stream
from streaming.film import sound_start_s
from streaming.offline import FilmReport, Progress, generate

PLAIN_EVERY_S = 5.0
"""Where no terminal shows a bar, a line of progress comes this often."""
BAR = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmWish:
    """What the command line asks for."""

    image: Path
    """Portrait: PNG, JPEG or WebP."""
    audio: Path
    """Any file with sound that FFmpeg reads, or one for each of several speakers, joined by `+`."""
    out: Path
    """The MP4."""
    prompt: str = ""
    """Expression."""
    base_seed: int = 0
    """Seed of noise and idle motion."""
    size: str | None = None
    """Picture size, for example 256x256; None takes the configuration's."""
    ckpt_dir: str | None = None
    """Released folder, or another checkpoint; None takes the configuration's."""
    lora: str | None = None
    """Adapter for a released folder; None takes the configuration's."""
    load_lora: bool | None = None
    """Whether an adapter is merged; None: if one is named."""
    num_clip: int | None = None
    """Most clips of the film; None: as long as the sound."""
    infer_frames: int = 48
    """Pictures a clip."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model.sampling.SamplingChoice` that the command line sets."""
    plan: PlanFlags = field(default_factory=PlanFlags)
    """What the command line says about cards and memory."""
    parity: bool = False
    """The file heard at once and the noise drawn by clip, as published."""
    mask: Path | None = None
    """Where each speaker's face is, one picture for each, joined by `+`; None: strips from left to right."""
    pose_video: Path | None = None
    """Any video that FFmpeg reads, which steers the bodies."""

    def __post_init__(self) -> None:
        for name in ("image", "pose_video"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"--{name} is {path}, which is not a file; check the path")
        _ = self.masks  # checks the files
        if self.out.is_dir():
            raise ConfigError(f"--out is {self.out}, which is a folder; name the file, for example {self.out}/film.mp4")
        if not self.out.parent.is_dir():
            raise ConfigError(f"--out is {self.out}, but there is no folder {self.out.parent}; make it first")
        if self.out.suffix.lower() != ".mp4":
            raise ConfigError(f"--out is {self.out}; its name must end in .mp4")
        if self.num_clip is not None and self.num_clip < 1:
            raise ConfigError(f"--num_clip is {self.num_clip}; give 1 or more, or leave it out for the whole sound")
        if self.load_lora and not self.lora:
            raise ConfigError("--load_lora is true, but no adapter is named; give its file to --lora_path_dmd")
        if not 0 <= self.base_seed < 2**31:
            raise ConfigError(f"--base_seed is {self.base_seed}; it must be 0 to {2**31 - 1}")

    @property
    def sounds(self) -> tuple[Path, ...]:
        """One file a speaker."""
        return split_sounds(self.audio)

    @property
    def masks(self) -> tuple[Path, ...]:
        """One file a speaker, or none."""
        return split_masks(self.mask, self.sounds)


def film_path(out: Path | None, folder: Path | None, name: str | None) -> Path:
    """Where the film goes: `--out`, or `--output_name` in `--save_dir` (which is made).

    Raises:
        ConfigError: both ways are used, or the name is a path.
    """
    if out is not None:
        if folder is not None or name is not None:
            raise ConfigError(f"--out is {out}, and --save_dir or --output_name is given too; use one way")
        return out
    if name is not None and (not name or Path(name).name != name):
        raise ConfigError(f"--output_name is {name!r}; give a plain name, and the folder to --save_dir")
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--save_dir is {folder}, which cannot be made ({error.strerror}); name another"
            ) from error
    name = name or "output.mp4"
    return (folder or Path()) / (name if name.endswith(".mp4") else f"{name}.mp4")


def run_generate(config: Config, wish: FilmWish, *, as_json: bool) -> int:
    """Make one film.

    Returns:
        Exit code: 0, or 130 after Ctrl-C; what was made until then is kept and playable.

    Raises:
        ServerError, ModelError, StreamingError: one sentence with the remedy.
    """
    meter = Meter()
    try:
        report = make_film(LoadedModel(config), wish, on_progress=meter.show)
    finally:
        meter.end()
    _print_report(report, as_json)
    return 130 if report.interrupted else 0


def read_portrait(path: Path) -> np.ndarray:
    """Read and decode a portrait; no more of a file is read than a portrait may have.

    Returns:
        [height, width, 3] uint8 RGB.

    Raises:
        PortraitError: one sentence that names the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            megabytes = path.stat().st_size / 1024 / 1024
            raise PortraitError(f"the file has {megabytes:.1f} MiB; give one of at most {MAX_BYTES // 1024**2} MiB")
        return decode_image(data)
    except OSError as error:
        raise PortraitError(f"--image is {path}, which cannot be read ({error.strerror}); check the file") from error
    except PortraitError as error:
        raise PortraitError(f"--image is {path}: {error}") from error


def note(sentence: str) -> None:
    """Tell whoever sits at the terminal."""
    print(sentence, file=sys.stderr)


class LoadedModel:
    """The model of the last film; another is loaded only where the next film needs one.

    Args:
        config: of all films.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._wanted: tuple[ModelSection, PlanFlags] | None = None
        self._model: AvatarModel | None = None

    def load_for(self, section: ModelSection, flags: PlanFlags, tell: Callable[[str], None] = note) -> AvatarModel:
        """The model that `section` describes, laid over cards as the configuration and `flags` say.

        Raises:
            ServerError, ModelError: it does not fit, or cannot be loaded.
        """
        if self._model is None or (section, flags) != self._wanted:
            self.let_go()  # before the next takes its memory
            plan = _plan(self.config, section, flags, tell)
            tell(f"loading {section.kind if section.kind == 'fake' else section.checkpoint} …")
            from model.worker import load  # loads torch, in this process and only here

            self._model = load(section.launch_spec(self.config.server.log_level, plan))
            self._wanted = section, flags
        return self._model

    def let_go(self) -> None:
        """Drop the model, and give its memory back to the cards, where the next one's plan looks for it."""
        had_tensors = self._wanted is not None and self._wanted[0].kind == "checkpoint"
        if hasattr(self._model, "stop"):  # its ranks are processes of their own
            self._model.stop()
        self._model = self._wanted = None
        if had_tensors:
            from model.fast import release

            release()


def make_film(
    loaded: LoadedModel,
    wish: FilmWish,
    *,
    tell: Callable[[str], None] = note,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FilmReport:
    """Make one film: the one way of `generate`, `batch` and `studio`. Input is judged before a model loads.

    Args:
        loaded: the model to use if it fits.
        wish: what is asked for.
        tell: takes notices, one sentence each.
        on_progress: called after every block.
        should_stop: asked after every block.

    Raises:
        ServerError, ModelError, StreamingError: one sentence with the remedy.
    """
    image = read_portrait(wish.image)
    for sound in wish.sounds:
        if sound_start_s(sound) is None:
            tell(f"--audio is {sound}, which is silent throughout; the lips will not move")
    masks = read_masks(wish.masks, image)
    check_pose_video(wish.pose_video)
    section = _sized(model_section(loaded.config, wish), image, tell)
    if is_known_early(section):
        _clip_frames(wish, preview_stream(section).geometry.frames_per_block)
    model = loaded.load_for(section, wish.plan, tell)
    clip_frames = _clip_frames(wish, model.info.geometry.frames_per_block)
    if clip_frames != wish.infer_frames:
        block = model.info.geometry.frames_per_block
        tell(f"--infer_frames {wish.infer_frames} becomes {clip_frames}: whole blocks of {block}")
    try:
        return generate(
            model,
            image=image,
            audio=wish.sounds,
            out=wish.out,
            prompt=wish.prompt,
            seed=wish.base_seed,
            config=loaded.config.streaming,
            max_frames=None if wish.num_clip is None else wish.num_clip * clip_frames,
            parity=wish.parity,
            masks=masks,
            pose_video=wish.pose_video,
            on_open=lambda info: _tell_of_session(info, tell),
            on_progress=on_progress,
            should_stop=should_stop,
        )
    except LinkError:  # a process of the plan is gone; the next film starts them again
        loaded.let_go()
        raise


def _clip_frames(wish: FilmWish, block: int) -> int:
    """Pictures of a clip, whole blocks."""
    if wish.infer_frames < block:
        raise ConfigError(f"--infer_frames is {wish.infer_frames}; a clip has at least one block of {block} pictures")
    return wish.infer_frames // block * block


def _tell_of_session(info: SessionInfo, tell: Callable[[str], None]) -> None:
    if info.prompt_cut:
        tell(f"--prompt is too long; this end of it is not read: {info.prompt_cut!r}")
    if not info.in_domain:
        tell("this portrait is outside what the checkpoint has learned; expect a blurred face")


def model_section(config: Config, wish: FilmWish) -> ModelSection:
    """The configuration's model with what the command line says about it."""
    lora = "" if wish.load_lora is False else wish.lora
    changes = {"size": wish.size, "checkpoint": wish.ckpt_dir, "lora": lora}
    given = {name: value for name, value in changes.items() if value is not None}
    if wish.ckpt_dir is not None:
        given = {"kind": "checkpoint", "lora": "", **given}
    given["text_load"] = "needed"  # a film has one prompt, which may be on disk
    if wish.parity:
        given["noise"] = "clip"
    try:
        return replace(config.model, **given, **wish.sampling)
    except ValueError as error:
        raise ConfigError(f"--{flag_of(str(error))}") from error


def _plan(config: Config, section: ModelSection, flags: PlanFlags, tell: Callable[[str], None]) -> Plan | None:
    """How the model is laid over cards; refused here where it does not fit."""
    parallel = config.parallel
    if not flags.is_empty:
        parallel, notices = flags.over(parallel, model_sizes(section.checkpoint).dit.num_heads)
        for notice in notices:
            tell(notice)
    return plan_to_run(section, parallel)[0]


def _sized(section: ModelSection, image: np.ndarray, tell: Callable[[str], None]) -> ModelSection:
    """The section with the size really used, where the portrait decides it."""
    exact = chosen_size(section.size, "exact")
    size = chosen_size(section.size, section.size_rule, *image.shape[:2])
    if size is None or size == exact:
        return section if size is None else replace(section, size=f"{size[0]}x{size[1]}", size_rule="exact")
    tell(f"--size {section.size} is an area: the film has {size[0]}x{size[1]} pixels")
    return replace(section, size=f"{size[0]}x{size[1]}", size_rule="exact")


def _print_report(report: FilmReport, as_json: bool) -> None:
    fps = report.frames / max(report.wall_s, 1e-9)
    if report.interrupted and report.frames == 0:
        print("interrupted before the first picture; nothing was written", file=sys.stderr)
    elif as_json:
        print(json.dumps(asdict(report) | {"path": str(report.path), "fps": round(fps, 2)}))
    else:
        how = "cut off" if report.interrupted else "done"
        size = f"{report.width}x{report.height}"
        print(f"{how}: {report.path}, {report.seconds:.1f} s at {size}, made with {fps:.1f} pictures a second")


class Meter:
    """A progress bar on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown_s = time.monotonic()
        self._open = False

    def show(self, progress: Progress) -> None:
        """Take the state after one more block."""
        now = time.monotonic()
        if self._is_terminal:
            print(f"\r{progress_line(progress)}\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True
        elif now - self._shown_s >= PLAIN_EVERY_S:
            print(progress_line(progress), file=sys.stderr, flush=True)
            self._shown_s = now

    def end(self) -> None:
        """Leave the bar's line."""
        if self._open:
            print(file=sys.stderr)


def progress_line(progress: Progress) -> str:
    """One line: bar, pictures, speed, remaining time."""
    if progress.num_frames is None or progress.eta_s is None:
        return f"{progress.frames} pictures, {progress.fps:.1f} a second"
    filled = min(BAR, BAR * progress.frames // max(1, progress.num_frames))
    bar = "█" * filled + "░" * (BAR - filled)
    minutes, seconds = divmod(round(progress.eta_s), 60)
    done = f"{progress.frames}/{progress.num_frames} pictures"
    return f"{bar} {done}, {progress.fps:.1f} a second, {minutes}:{seconds:02d} left"

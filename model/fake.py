"""A deterministic stand-in behind the model's door: a portrait with drawn eyes and mouth. No torch.

Everything around the model is developed and tested with it, and `model.kind: fake` serves it, so that a deployment can
be tried without weights. The mouth opens with the loudness of each frame's part of the window; eyes blink; the face
sways with its breath, so that it never freezes. A picture is a pure function of (portrait, seed, prompt, block,
window): two runs that heard the same windows show the same pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from model.errors import ModelError, UnknownSessionError, UnsupportedError
from model.geometry import Geometry
from model.interface import (
    BlockRequest,
    BlockResult,
    ModelInfo,
    SessionInfo,
    SessionSpec,
    SessionUpdate,
    UpdateInfo,
    WindowSpec,
    all_together,
)
from model.portrait import fit_portrait

IN_DOMAIN_PSNR_DB = 20.0
_SKIN_SHADOW = np.array([96, 40, 44], np.float32)
_MOUTH = np.array([52, 12, 18], np.float32)
_LIP = np.array([176, 70, 78], np.float32)
_EYE = np.array([244, 244, 240], np.float32)
_PUPIL = np.array([30, 34, 48], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    """Sizes and faults of the stand-in. The faults are for tests; each strikes once, at the named block."""

    width: int = 256
    """Picture width; a multiple of 32."""
    height: int = 256
    """Picture height; a multiple of 32."""
    fps: int = 25
    """Pictures a second."""
    left_samples: int = 29_440
    """Audio before the block."""
    lookahead_samples: int = 1_280
    """Audio after the block."""
    block_s: float = 0.0
    """Seconds a block pretends to take, spent sleeping."""
    load_s: float = 0.0
    """Seconds loading pretends to take."""
    load_error: str = ""
    """Loading fails with this sentence."""
    fail_block: int = -1
    """The step of this block raises."""
    hang_block: int = -1
    """The step of this block sleeps for an hour."""

    def __post_init__(self) -> None:
        if self.block_s < 0 or self.load_s < 0:
            raise ValueError(f"block_s is {self.block_s} and load_s {self.load_s}; neither may be negative")

    @property
    def geometry(self) -> Geometry:
        return Geometry(width=self.width, height=self.height, fps=self.fps, vae_stride=16, patch=2, latent_channels=32)

    @property
    def window(self) -> WindowSpec:
        return WindowSpec(
            left_samples=self.left_samples,
            lookahead_samples=self.lookahead_samples,
            block_samples=self.geometry.samples_per_block,
        )


@dataclass(slots=True)
class _Sitting:
    """One open session."""

    portrait: np.ndarray
    prompt: str
    seed: int
    updates: list[SessionUpdate] = field(default_factory=list)


class FakeModel:
    """See the module; implements `model.interface.AvatarModel`."""

    def __init__(self, config: FakeConfig | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """
        Args:
            config: sizes, pacing, faults.
            sleep: how the pretended time passes.

        Raises:
            ModelError: with `config.load_error`, if that is set.
        """
        self.config = config or FakeConfig()
        if self.config.load_error:
            raise ModelError(self.config.load_error)
        self._sleep = sleep
        sleep(self.config.load_s)
        self._sittings: dict[str, _Sitting] = {}
        self._faults = {block for block in (self.config.fail_block, self.config.hang_block) if block >= 0}
        self.info = ModelInfo(
            name="fake",
            geometry=self.config.geometry,
            window=self.config.window,
            profile={"kind": "fake", "dtype": "uint8", "steps": 0, "threads": 1, "block_s": self.config.block_s},
            block_s=self.config.block_s,
            in_domain_psnr_db=IN_DOMAIN_PSNR_DB,
        )

    def open(self, spec: SessionSpec) -> SessionInfo:
        if spec.has_pose:
            raise UnsupportedError("the drawn figure takes no pose video; leave it out, or use a released folder")
        portrait = fit_portrait(spec.image, self.config.width, self.config.height)
        self._sittings[spec.session] = _Sitting(portrait=portrait, prompt=spec.prompt, seed=spec.seed)
        psnr_db = smoothness_db(portrait)
        return SessionInfo(
            session=spec.session,
            portrait=portrait,
            portrait_psnr_db=psnr_db,
            in_domain=psnr_db >= IN_DOMAIN_PSNR_DB,
        )

    def update(self, update: SessionUpdate) -> UpdateInfo:
        sitting = self._sitting(update.session)
        psnr_db = None
        if update.image is not None:
            update = replace(update, image=fit_portrait(update.image, self.config.width, self.config.height))
            psnr_db = smoothness_db(update.image)
        sitting.updates.append(update)
        sitting.updates.sort(key=lambda waiting: waiting.block)
        is_ours = psnr_db is None or psnr_db >= IN_DOMAIN_PSNR_DB
        return UpdateInfo(session=update.session, block=update.block, portrait_psnr_db=psnr_db, in_domain=is_ours)

    def step(self, request: BlockRequest) -> BlockResult:
        started = time.perf_counter()
        sitting = self._sitting(request.session)
        self._strike(request.block)
        applied = _apply(sitting, request.block)
        openings = frame_loudness(all_together(request.window), self.config)
        frames = np.repeat(sitting.portrait[None], len(openings), axis=0)
        first = self.config.geometry.block_start_frame(request.block)
        smile = _smile(sitting.prompt)
        for index, opening in enumerate(openings):
            _draw(frames[index], first + index, sitting.seed, float(opening), smile, request.posture)
        drawn = time.perf_counter() - started
        self._sleep(max(0.0, self.config.block_s - drawn))
        return BlockResult(
            session=request.session,
            block=request.block,
            epoch=request.epoch,
            frames=frames,
            stage_s={"audio": 0.0, "dit": max(0.0, self.config.block_s - drawn), "vae": drawn},
            applied=applied,
        )

    def close(self, session: str) -> None:
        self._sittings.pop(session, None)

    def _sitting(self, session: str) -> _Sitting:
        if session not in self._sittings:
            raise UnknownSessionError(f"session {session!r} is not open; open it before sending blocks")
        return self._sittings[session]

    def _strike(self, block: int) -> None:
        if block not in self._faults:
            return
        self._faults.discard(block)
        if block == self.config.fail_block:
            raise ModelError(f"block {block} was asked to fail; take fail_block out of the configuration")
        self._sleep(3600.0)


def frame_loudness(window: np.ndarray, config: FakeConfig) -> np.ndarray:
    """How far the mouth opens in each frame of the window's block.

    Args:
        window: [window.samples] float32.

    Returns:
        [frames_per_block] float32 in 0..1: the frame's RMS on a decibel scale, 0 at -46 dBFS, 1 at -12 dBFS.
    """
    geometry = config.geometry
    heard = window[config.left_samples : config.left_samples + geometry.samples_per_block]
    rms = np.sqrt(np.mean(np.square(heard.reshape(geometry.frames_per_block, -1)), axis=1) + 1e-12)
    return np.clip((20 * np.log10(rms) + 46) / 34, 0, 1).astype(np.float32)


def smoothness_db(portrait: np.ndarray) -> float:
    """PSNR of the portrait rebuilt from means of 4x4 pixels: high for drawings, low for grain and fine texture."""
    pixels = portrait.astype(np.float32)
    height, width = pixels.shape[:2]
    means = pixels.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
    error = np.mean(np.square(means.repeat(4, 0).repeat(4, 1) - pixels))
    return float(10 * np.log10(255**2 / max(float(error), 1e-3)))


def _apply(sitting: _Sitting, block: int) -> tuple[str, ...]:
    applied: dict[str, None] = {}
    while sitting.updates and sitting.updates[0].block <= block:
        update = sitting.updates.pop(0)
        if update.prompt is not None:
            sitting.prompt = update.prompt
            applied["prompt"] = None
        if update.image is not None:
            sitting.portrait = update.image
            applied["image"] = None
    return tuple(applied)


def _smile(prompt: str) -> float:
    words = prompt.lower()
    return float(any(word in words for word in ("smil", "happy", "joy"))) - float("sad" in words)


def _noise(seed: int, index: int) -> float:
    """A number in 0..1 that depends on nothing but its arguments."""
    mixed = (index * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    mixed = (mixed * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return ((mixed ^ (mixed >> 29)) & 0xFFFFFFFF) / 2**32


def _blink(frame: int, seed: int) -> float:
    """Lid over the eye, 0..1: four frames once in every 80, at a place drawn from the seed."""
    cycle, phase = divmod(frame, 80)
    since = phase - int(8 + 64 * _noise(seed, cycle))
    return (0.5, 1.0, 1.0, 0.4)[since] if 0 <= since < 4 else 0.0


def _draw(picture: np.ndarray, frame: int, seed: int, opening: float, smile: float, posture: str) -> None:
    """Draw eyes and mouth into `picture`, [h, w, 3] uint8, in place; only small regions are touched."""
    height, width = picture.shape[:2]
    sway_x = 0.006 * width * float(np.sin(2 * np.pi * frame / 173))
    sway_y = 0.006 * height * float(np.sin(2 * np.pi * frame / 100))  # breath: one in four seconds
    look = (_noise(seed + 1, frame // 40) - 0.5) * 0.02 * width + (0.012 * width if posture == "thinking" else 0.0)
    lid = _blink(frame, seed)
    for side in (-1, 1):
        x, y = (0.5 + side * 0.13) * width + sway_x, 0.42 * height + sway_y
        wide = (0.042 if posture == "listening" else 0.034) * height * (1 - lid) + 0.8
        _ellipse(picture, x, y, 0.06 * width, wide, _EYE if lid < 1 else _SKIN_SHADOW)
        if lid < 0.8:
            _ellipse(picture, x + look, y, 0.022 * width, 0.028 * height * (1 - lid) + 0.5, _PUPIL)
    x, y = 0.5 * width + sway_x, 0.70 * height + sway_y
    _ellipse(picture, x, y, (0.115 + 0.03 * smile) * width, (0.016 + 0.075 * opening) * height, _LIP)
    if opening > 0.02:
        _ellipse(picture, x, y, (0.09 + 0.03 * smile) * width, 0.068 * opening * height, _MOUTH)


def _ellipse(picture: np.ndarray, x: float, y: float, half_w: float, half_h: float, color: np.ndarray) -> None:
    """Blend a soft-edged ellipse into `picture`; its edge is one pixel wide."""
    top, bottom = max(0, int(y - half_h - 1)), min(picture.shape[0], int(y + half_h + 3))
    left, right = max(0, int(x - half_w - 1)), min(picture.shape[1], int(x + half_w + 3))
    down = (np.arange(top, bottom, dtype=np.float32)[:, None] - y) / half_h
    across = (np.arange(left, right, dtype=np.float32)[None, :] - x) / half_w
    inside = np.clip((1 - np.sqrt(down**2 + across**2)) * min(half_w, half_h) + 0.5, 0, 1)[..., None]
    region = picture[top:bottom, left:right]
    region[:] = (region + (color - region) * inside + 0.5).astype(np.uint8)

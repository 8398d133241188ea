"""The one pipeline: sound and a portrait in, pictures out, block by block.

Live sessions, the offline command and the benchmarks all go through `Generator.step`. Weights are shared; everything a
session carries (rings of keys, the VAE's memory, counters) is its own, so sessions take turns in any order. A change
of prompt or portrait is prepared when it is announced and takes effect at a block boundary: a prompt keeps the rings,
a portrait starts fresh ones and a fresh VAE memory, so that the next picture shows the new face and no mixture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio_tokens import AudioCondition
from model.config import ModelConfig, RunConfig
from model.denoiser import Denoiser, StreamState
from model.dit import TextKV
from model.errors import CheckpointError, ModelError, UnknownSessionError, UnsupportedError, UnwantedError
from model.host_rings import LayerBuffers
from model.interface import (
    POSTURES,
    BlockRequest,
    BlockResult,
    ModelInfo,
    SessionInfo,
    SessionSpec,
    SessionUpdate,
    UpdateInfo,
    all_together,
    check_window,
)
from model.kv_cache import RollingCache
from model.motion import PARAMETERS, MotionController, MotionSizes
from model.offload import load_offloaded
from model.parallel import Plan
from model.portrait import fit_portrait, fit_short_side
from model.pose_video import PoseVideo
from model.profile import Profile, choose_profile
from model.sampler import NoiseSource
from model.sampling import SamplingChoice
from model.screen import Screen, ScreenState
from model.solvers import with_choices
from model.speakers import speaker_weights
from model.stage_clock import StageClock
from model.vae import Still
from model.wan_vae import decode_in_tiles
from model.weights import load_weights

log = logging.getLogger(__name__)

SHORTEST_SOUND = 1_600
"""Samples at 16 kHz that a whole file must have at least."""


@dataclass(slots=True)
class Portrait:
    """A fitted picture and what the model makes of it."""

    picture: np.ndarray
    """[height, width, 3] uint8 RGB."""
    still: Still
    """Reference, past and decoder memory."""
    psnr_db: float
    """How well the VAE reproduces it."""


@dataclass(slots=True)
class Session:
    """Everything one stream carries."""

    stream: StreamState
    screen: ScreenState
    """The decoder's memory."""
    levels: list[Any]
    """What the speech encoder carries of every speaker, of its own kind."""
    columns: Tensor | None
    """[A, states, D, pictures] of whole files, where the session was opened with them."""
    weights: Tensor | None
    """[1, A, F, rows, columns] of every speaker's sound for every token; None for one speaker."""
    silence: AudioCondition | None
    """With guidance, the condition of features that are all zero."""
    noise: NoiseSource
    motion: MotionController | None
    pose: PoseVideo | None
    last_block: int
    pending: list[tuple[int, TextKV | None, Portrait | None]] = field(default_factory=list)
    """Announced changes: block, prompt, portrait."""


class Generator:
    """A loaded model; implements `model.interface.AvatarModel`. Calls come from one thread."""

    def __init__(
        self,
        config: ModelConfig,
        modules: dict[str, nn.Module],
        profile: Profile,
        noise: Literal["block", "clip"] = "block",
        sampling: SamplingChoice | None = None,
        denoiser: Denoiser | None = None,
        allocate: Callable[..., RollingCache] = RollingCache.allocate,
    ) -> None:
        """
        Args:
            config: sizes and policies.
            modules: as `weights.load_checkpoint` gives them, in the precision that `profile` chose, all on one device.
            profile: as `choose_profile` gives it, or `Profile.untimed`.
            noise: `block` for live streams, `clip` to draw noise as the published pipelines do.
            sampling: solver and guidance; None takes Euler without guidance.
            denoiser: of a rank that leads others (`model.leader`), where the VAE may be elsewhere.
            allocate: makes the rings, see `Denoiser`.
        """
        sampling = sampling or SamplingChoice()
        self.config, self.profile, self.geometry = config, profile, config.geometry
        self.dit, self.vae, self.audio, self.text = (modules.get(part) for part in ("dit", "vae", "audio", "text"))
        channels = len(PARAMETERS) * self.geometry.vae_stride_t
        if config.motion.enabled and config.dit.cond_dim != channels:
            raise CheckpointError(
                f"checkpoint {config.name} takes {config.dit.cond_dim} pose channels but the motion controller writes "
                f"{channels}; export it again or switch motion off"
            )
        self._noise = noise
        self._fit = fit_portrait if config.portrait_fit == "cover" else fit_short_side
        self._size = (self.geometry.latent_height, self.geometry.latent_width)
        self._frames = config.stream.frames_per_block
        self._device = self.dit.device
        self._screen = Screen(self.vae, config.stream, profile.vae_dtype)
        with torch.inference_mode():
            self.denoiser = denoiser or Denoiser(
                self.dit,
                config.stream,
                profile.sigmas,
                *self._size,
                profile.kv_dtype,
                sampling.solver,
                sampling.guidance,
                allocate=allocate,
            )
            self._negative = self._prompt(sampling.negative_prompt) if sampling.is_guided else None
        self._sessions: dict[str, Session] = {}
        self.is_wanted: Callable[[BlockRequest], bool] = lambda request: True
        """Asked between the parts of a block; where it says no, the block is given up."""
        self.info = ModelInfo(
            name=config.name,
            geometry=self.geometry,
            window=config.window,
            profile=profile.as_dict(),
            block_s=profile.block_s,
            part_s=profile.part_s,
            in_domain_psnr_db=config.in_domain_psnr_db,
        )

    # Sessions.

    @torch.inference_mode()
    def open(self, spec: SessionSpec) -> SessionInfo:
        """Fit the portrait, encode the prompt, fill the condition cache; a session of that name is replaced.

        Raises:
            PortraitError, ModelError: the picture, or the whole file where one is given, cannot serve.
            UnsupportedError: a whole file is given, but the checkpoint's speech encoder hears windows only; or a pose
                video, but it takes none.
        """
        weights = speaker_weights(spec.speakers, spec.masks, self._fit, self.geometry)
        weights = None if weights is None else weights.to(self._device)
        pose = self._pose_video() if spec.has_pose else None
        portrait = self._portrait(spec.image, spec.past)
        text = self._prompt(spec.prompt)
        shape = (self.config.dit.in_dim, self._frames, *self._size)
        motion = None
        if self.config.motion.enabled:
            sizes = MotionSizes(amplitude=self.config.motion.amplitude, fps=self.config.fps)
            samples, frames = self.geometry.samples_per_block, self.geometry.frames_per_block
            motion = MotionController(sizes, spec.seed, samples, frames)
        self._sessions[spec.session] = Session(
            stream=self._start(text, portrait, weights),
            screen=ScreenState(portrait.still.state),
            levels=[self.audio.listen(spec.first_block) for _ in range(spec.speakers)],
            columns=None if spec.sound is None else self._file_columns(spec.sound, spec.speakers),
            weights=weights,
            silence=self._silence(spec.speakers, weights),
            noise=NoiseSource(spec.seed, shape, self._noise, self.geometry.blocks_per_clip),
            motion=motion,
            pose=pose,
            last_block=spec.first_block - 1,
        )
        if spec.speakers > 1 and motion is not None:
            log.warning("checkpoint %s was trained on one face a picture; expect little of several", self.config.name)
        return SessionInfo(
            session=spec.session,
            portrait=portrait.picture,
            portrait_psnr_db=portrait.psnr_db,
            in_domain=portrait.psnr_db >= self.config.in_domain_psnr_db,
            prompt_cut=self.text.cut(spec.prompt),
        )

    @torch.inference_mode()
    def update(self, update: SessionUpdate) -> UpdateInfo:
        """Prepare a change; the first block >= `update.block` shows it.

        Raises:
            PortraitError: the picture cannot serve; nothing changes.
            UnknownSessionError: no such session.
        """
        session = self._session(update.session)
        portrait = None if update.image is None else self._portrait(update.image)
        text = None if update.prompt is None else self._prompt(update.prompt)
        session.pending.append((update.block, text, portrait))
        return UpdateInfo(
            session=update.session,
            block=update.block,
            portrait_psnr_db=portrait and portrait.psnr_db,
            in_domain=portrait is None or portrait.psnr_db >= self.config.in_domain_psnr_db,
            prompt_cut=self.text.cut(update.prompt or ""),
        )

    def close(self, session: str) -> None:
        """Forget the session; unknown names are ignored."""
        self._sessions.pop(session, None)

    # One block.

    @torch.inference_mode()
    def step(self, request: BlockRequest) -> BlockResult:
        """Produce one block.

        Raises:
            ModelError: the window or the order of blocks is wrong; the session stays usable.
            UnknownSessionError: no such session.
            UnwantedError: `is_wanted` said no between two parts; the stream goes on with a later block.
        """
        session = self._session(request.session)
        self._check(request, session)
        applied = self._apply(session, request.block)

        def ask(*_: object) -> None:
            if not self.is_wanted(request):
                session.last_block = request.block
                raise UnwantedError(applied)

        clock = StageClock(self._device)
        audio = self.dit.audio_condition(self._columns(session, request)[None], session.weights)
        clock.mark("audio")
        ask()
        distance = self.config.stream.sink_distance
        if distance == "random":
            distance = session.noise.sink_distance(request.block, *self.config.stream.sink_range)
        latents = self.denoiser.block(
            session.stream,
            request.block,
            session.noise.block(request.block).to(self._device),
            audio,
            self._pose(session, request),
            distance,
            observe=ask,
            silence=session.silence,
        )
        clock.mark("dit")
        frames = self._screen.show(latents, session.screen).wait()
        clock.mark("vae")
        session.last_block = request.block
        return BlockResult(
            session=request.session,
            block=request.block,
            epoch=request.epoch,
            frames=frames,
            stage_s=clock.seconds(),
            applied=applied,
            latents=latents[0].to(torch.float16).cpu().numpy(),
        )

    def _check(self, request: BlockRequest, session: Session) -> None:
        name, block = request.session, request.block
        if block <= session.last_block:
            raise ModelError(
                f"block {block} of session {name} comes after block {session.last_block}; send blocks in rising order"
            )
        check_window(request, self.info.window, len(session.levels))
        if request.posture not in POSTURES:
            raise ModelError(f"posture is {request.posture!r}; choose one of {', '.join(POSTURES)}")

    def _apply(self, session: Session, block: int) -> tuple[str, ...]:
        """Make due changes, in the order they were announced."""
        due = [change for change in session.pending if change[0] <= block]
        session.pending = [change for change in session.pending if change[0] > block]
        text = next((t for _, t, _ in reversed(due) if t is not None), None)
        portrait = next((p for _, _, p in reversed(due) if p is not None), None)
        applied = tuple(name for name, change in (("prompt", text), ("image", portrait)) if change is not None)
        if portrait is not None:
            text = session.stream.text if text is None else text
            self._end(session.stream)
            session.stream = self._start(text, portrait, session.weights)
            session.screen = ScreenState(portrait.still.state)
        elif text is not None:
            self._reprompt(session, text)
        return applied

    def _columns(self, session: Session, request: BlockRequest) -> Tensor:
        """What the block's pictures hear: [A, states, D, frames_per_block]."""
        if session.columns is None:
            windows = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(request.window))).to(self._device)
            heard = zip(windows.split(1), session.levels, strict=True)
            return torch.cat([self.audio.window_features(w, request.block, level) for w, level in heard])
        count = self.geometry.frames_per_block
        columns = session.columns[..., request.block * count :][..., :count]
        return F.pad(columns, (0, count - columns.shape[3]))

    def _file_columns(self, sound: np.ndarray | tuple[np.ndarray, ...], speakers: int) -> Tensor:
        """Columns of whole files, [A, states, D, pictures], as long as the shortest."""
        sounds = sound if isinstance(sound, tuple) else (sound,)
        if len(sounds) != speakers:
            raise ModelError(f"there are {len(sounds)} sounds for {speakers} speakers; send one for each")
        columns = [self._columns_of(sound) for sound in sounds]
        shortest = min(c.shape[3] for c in columns)
        return torch.cat([c[..., :shortest] for c in columns])

    def _columns_of(self, sound: np.ndarray) -> Tensor:
        if not hasattr(self.audio, "file_features"):
            raise UnsupportedError(
                f"checkpoint {self.config.name} hears windows only; whole files (parity) need the published one"
            )
        good = sound.ndim == 1 and sound.dtype == np.float32 and bool(np.isfinite(sound).all())
        if not good or len(sound) < SHORTEST_SOUND:
            raise ModelError(
                f"the sound is {sound.dtype} {list(sound.shape)}; send at least {SHORTEST_SOUND} finite float32 samples"
            )
        wave = torch.from_numpy(np.ascontiguousarray(sound)).to(self._device)
        return self.audio.file_features(wave, self.geometry.frames_per_block * self.geometry.blocks_per_clip)

    def _pose(self, session: Session, request: BlockRequest) -> Tensor:
        return self.dit.pose(self._track(session, request), self._frames, *self._size)

    def _track(self, session: Session, request: BlockRequest) -> Tensor | None:
        """What the transformer's pose condition is made of; None for a zero pose."""
        if session.pose is not None:
            return session.pose.block(request.block, request.pose)
        if session.motion is None:
            return None
        heard = all_together(request.window)
        track = session.motion.block(request.block, heard, self.config.audio.left_samples, posture=request.posture)
        return torch.from_numpy(track)[None, :, :, None, None].to(self._device)

    # What a session is made of.

    def _session(self, name: str) -> Session:
        try:
            return self._sessions[name]
        except KeyError:
            raise UnknownSessionError(f"session {name} is not open; open it before sending blocks") from None

    def _prompt(self, prompt: str) -> TextKV:
        return self.dit.text_kv(self.text.encode(prompt).to(self._device))

    def _silence(self, speakers: int, weights: Tensor | None) -> AudioCondition | None:
        if self._negative is None:
            return None
        shape = (self.config.dit.audio_layers, self.config.dit.audio_dim, self.geometry.frames_per_block)
        return self.dit.audio_condition(torch.zeros(1, speakers, *shape, device=self._device), weights)

    def _pose_video(self) -> PoseVideo:
        dit, vae = self.config.dit, self.config.vae
        if self.config.motion.enabled or vae.kind != "wan" or dit.cond_dim != vae.z_dim:
            raise UnsupportedError(
                f"checkpoint {self.config.name} takes no pose video: its head follows its own motion controller, not "
                "pictures; leave the pose video out, or use a released folder"
            )
        return PoseVideo(self.vae, self._fit, self.geometry, self._device)

    def _portrait(self, image: np.ndarray, past: np.ndarray | None = None) -> Portrait:
        picture = self._fit(image, self.geometry.width, self.geometry.height)
        still, psnr_db = self._look_at(picture, past)
        return Portrait(picture=picture, still=still, psnr_db=psnr_db)

    def _look_at(self, picture: np.ndarray, past: np.ndarray | None) -> tuple[Still, float]:
        """What the VAE makes of a fitted picture, and how well it reproduces it in dB."""
        return self._screen.look_at(picture, self._device, past)

    def _reprompt(self, session: Session, text: TextKV) -> None:
        self.denoiser.recondition(session.stream, text=text)

    def _end(self, stream: StreamState) -> None:
        """Give a stream's rings back before the next one takes its own: cards have room for one."""
        for state in (stream, stream.negative):
            if state is not None:
                state.rings.clear()

    def _start(self, text: TextKV, portrait: Portrait, weights: Tensor | None) -> StreamState:
        past = portrait.still.past if self.config.dit.enable_framepack else None
        return self.denoiser.start(text, portrait.still.reference, past, self._negative)


def load_model(run: RunConfig | Mapping[str, Any] | None = None, plan: Plan | None = None) -> Generator:
    """Read a checkpoint and choose how to run it on this machine, in this process.

    Args:
        run: which checkpoint and how; plain values are taken as the fields of `RunConfig`.
        plan: of one device; with `offload` the transformer's layers, or its rings too, stay in host memory.

    Raises:
        CheckpointError: the file is missing, broken or does not fit.
        UnsupportedError: a setting is wrong, or does not fit the checkpoint.
    """
    try:
        if not isinstance(run, RunConfig):
            run = RunConfig.from_dict(dict(run or {}))
        plan = plan or Plan()
        keeps_rings = plan.offload == "weights+kv"
        config, modules = load_offloaded(run, keeps_rings) if plan.kind == "offload" else load_weights(run)
        config = with_choices(config, modules, run)
        if plan.vae == "tiled":
            decode_in_tiles(modules["vae"], config.name)
        allocate = LayerBuffers(modules["dit"].device).allocate if keeps_rings else RollingCache.allocate
        profile = choose_profile(config, modules, run, allocate)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    for reason in profile.reasons.values():
        log.info("%s", reason)
    return Generator(config, modules, profile, run.noise, run, allocate=allocate)

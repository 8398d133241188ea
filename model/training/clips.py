"""Clips for training: speech with its mouth curves, motion from the live controller, pictures from the renderer.

Sound, gate and motion are made exactly as the live path makes them, so the model meets nothing new when it is served.

Letters: B clips, T pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.motion import LIMIT, MotionSizes, pose_condition, pose_tracks, posture_offset, talk_activity
from model.training import render
from model.training.render import palette
from model.training.sitting import DEVICE

FPS = 25
SAMPLES_PER_FRAME = 640
LEFT_FRAMES = 46
"""Pictures of sound before a clip: the live window's left context."""
LOOKAHEAD_SAMPLES = 1280
FULL_BEARD = palette.BEARD.index("full")
SPEECH_PARAMETERS = ("jaw", "open", "width", "round", "press", "ftuck", "teeth", "tongue")
MOODS = {
    #             smile brow  tilt   words
    "neutral": ((0.08, 0.0, 0.0), ("a calm neutral face", "neutral portrait", "relaxed person", "")),
    "happy": ((0.70, 0.18, 0.0), ("a happy smiling person", "cheerful joyful face", "smiling warmly", "happy")),
    "sad": ((-0.40, 0.05, 0.6), ("a sad person", "unhappy gloomy face", "sorrowful", "sad")),
    "surprised": ((0.08, 0.75, 0.1), ("surprised astonished face", "a person in wonder", "amazed", "surprised")),
    "stern": ((-0.15, -0.38, -0.5), ("stern serious look", "an angry strict face", "serious", "stern")),
}


@dataclass(frozen=True, slots=True)
class SpeechSet:
    """Streams of speech on the device."""

    wave: Tensor
    """[N, samples] int16 at 16 kHz."""
    curves: Tensor
    """[N, n, 8] float16 mouth curves at 100 Hz."""
    classes: Tensor
    """[N, n] uint8 viseme class at 100 Hz, 0 is silence."""

    @classmethod
    def load(cls, path: Path) -> SpeechSet:
        data = np.load(path)
        return cls(
            torch.from_numpy(data["wav"]).to(DEVICE),
            (torch.from_numpy(data["curves"]).float() / 100).half().to(DEVICE),
            torch.from_numpy(data["cls"]).to(DEVICE),
        )


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Everything about B clips but their pictures."""

    wave: Tensor
    """[B, (LEFT_FRAMES + T) * 640 + 1280] float32: sound with the window's context."""
    gate: Tensor
    """Same shape: 1 where the live gate would let the sound through."""
    curves: Tensor
    """[B, T, 8] mouth curves, the truth."""
    tracks: Tensor
    """[B, T, P] what the motion controller made."""
    pose: Tensor
    """[B, channels, T/4] the pose condition."""
    mood: Tensor
    """[B] index into MOODS."""

    def motion(self) -> dict[str, Tensor]:
        """Renderer parameters, [B, T] each."""
        values = {name: self.curves[..., i] for i, name in enumerate(SPEECH_PARAMETERS)}
        yaw, pitch, roll, tx, ty, blink, gaze_x, gaze_y, brow, breath = self.tracks.unbind(-1)
        table = torch.tensor([m[0] for m in MOODS.values()], device=yaw.device)[self.mood]
        values |= dict(yaw=yaw, pitch=pitch, roll=roll, tx=tx, ty=ty, blink=blink, gaze_x=gaze_x, gaze_y=gaze_y)
        values["breath"] = breath
        values["brow"] = (brow + table[:, 1:2]).clamp(-0.7, 1)
        values["smile"] = table[:, :1].expand_as(yaw)
        values["brow_tilt"] = table[:, 2:3].expand_as(yaw)
        return values


def speech_gate(classes: Tensor, samples: int, slack: Tensor) -> Tensor:
    """[B, samples] 0/1 gate from viseme classes at 100 Hz, opened `slack` [B, 2] seconds early and late."""
    spoken = (classes > 0).float()
    t = torch.arange(spoken.shape[1], device=spoken.device)
    far = torch.full_like(spoken, 1e6)
    last = torch.where(spoken > 0, t.float(), -far).cummax(1).values
    coming = torch.where(spoken > 0, t.float(), far).flip(1).cummin(1).values.flip(1)
    opened = ((t - last) <= slack[:, 1:] * 100) | ((coming - t) <= slack[:, :1] * 100)
    return opened.float().repeat_interleave(160, 1)[:, :samples]


def plan_clips(speech: SpeechSet, count: int, frames: int, seed: int) -> ClipPlan:
    """Draw B = count clips of T = frames pictures; the same seed gives the same clips."""
    gen = torch.Generator(DEVICE).manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=gen, device=DEVICE)  # noqa: E731
    total = LEFT_FRAMES + frames
    samples = total * SAMPLES_PER_FRAME + LOOKAHEAD_SAMPLES
    stream = (rand(count) * speech.wave.shape[0]).long()
    last = speech.wave.shape[1] // SAMPLES_PER_FRAME - total - 3
    start = (rand(count) * last).long()
    index = start[:, None] * SAMPLES_PER_FRAME + torch.arange(samples, device=DEVICE)
    wave = speech.wave[stream[:, None], index].float() / 32768
    step = (start * 4)[:, None] + torch.arange(samples // 160, device=DEVICE)
    slack = torch.stack([0.02 + 0.06 * rand(count), 0.10 + 0.20 * rand(count)], 1)
    gate = speech_gate(speech.classes[stream[:, None], step], samples, slack)
    first = LEFT_FRAMES * 4
    curves = speech.curves[stream[:, None], step].float()[:, first : first + frames * 4]
    curves = curves.unflatten(1, (frames, 4)).mean(2)
    tracks = _controller_tracks((wave * gate)[:, : total * SAMPLES_PER_FRAME], frames, seed)
    pose = torch.from_numpy(pose_condition(tracks.copy())).float().to(DEVICE)
    mood = (rand(count) * len(MOODS)).long()
    mood = torch.where(rand(count) < 0.35, torch.zeros_like(mood), mood)
    return ClipPlan(wave, gate, curves, torch.from_numpy(tracks).to(DEVICE), pose, mood)


def _controller_tracks(gated: Tensor, frames: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = gated.shape[0]
    talk, nod = talk_activity(gated.cpu().numpy(), SAMPLES_PER_FRAME)
    seeds, first = rng.integers(0, 2**31, count), rng.integers(0, 10**5, count)
    parts = []
    amplitude = rng.uniform(0.7, 1.4, count)
    for low in np.linspace(0.7, 1.4, 8)[:-1]:
        chosen = np.nonzero((amplitude >= low) & (amplitude < low + 0.1))[0]
        if len(chosen):
            sizes = MotionSizes(amplitude=float(low + 0.05))
            parts.append((chosen, pose_tracks(seeds[chosen], first[chosen], talk[chosen], nod[chosen], sizes)))
    tracks = np.zeros((count, talk.shape[1], parts[0][1].shape[-1]), np.float32)
    for chosen, value in parts:
        tracks[chosen] = value
    tracks = tracks[:, LEFT_FRAMES : LEFT_FRAMES + frames]
    postures = [posture_offset(p) for p in ("idle", "speaking", "listening", "thinking")]
    choice = rng.choice(4, count, p=(0.4, 0.35, 0.15, 0.1))
    return np.clip(tracks + np.stack(postures)[choice][:, None], -LIMIT, LIMIT)


class Renderer:
    """Renders clips in batches of fixed size; compiled on a GPU."""

    def __init__(self, size: int, batch: int | None = None) -> None:
        self.size, self.batch = size, batch or (64 if DEVICE.type == "cuda" else 8)
        self._render = render.compiled() if DEVICE.type == "cuda" else render.render

    @torch.no_grad()
    def frames(self, identity: dict[str, Tensor], motion: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """n pictures.

        Args:
            identity: tables of n identities. motion: [n] each.

        Returns:
            uint8 [n, 3, S, S]; mouth centre [n, 2] and eye centres [n, 2, 2] as x, y in 0..1; aperture [n].
        """
        n = identity["skin"].shape[0]
        pictures, mouths, eyes, apertures = [], [], [], []
        for low in range(0, n, self.batch):
            index = torch.arange(low, low + self.batch, device=DEVICE).clamp(max=n - 1)
            image, aux = self._render(render.take(identity, index), {k: v[index] for k, v in motion.items()}, self.size)
            keep = min(self.batch, n - low)
            pictures.append((image[:keep] * 255).round().clamp(0, 255).to(torch.uint8))
            mouths.append(aux["mouth_xy"][:keep] / 2 + 0.5)
            eyes.append(aux["eyes"][:keep] / 2 + 0.5)
            apertures.append(aux["aperture"][:keep])
        return torch.cat(pictures), torch.cat(mouths), torch.cat(eyes), torch.cat(apertures)

    @torch.no_grad()
    def clips(self, identity: dict[str, Tensor], motion: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clips of B identities under [B, T] motion: [B, T, 3, S, S], [B, T, 2], [B, T, 2, 2], [B, T]."""
        batch, frames = motion["yaw"].shape
        index = torch.arange(batch, device=DEVICE).repeat_interleave(frames)
        flat = {k: v.reshape(-1) for k, v in motion.items()}
        out = self.frames(render.take(identity, index), flat)
        return tuple(t.unflatten(0, (batch, frames)) for t in out)


def draw_identities(count: int, seed: int, hero_share: float = 0.2, beard_share: float = 0.0) -> dict[str, Tensor]:
    """Random identities, with more full beards and the gallery's heroes mixed in.

    A full beard hides the line between the lips, so it needs more examples than the one man in ten that wears one; the
    heroes are mixed in so that the shipped portraits are learned best.

    Args:
        count: identities to draw.
        hero_share: share of them that is one of the gallery's.
        beard_share: share that is redrawn as men with a full beard, before the heroes are mixed in.
    """
    gen = torch.Generator(DEVICE).manual_seed(seed)
    people = render.sample_identity(count, gen, DEVICE)
    if beard_share > 0:
        bearded = render.sample_identity(count, gen, DEVICE, {"beard": FULL_BEARD, "feminine": 0})
        people = _mixed(people, bearded, torch.rand(count, generator=gen, device=DEVICE) < beard_share)
    if hero_share > 0:
        heroes = {k: v.to(DEVICE) for k, v in render.heroes().items()}
        which = (torch.rand(count, generator=gen, device=DEVICE) * heroes["skin"].shape[0]).long()
        use = torch.rand(count, generator=gen, device=DEVICE) < hero_share
        people = _mixed(people, render.take(heroes, which), use)
    return people


def _mixed(table: dict[str, Tensor], other: dict[str, Tensor], use: Tensor) -> dict[str, Tensor]:
    """Rows of `other` where `use` [n], rows of `table` elsewhere."""
    return {k: torch.where(use.view(-1, *[1] * (v.dim() - 1)), other[k].to(v.dtype), v) for k, v in table.items()}


def random_motion(count: int, gen: torch.Generator) -> dict[str, Tensor]:
    """Independent motion parameters over their whole range, for references and the measuring networks."""
    u = lambda lo, hi: lo + (hi - lo) * torch.rand(count, generator=gen, device=DEVICE)  # noqa: E731
    motion = render.neutral(count, DEVICE)
    closed = u(0, 1) < 0.35
    opening = u(0, 1.2) * (~closed)
    motion |= dict(open=opening, jaw=(opening * u(0.5, 1.1) + 0.1 * u(0, 1)) * (~closed), width=u(-0.2, 1.1))
    motion |= dict(round=u(0, 1) * (u(0, 1) > 0.6), press=(u(0, 1) > 0.85).float() * u(0.3, 1))
    motion |= dict(ftuck=(u(0, 1) > 0.88).float() * u(0.3, 1), teeth=u(0, 1) * (~closed), tongue=u(0, 1) * (~closed))
    motion |= dict(smile=u(-0.5, 0.9), blink=u(-2, 1).clamp(0, 1), gaze_x=u(-0.7, 0.7), gaze_y=u(-0.4, 0.4))
    motion |= dict(brow=u(-0.6, 0.9), brow_tilt=u(-0.7, 0.7), yaw=u(-0.33, 0.33), pitch=u(-0.18, 0.18))
    motion |= dict(roll=u(-0.13, 0.13), tx=u(-0.06, 0.06), ty=u(-0.05, 0.05), breath=u(-1, 1))
    return {k: v.float() for k, v in motion.items()}


def box_mask(centre: Tensor, grid: int, half_width: float, half_height: float) -> Tensor:
    """Boxes of 1 around centres [..., 2] (x, y in 0..1) on a grid: [..., grid, grid]."""
    cells = (torch.arange(grid, device=centre.device) + 0.5) / grid
    dx, dy = (cells - centre[..., :1]).abs() / half_width, (cells - centre[..., 1:]).abs() / half_height
    return ((dx < 1)[..., None, :] & (dy < 1)[..., :, None]).float()

"""Stage `eval`: held-out people speak held-out sentences through the streaming path; figures and pictures.

The gates of the checkpoint are measured here with the evaluation meter, on which nothing was trained: lips follow,
mismatched sound must not, offset, closed mouth in silence, closures, identity after a minute, block seams, sharpness.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.audio import AudioEncoder
from model.config import ModelConfig, tiny
from model.training.clips import MOODS, SpeechSet
from model.training.figures import correlation, lag_ms, psnr_db, save_png, sheet
from model.training.latents import LatentSet, build
from model.training.measure_stage import CLASSES, READ, Meter
from model.training.rollout import Rollout, laplacian, roll
from model.training.sitting import DEVICE, autocast, load_shards, set_up
from model.training.teacher import Student, load_audio, load_vae
from model.vae import LightVAE
from model.weights import load_checkpoint

INDEX = {name: i for i, name in enumerate(READ)}
OPEN = INDEX["open"]


@dataclass(frozen=True, slots=True)
class Kit:
    """Everything an evaluation needs."""

    config: ModelConfig
    student: Student
    vae: LightVAE
    meter: Meter
    sigmas: tuple[float, ...]
    history: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The model under test."""

    config: ModelConfig
    student: Student
    vae: LightVAE
    audio: AudioEncoder


def load_trained(work: Path, checkpoint: Path | None) -> Trained:
    """A checkpoint file as it ships (stored precision included), or the working folder's weights."""
    if checkpoint is None:
        student = Student(tiny()).to(DEVICE).eval().requires_grad_(False)
        student.load_state_dict(load_shards(work / "teacher")[0])
        return Trained(tiny(), student, load_vae(work), load_audio(work))
    config, modules = load_checkpoint(checkpoint)
    student = Student(config)
    student.dit, student.text = modules["dit"], modules["text"]
    student = student.to(DEVICE).eval().requires_grad_(False)
    vae = modules["vae"].to(DEVICE, memory_format=torch.channels_last)
    return Trained(config, student, vae, modules["audio"].to(DEVICE))


def load_meter(work: Path) -> Meter:
    stored, note = load_shards(work / "meter_eval")
    meter = Meter(note["width"]).to(DEVICE, memory_format=torch.channels_last).eval().requires_grad_(False)
    stored.pop(CLASSES, None)
    meter.load_state_dict(stored)
    return meter


def loudness(wave: Tensor, frames: int, offset: int) -> tuple[Tensor, Tensor]:
    """Per picture RMS and log energy of a wave [B, samples] from sample `offset` on: [B, frames] each."""
    cut = wave[:, offset : offset + frames * 640].unflatten(1, (frames, 640))
    rms = cut.square().mean(2).sqrt()
    return rms, torch.log(rms + 0.003)


def lip_figures(measured: Tensor, truth: Tensor, closing: Tensor) -> dict[str, float]:
    """measured, truth, closing [B, T]: correlation, lag, closures, amplitude."""
    now, best, lag = lag_ms(measured, truth)
    top = measured.amax(1, keepdim=True)
    shut = measured < 0.15 * top
    vowel = truth > 0.6 * truth.amax(1, keepdim=True)
    return dict(
        correlation=now.mean().item(), best=best.mean().item(), worst=now.min().item(),
        lag_ms=lag.mean().item(), lag_ms_largest=lag.abs().amax().item(),
        closures=shut[closing > 0.5].float().mean().item(), false_closures=shut[vowel].float().mean().item(),
        amplitude=(measured.std(1) / truth.std(1)).mean().item(),
    )  # fmt: skip


def silence_share(read: Tensor, curves: Tensor, legible: Tensor) -> dict[str, float]:
    """Share of quiet pictures with a closed mouth: aperture under 5 % of the speaking range (0.05).

    Also where the meter reads the rendered truth of that very picture as closed (`legible`, [B, T] bool: on a few
    faces it misreads even a drawn closed mouth), by how long speech has been over, and of the worst clip; NaN where
    nothing is quiet.
    """
    shut = (read[..., OPEN] < 0.05).float()
    spans = {"all": (5, None), "200ms": (5, 8), "320ms": (8, 13), "520ms": (13, None)}
    quiet = {
        name: quiet_pictures(curves, a) & ~quiet_pictures(curves, b) if b else quiet_pictures(curves, a)
        for name, (a, b) in spans.items()
    }
    every = quiet["all"]
    counts = every.sum(1)
    clips = (shut * every).sum(1)[counts >= 12] / counts[counts >= 12]
    figures = {f"closed_{name}": shut[q].mean().item() for name, q in quiet.items()}
    return figures | dict(
        closed_legible=shut[every & legible].mean().item(),
        pictures=int(counts.sum()), worst_clip=clips.amin().item() if len(clips) else float("nan"),
        mean=read[..., OPEN][every].mean().item(),
    )  # fmt: skip


def quiet_pictures(curves: Tensor, after: int = 5) -> Tensor:
    """Pictures at least `after` past any speech and before any: [B, T] bool."""
    moving = (curves[..., :4].abs().amax(-1) > 0.02).float()[:, None]
    near = F.max_pool1d(F.pad(moving, (after, 2)), after + 3, 1)[:, 0]
    return near < 0.5


@torch.inference_mode()
def read_rendered(meter: Meter, video: Tensor) -> Tensor:
    """What the meter reads in the rendered truth: video uint8 [B, T, 3, H, W] to [B, T, len(READ)]."""
    with autocast():
        return torch.cat([meter(v.float() / 255)[0].float()[None] for v in video])


def true_pictures(kit: Kit, data: LatentSet, video: Tensor, rendered: Tensor) -> dict[str, object]:
    """The ceiling: the meter on rendered truth and on the VAE's reconstruction of it."""
    frames = video.shape[1]
    truth = data.plan.curves[:, :frames]
    out: dict[str, object] = {}
    with torch.inference_mode(), autocast():
        z = data.latents[: video.shape[0]].float().transpose(1, 2).flatten(2, 3)
        decoded = [kit.vae.decode(x[None])[0][0].transpose(0, 1).float() / 2 + 0.5 for x in z]
        again = torch.cat([kit.meter(v.clamp(0, 1))[0].float()[None] for v in decoded])
    for name, read in (("rendered", rendered), ("reconstructed", again)):
        out[name] = lip_figures(read[..., OPEN], truth[..., 1], truth[..., 4])
        out[name]["silence"] = silence_share(read, truth, rendered[..., OPEN] < 0.05)
    out["sharpness"] = laplacian(video[:, 30].float() / 255).mean().item()
    sharp = torch.stack([d[30] for d in decoded])
    out["sharpness_reconstructed"] = laplacian(sharp.clamp(0, 1)).mean().item()
    return out


def short_runs(kit: Kit, data: LatentSet, video: Tensor, rendered: Tensor, waves: Tensor) -> tuple[dict, Rollout]:
    """Clean and damaged sound, mismatched sound, loudness baseline, seams, picture figures against the rendering."""
    blocks = data.latents.shape[1]
    truth = data.plan.curves
    keep = frozenset(range(blocks))
    run = lambda features, kept=frozenset(): roll(  # noqa: E731
        kit.student, kit.vae, kit.meter, kit.config, data.references[:, 0], data.prompts, features,
        data.pose, kit.sigmas, kept, kit.history,
    )  # fmt: skip
    clean = run(data.features[0], keep)
    figures: dict[str, object] = {"clean": lip_figures(clean.read[..., OPEN], truth[..., 1], truth[..., 4])}
    if data.features.shape[0] > 1:
        figures["damaged"] = lip_figures(run(data.features[1]).read[..., OPEN], truth[..., 1], truth[..., 4])
    other = clean.read[..., OPEN]
    figures["mismatched"] = correlation(other, truth.roll(1, 0)[..., 1]).mean().item()
    rms, log = loudness(waves, truth.shape[1], 46 * 640)
    base = [correlation(x, truth[..., 1]).mean().item() for x in (rms, rms.sqrt(), log)]
    figures["loudness"] = max(base)
    figures["silence"] = silence_share(clean.read, truth, rendered[..., OPEN] < 0.05)
    for i, name in ((2, "width"), (3, "round")):
        figures[name] = correlation(clean.read[..., INDEX[name]], truth[..., i]).mean().item()
    for i, name in ((0, "yaw"), (1, "pitch"), (5, "blink"), (6, "gaze_x")):
        figures[name] = correlation(clean.read[..., INDEX[name]], data.plan.tracks[..., i]).mean().item()
    figures["seams"] = (clean.seam[:, 1:].mean() / clean.inside[:, 1:].mean()).item()
    figures["sharpness"] = clean.sharpness[:, 1:].mean().item()
    return figures | picture_figures(clean, data, video), clean


def picture_figures(run: Rollout, data: LatentSet, video: Tensor) -> dict[str, float]:
    """Generated against rendered pictures of the same motion."""
    made = torch.cat([run.kept[b] for b in sorted(run.kept)], 1)[:, ::6].float() / 255
    true = video[:, : 12 * len(run.kept) : 6].cpu().float() / 255
    step = (true[:, 1:] - true[:, :-1]).abs().mean()
    return dict(psnr=psnr_db(made, true).mean().item(), true_step=step.item())


def prompt_figures(kit: Kit, data: LatentSet) -> dict[str, float]:
    """Smile and brow that the meter reads for each mood's first words."""
    count = min(8, data.latents.shape[0])
    out = {}
    for mood, (_, words) in MOODS.items():
        run = roll(
            kit.student, kit.vae, kit.meter, kit.config, data.references[:count, 0], [words[0]] * count,
            data.features[0][:count, ..., :60], data.pose[:count, :, :15], kit.sigmas, history=kit.history,
        )  # fmt: skip
        out[f"smile_{mood}"] = run.read[:, 24:, INDEX["smile"]].mean().item()
        out[f"brow_{mood}"] = run.read[:, 24:, INDEX["brow"]].mean().item()
    return out


def long_run(kit: Kit, data: LatentSet, who: Tensor, blocks: int) -> tuple[dict, Rollout]:
    """The clips' sound in a circle for a long time: identity, colours, sharpness, lips at both ends."""
    have = data.latents.shape[1]
    times = -(-blocks // have)
    features = data.features[0].repeat(1, 1, 1, times)[..., : 12 * blocks]
    pose = data.pose.repeat(1, 1, times)[..., : 3 * blocks]
    truth = data.plan.curves.repeat(1, times, 1)[:, : 12 * blocks]
    marks = frozenset({1, blocks // 2, blocks - 2})
    run = roll(
        kit.student, kit.vae, kit.meter, kit.config, data.references[:, 0], data.prompts, features, pose,
        kit.sigmas, marks, kit.history, seed=9,
    )  # fmt: skip
    part = max(24, 12 * blocks // 5)
    ends = [correlation(run.read[:, s, OPEN], truth[:, s, 1]).mean().item() for s in (slice(part), slice(-part, None))]
    cosine = (run.who * who[:, None]).sum(-1)
    q = max(2, blocks // 5)
    drift = (run.colour[:, -q:].mean(1) - run.colour[:, 2 : q + 2].mean(1)).abs()
    return dict(
        seconds=blocks * 0.48, correlation_first=ends[0], correlation_last=ends[1],
        identity_first=cosine[:, :q].mean().item(), identity_last=cosine[:, -q:].mean().item(),
        identity_worst=cosine[:, -q:].mean(1).min().item(),
        background_shift=drift[:, :3].mean().item(), skin_shift=drift[:, 3:6].mean().item(),
        cloth_shift=drift[:, 6:].mean().item(),
        sharpness=(run.sharpness[:, -q:].mean() / run.sharpness[:, 2 : q + 2].mean()).item(),
    ), run  # fmt: skip


def save_long(path: Path, run: Rollout, rows: int = 6) -> None:
    """Pictures of the start, the middle and the end of a long run."""
    marks = sorted(run.kept)
    lines = [[run.kept[b][i, 5].float() / 255 for b in marks] for i in range(min(rows, run.read.shape[0]))]
    save_png(path, F.interpolate(sheet(lines)[None], scale_factor=0.5, mode="area")[0])


def save_pictures(folder: Path, tag: str, run: Rollout, video: Tensor, rows: int = 6) -> None:
    """Rendered truth above generated pictures, whole and as mouths."""
    made = torch.cat([run.kept[b] for b in sorted(run.kept)], 1).float() / 255
    true = video.cpu().float() / 255
    picked = list(range(12, min(made.shape[1], 96), 7))[:10]
    lines = []
    for i in range(min(rows, made.shape[0])):
        lines += [[true[i, t] for t in picked], [made[i, t] for t in picked]]
    save_png(folder / f"rollout{tag}.png", F.interpolate(sheet(lines)[None], scale_factor=0.5, mode="area")[0])
    mouths = []
    s = made.shape[-1]
    crop = lambda p: p[:, int(0.42 * s) : int(0.72 * s), int(0.3 * s) : int(0.7 * s)]  # noqa: E731
    shown = range(24, 40) if made.shape[1] >= 40 else range(8)
    for i in range(min(4, made.shape[0])):
        mouths += [[crop(true[i, t]) for t in shown], [crop(made[i, t]) for t in shown]]
    save_png(folder / f"mouths{tag}.png", sheet(mouths))


def save_silence(path: Path, run: Rollout, curves: Tensor, video: Tensor, rows: int = 5) -> None:
    """Rendered truth above generated pictures of the clips whose mouths read least closed in silence."""
    quiet = quiet_pictures(curves)
    open_share = ((run.read[..., OPEN] >= 0.05) & quiet).sum(1)
    made = torch.cat([run.kept[b] for b in sorted(run.kept)], 1)
    lines = []
    for i in open_share.argsort(descending=True)[:rows].tolist():
        at = quiet[i].nonzero()[:, 0].cpu()
        if len(at):
            picked = at[torch.linspace(0, len(at) - 1, 8).long()].tolist()
            lines += [[v[i, t].cpu().float() / 255 for t in picked] for v in (video, made)]
    if lines:
        save_png(path, F.interpolate(sheet(lines)[None], scale_factor=0.5, mode="area")[0])


def run(
    work: Path,
    settings: list[tuple[tuple[float, ...], str, bool]],
    smoke: bool = False,
    clips: int = 32,
    minutes: float = 1.0,
    checkpoint: Path | None = None,
) -> dict[str, object]:
    """Figures of every setting (noise levels, ring policy, small decoder) and pictures; the first also runs long."""
    set_up()
    speech = SpeechSet.load(work / "speech_held.npz")
    size, count, blocks, long_blocks = (64, 2, 3, 4) if smoke else (256, clips, 14, int(125 * minutes))
    trained = load_trained(work, checkpoint)
    data, _, video = build(trained.vae, trained.audio, speech, count, blocks, size, 770_077, 2, 0.25, keep_video=True)
    meter = load_meter(work)
    rendered = read_rendered(meter, video)
    results: dict[str, object] = {}
    for index, (sigmas, history, is_small) in enumerate(settings):
        trained.vae.uses_small = is_small
        kit = Kit(trained.config, trained.student, trained.vae, meter, sigmas, history)
        figures: dict[str, object] = {"sigmas": list(sigmas), "history": history, "small_decoder": is_small}
        short, clean = short_runs(kit, data, video, rendered, data.plan.wave * data.plan.gate)
        figures |= short
        print(json.dumps(_rounded(figures)), flush=True)
        if index == 0:
            figures["ceiling"] = true_pictures(kit, data, video, rendered)
            figures["prompt"] = prompt_figures(kit, data)
            figures["long"], long = long_run(kit, data, portrait_vectors(kit, data), long_blocks)
            save_long(work / "pictures" / "long.png", long)
        tag = f"{len(sigmas)}_{history}" + ("_small" if is_small else "")
        save_pictures(work / "pictures", f"_{index}_{tag}", clean, video)
        save_silence(work / "pictures" / f"silence_{index}_{tag}.png", clean, data.plan.curves, video)
        results[f"{index}_{tag}"] = _rounded(figures)
    print(json.dumps(results), flush=True)
    return results


@torch.inference_mode()
def portrait_vectors(kit: Kit, data: LatentSet) -> Tensor:
    """Identity vectors of the references as the decoder shows them: [B, 64]."""
    with autocast():
        still = kit.vae.decode(data.references[:, 0].float().expand(-1, -1, 4, -1, -1))[0][:, :, 12]
        return kit.meter((still.float() / 2 + 0.5).clamp(0, 1))[1].float()


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value

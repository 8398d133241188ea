"""Stage `audio`: the speech encoder on labels that come for free: mouth curves, viseme classes, closures, speech."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio import AudioEncoder, AudioSizes, level
from model.interface import WindowSpec
from model.speech_columns import num_states
from model.training.augment import damage
from model.training.clips import LOOKAHEAD_SAMPLES, SpeechSet, speech_gate
from model.training.figures import correlation
from model.training.sitting import DEVICE, Average, Sitting, adamw, autocast, load_shards, save_shards, set_rate

WINDOW = WindowSpec(left_samples=29_440, lookahead_samples=LOOKAHEAD_SAMPLES, block_samples=7680)
STATES = num_states(WINDOW.samples)
CURVE_WEIGHT = torch.tensor([1, 2, 1, 1.5, 1.5, 1.5, 0.7, 0.5])


class LabelHeads(nn.Module):
    """Read the labels from the last hidden state; used in training only."""

    def __init__(self, dim: int, classes: int = 22) -> None:
        super().__init__()
        self.curves, self.classes = nn.Linear(dim, 8), nn.Linear(dim, classes)
        self.closure, self.voice = nn.Linear(dim, 1), nn.Linear(dim, 1)


def draw(speech: SpeechSet, count: int, damaged: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Windows as the live path hands them over: wave [B, samples] gated, curves [B, states, 8], classes."""
    i = torch.randint(0, speech.wave.shape[0], (count, 1), device=DEVICE)
    start = torch.randint(0, (speech.wave.shape[1] - WINDOW.samples) // 320 - 1, (count, 1), device=DEVICE) * 320
    wave = speech.wave[i, start + torch.arange(WINDOW.samples, device=DEVICE)].float() / 32768
    at = start // 160 + 2 * torch.arange(STATES, device=DEVICE)
    curves = (speech.curves[i, at].float() + speech.curves[i, at + 1].float()) / 2
    classes = speech.classes[i, start // 160 + torch.arange(WINDOW.samples // 160, device=DEVICE)]
    slack = torch.stack(
        [0.02 + 0.06 * torch.rand(count, device=DEVICE), 0.1 + 0.2 * torch.rand(count, device=DEVICE)], 1
    )
    gate = speech_gate(classes, WINDOW.samples, slack)
    gate = torch.where(torch.rand(count, 1, device=DEVICE) < 0.75, gate, torch.ones_like(gate))
    if damaged:
        wave = damage(wave)
    return wave * gate, curves, speech.classes[i, at].long()


def label_loss(encoder: AudioEncoder, heads: LabelHeads, wave: Tensor, curves: Tensor, classes: Tensor) -> Tensor:
    hidden = encoder.wav2vec2(level(wave)).last_hidden_state
    c, k = heads.curves(hidden).float(), heads.classes(hidden).float()
    closing, voiced = heads.closure(hidden)[..., 0].float(), heads.voice(hidden)[..., 0].float()
    near = F.max_pool1d((curves[..., 4] > 0.5).float()[:, None], 5, 1, 2)[:, 0]
    w = CURVE_WEIGHT.to(wave.device) * (1 + 2 * near[..., None])
    loss = 4 * ((c - curves).square() * w).mean()
    loss = loss + 2 * ((c.diff(dim=1) - curves.diff(dim=1)).square() * w[:, 1:]).mean()
    closed = (curves[..., 4] > 0.45).float()
    p = torch.sigmoid(closing)
    focal = F.binary_cross_entropy_with_logits(closing, closed, reduction="none")
    loss = loss + (focal * torch.where(closed > 0, 3 * (1 - p) ** 2, p**2)).mean()
    loss = loss + 0.15 * F.cross_entropy(k.flatten(0, 1), classes.flatten())
    return loss + 0.1 * F.binary_cross_entropy_with_logits(voiced, (classes > 0).float())


@torch.no_grad()
def evaluate(encoder: AudioEncoder, heads: LabelHeads, speech: SpeechSet, damaged: bool) -> dict[str, float]:
    torch.manual_seed(1)
    read, truth = [], []
    for _ in range(4):
        wave, curves, _ = draw(speech, 64, damaged)
        with autocast():
            read.append(heads.curves(encoder.wav2vec2(level(wave)).last_hidden_state).float())
        truth.append(curves)
    p, y = torch.cat(read)[:, 92:116], torch.cat(truth)[:, 92:116]
    names = ("jaw", "open", "width", "round", "press", "ftuck")
    figures = {n: round(correlation(p[..., i].flatten(), y[..., i].flatten()).item(), 3) for i, n in enumerate(names)}
    figures["closures"] = round((p[..., 4] > 0.35)[y[..., 4] > 0.5].float().mean().item(), 3)
    figures["false_closures"] = round((p[..., 4] > 0.35)[y[..., 4] < 0.1].float().mean().item(), 4)
    return figures


def run(work: Path, seconds: float, smoke: bool = False, resume: bool = False) -> dict[str, object]:
    speech, held = SpeechSet.load(work / "speech.npz"), SpeechSet.load(work / "speech_held.npz")
    batch = 8 if smoke else 192
    encoder = AudioEncoder(AudioSizes(), WINDOW).to(DEVICE)
    heads = LabelHeads(AudioSizes().dim).to(DEVICE)
    both = nn.ModuleDict({"encoder": encoder, "heads": heads})
    if resume:
        both.load_state_dict(load_shards(work / "audio")[0])
    optimiser, average, sitting = adamw(both.parameters()), Average(both), Sitting("audio", seconds)
    while not sitting.done:
        wave, curves, classes = draw(speech, batch, True)
        quiet = max(1, batch // 16)
        wave[:quiet] = damage(1e-4 * torch.randn_like(wave[:quiet]))
        curves[:quiet], classes[:quiet] = 0, 0
        set_rate(optimiser, sitting.rate(1e-3))
        with autocast():
            loss = label_loss(encoder, heads, wave, curves, classes)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        average.update()
        if sitting.tick(loss):
            sitting.report()
    both.load_state_dict(average.values)
    both.eval()
    figures = {"clean": evaluate(encoder, heads, held, False), "damaged": evaluate(encoder, heads, held, True)}
    sitting.report(str(figures))
    save_shards(work / "audio", both.state_dict(), figures | {"steps": sitting.iteration})
    return figures

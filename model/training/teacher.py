"""Stage `teacher`: block-causal flow matching on latents, with the rings' own visibility.

Most samples share one noise level over all blocks, since at inference a step reads the keys that earlier blocks left
at the same step; the rest have a level per block. Part of the history is damaged, which is what keeps long streams
from drifting.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from model.audio import AudioEncoder
from model.config import ModelConfig, tiny
from model.training.audio_stage import WINDOW
from model.training.clips import SpeechSet
from model.training.latents import REFERENCES, LatentSet, build
from model.training.optimiser import Muon
from model.training.parallel_forward import parallel_forward
from model.training.sitting import DEVICE, Average, Sitting, autocast, load_shards, save_shards
from model.vae import LightVAE
from model.weights import build_modules

STEP_SIGMAS = (1.0, 0.75, 0.5, 0.25)
ADAM_PARTS = (
    "patch_embedding", "cond_encoder", "head", "words", "positions", "modulation", "cond_mask", "padding", ".weights"
)  # fmt: skip
TRAIN_BLOCKS = 7
BEARD_SHARE = 0.2
QUIET_GAIN = 2.0
"""Weight of a resting mouth against a speaking one: lips that do not quite meet are seen at once."""


class Student(nn.Module):
    """The two parts that learn together."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        modules = build_modules(config)
        self.dit, self.text = modules["dit"], modules["text"]
        self.requires_grad_(True).train()

    def forward(
        self, x: Tensor, sigma: Tensor, ref: Tensor, audio: Tensor, pose: Tensor, ids: Tensor, ref_time: Tensor
    ) -> Tensor:
        return parallel_forward(self.dit, x, sigma, ref, audio, pose, self.text(ids), ref_time, 3)


class Batches:
    """Random sub-sequences of the latent set."""

    def __init__(self, data: LatentSet, ids: Tensor) -> None:
        self.data, self.ids = data, ids

    def draw(self, batch: int, blocks: int) -> dict[str, Tensor]:
        d, total = self.data, self.data.latents.shape[1]
        i = torch.randint(0, d.latents.shape[0], (batch,), device=DEVICE)
        start = torch.randint(0, total - blocks + 1, (batch,), device=DEVICE)
        b = start[:, None] + torch.arange(blocks, device=DEVICE)
        frames = (start * 12)[:, None] + torch.arange(blocks * 12, device=DEVICE)
        poses = (start * 3)[:, None] + torch.arange(blocks * 3, device=DEVICE)
        variant = torch.randint(0, d.features.shape[0], (batch,), device=DEVICE)
        which = torch.where(
            torch.rand(batch, device=DEVICE) < 0.4,
            torch.zeros(batch, dtype=torch.long, device=DEVICE),
            torch.randint(1, REFERENCES, (batch,), device=DEVICE),
        )
        audio = d.features[variant[:, None], i[:, None], :, :, frames].permute(0, 2, 3, 1)
        return dict(
            z=d.latents[i[:, None], b].float(),
            weight=d.weight[i[:, None], b].float(),
            ref=d.references[i, which].float(),
            audio=audio.float(),
            pose=d.pose[i[:, None], :, poses].transpose(1, 2)[..., None, None].float(),
            ids=self.ids[i] * (torch.rand(batch, 1, device=DEVICE) > 0.1),
            ref_time=reference_times(batch, blocks),
        )


def reference_times(batch: int, blocks: int) -> Tensor:
    """Where the reference stands: the start of a stream, or a distance of 4..30 (mostly 8) ahead. [B, n]"""
    at = torch.arange(blocks, device=DEVICE) * 3
    distance = torch.randint(4, 31, (batch, 1), device=DEVICE)
    distance = torch.where(torch.rand(batch, 1, device=DEVICE) < 0.5, torch.full_like(distance, 8), distance)
    start = (30 + (at - 22).clamp_min(0)).expand(batch, -1)
    return torch.where(torch.rand(batch, 1, device=DEVICE) < 0.25, start, at + distance)


def draw_sigma(count: int) -> Tensor:
    """Half uniform, half near the steps."""
    uniform = torch.rand(count, device=DEVICE)
    steps = torch.tensor(STEP_SIGMAS, device=DEVICE)[torch.randint(0, len(STEP_SIGMAS), (count,), device=DEVICE)]
    near = steps + 0.03 * torch.randn(count, device=DEVICE)
    return torch.where(torch.rand(count, device=DEVICE) < 0.5, uniform, near).clamp(0.01, 1.0)


def draw_levels(batch: int, blocks: int) -> Tensor:
    """Noise levels [B, n]: one for all blocks, or each its own, or clean history before a noisy block."""
    shared = draw_sigma(batch)[:, None].expand(-1, blocks)
    own = draw_sigma(batch * blocks).view(batch, blocks)
    low = torch.where(torch.rand(batch, blocks, device=DEVICE) < 0.5, 0.02 * torch.rand_like(own), own)
    kind = torch.rand(batch, 1, device=DEVICE)
    return torch.where(kind < 0.7, shared, torch.where(kind < 0.85, own, low))


def add_noise(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy input, noise, and 0/1 [B, n] for blocks that count (damaged history does not).

    Args:
        z: [B, n, channels, F, h, w]. sigma: [B, n].
    """
    batch, blocks = z.shape[:2]
    noise = torch.randn_like(z)
    until = torch.randint(1, blocks - 1, (batch, 1), device=DEVICE)
    damaged = torch.arange(blocks, device=DEVICE)[None] < until
    damaged = damaged & (torch.rand(batch, 1, device=DEVICE) < 0.35)
    mask = damaged.float().view(batch, blocks, 1, 1, 1, 1)
    shape = (batch, 1, z.shape[2], 1, 1, 1)
    bent = z * (1 + 0.05 * mask * torch.randn(shape, device=DEVICE)) + 0.05 * mask * torch.randn(shape, device=DEVICE)
    raised = sigma.view(batch, blocks, 1, 1, 1, 1) + mask * 0.15 * torch.rand(batch, 1, 1, 1, 1, 1, device=DEVICE)
    raised = raised.clamp(max=1)
    return (1 - raised) * bent + raised * noise, noise, (~damaged).float()


def compile_checked(student: Student, batch: dict[str, Tensor]) -> nn.Module:
    """The compiled student, if its gradients agree with eager ones; else the eager one."""
    if DEVICE.type != "cuda":
        return student
    fast = torch.compile(student)
    sigma = draw_levels(*batch["z"].shape[:2])
    x, noise, _ = add_noise(batch["z"], sigma)
    grads = []
    for model in (student, fast):
        student.zero_grad(set_to_none=True)
        with autocast():
            v = model(x, sigma, batch["ref"], batch["audio"], batch["pose"], batch["ids"], batch["ref_time"])
        (v.float() - (noise - batch["z"])).square().mean().backward()
        grads.append({k: p.grad.float().flatten().clone() for k, p in student.named_parameters() if p.grad is not None})
    worst = min(
        (torch.nn.functional.cosine_similarity(grads[0][k], grads[1][k], dim=0).item(), k)
        for k in grads[0]
        if grads[0][k].norm() > 1e-6
    )
    student.zero_grad(set_to_none=True)
    print(f"compiled against eager gradients, worst cosine {worst[0]:.4f} ({worst[1]})", flush=True)
    return fast if worst[0] > 0.97 else student


def load_vae(work: Path) -> LightVAE:
    vae = LightVAE().to(DEVICE, memory_format=torch.channels_last).eval().requires_grad_(False)
    vae.load_state_dict(load_shards(work / "vae")[0])
    return vae


def load_audio(work: Path) -> AudioEncoder:
    from model.audio import AudioSizes

    encoder = AudioEncoder(AudioSizes(), WINDOW).to(DEVICE).eval().requires_grad_(False)
    stored = load_shards(work / "audio")[0]
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in stored.items() if k.startswith("encoder.")})
    return encoder


def run(
    work: Path, seconds: float, smoke: bool = False, resume: bool = False, clips: int = 3400, batch: int = 64
) -> dict[str, float]:
    """Train for `seconds`, rendering and encoding not counted."""
    clock = time.monotonic()
    size, blocks = (64, 4) if smoke else (256, 11)
    clips, batch, span = (4, 2, 4) if smoke else (clips, batch, TRAIN_BLOCKS)
    vae, encoder = load_vae(work), load_audio(work)
    speech = SpeechSet.load(work / "speech.npz")
    seed = 31 + int(resume) * 1000
    data, _, _ = build(
        vae, encoder, speech, clips, blocks, size, seed, 3, 0.25, beard_share=BEARD_SHARE, quiet_gain=QUIET_GAIN
    )
    del speech
    print(f"teacher: {clips} clips as latents in {time.monotonic() - clock:.0f} s", flush=True)
    student = Student(tiny()).to(DEVICE)
    if resume:
        student.load_state_dict(load_shards(work / "teacher")[0])
    batches = Batches(data, student.text.token_ids(data.prompts).to(DEVICE))
    fast = compile_checked(student, batches.draw(batch, span))
    optimiser, average = Muon(student, 0.02, 1e-3, 0.02, ADAM_PARTS), Average(student, 0.01)
    sitting = Sitting("teacher", seconds, 3 if smoke else 30)
    saved = time.monotonic()
    while not sitting.done:
        b = batches.draw(batch, span)
        sigma = draw_levels(batch, span)
        x, noise, keep = add_noise(b["z"], sigma)
        optimiser.set_rates(sitting.rate(0.5 if resume else 1.0, 200))
        with autocast():
            v = fast(x, sigma, b["ref"], b["audio"], b["pose"], b["ids"], b["ref_time"])
        error = (v.float() - (noise - b["z"])).square().mean(2)
        weight = b["weight"] * keep[:, :, None, None, None]
        loss = (error * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update()
        if sitting.tick(loss):
            sitting.report()
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save_shards(work / "teacher", average.values, {"steps": sitting.iteration})
    sitting.report("done")
    figures = {"steps": sitting.iteration, "seconds": seconds, "batch": batch}
    save_shards(work / "teacher", average.values, figures)
    return figures

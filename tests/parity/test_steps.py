"""The denoising loop against a plain one written here: lists of keys, full sums, no rings, for any number of steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.dit import DiT
from model.rope import rotate
from model.sampler import published_sigmas, timestep
from tests.parity import own_model
from tests.parity.own_model import BLOCKS, CONFIG, FRAMES, HEIGHT, RING, RUNS, WIDTH


class Remembered:
    """Stands in for a ring: keeps every block's keys in a list and shows the condition and the newest of them."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.front: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.blocks.setdefault(layer, [])
        kept.append((k, v))
        shown = [self.front[layer], *kept[-RING:]]
        return torch.cat([k for k, _ in shown], 1), torch.cat([v for _, v in shown], 1)


def levels(steps: int) -> list[float]:
    smallest = 1000 * 3 * 0.001 / (1 + 2 * 0.001)
    base = [(1000 + i * (smallest - 1000) / max(1, steps - 1)) / 1000 for i in range(steps)]
    return [3 * b / (1 + 2 * b) for b in base]


def made(dtype: torch.dtype = torch.float32) -> tuple[DiT, dict[str, Tensor]]:
    dit = DiT(CONFIG).eval()
    dit.load_state_dict({k: v.float() for k, v in own_model.make_weights().items()})
    return dit.to(dtype), {k: v.to(dtype) for k, v in own_model.make_inputs().items()}


def plainly(steps: int) -> Tensor:
    dit, x = made()
    text = dit.text_kv(x["text"])
    condition = dit.prefill(x["reference"], text, x["motion"], 30)
    sigmas, memory, out = levels(steps), [Remembered() for _ in range(steps)], []
    for b in range(BLOCKS):
        audio = dit.audio_condition(x["audio"][b], x["mask"])
        pose = dit.pose(x["pose"][b], FRAMES, HEIGHT, WIDTH)
        by = dit.block_rotation(b * FRAMES, FRAMES, HEIGHT, WIDTH)
        turned = condition.rotated_reference(dit.reference_rotation(30 + max(0, b * FRAMES - 20), HEIGHT, WIDTH))
        rest = rotate(condition.k[:, :, condition.num_reference :], condition.motion)
        keys = torch.cat([turned, rest], 2)
        latents = x["noise"][b]
        for i in range(steps):
            memory[i].front = list(zip(keys, condition.v, strict=True))
            velocity = dit(
                latents, dit.step_modulation(torch.tensor(1000 * sigmas[i])), text, audio, pose, by, memory[i]
            )
            latents = latents + (([*sigmas, 0.0])[i + 1] - sigmas[i]) * velocity
        out.append(latents)
    return torch.cat(out)


def streamed(steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    dit, x = made(dtype)
    denoiser = Denoiser(dit, RUNS["same_step"], published_sigmas(steps), HEIGHT, WIDTH)
    state = denoiser.start(dit.text_kv(x["text"]), x["reference"], x["motion"])
    out = []
    for b in range(BLOCKS):
        audio = dit.audio_condition(x["audio"][b], x["mask"])
        pose = dit.pose(x["pose"][b], FRAMES, HEIGHT, WIDTH)
        out.append(denoiser.block(state, b, x["noise"][b], audio, pose, 10))
    return torch.cat(out).float()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_any_number_of_steps(steps: int) -> None:
    assert [float(timestep(s)) for s in published_sigmas(steps)] == pytest.approx([1000 * s for s in levels(steps)])
    wanted = plainly(steps)
    assert wanted.std() > 0.1
    torch.testing.assert_close(streamed(steps), wanted, atol=2e-4, rtol=2e-4)


def test_bfloat16_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    wide, narrow = streamed(4), streamed(4, torch.bfloat16)
    deviation = float((narrow - wide).norm() / wide.norm())
    with capsys.disabled():
        print(f"\nbfloat16 latents of {BLOCKS} blocks deviate from float32 by {deviation:.3%}")
    assert 0 < deviation < 0.2

"""A small random transformer and inputs for it, shared by the model's unit tests."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from model.config import DiTConfig, StreamConfig
from model.dit import DiT
from model.kv_cache import RollingCache

SMALL = DiTConfig(
    dim=48,
    ffn_dim=80,
    num_heads=2,
    num_layers=4,
    in_dim=6,
    out_dim=6,
    freq_dim=32,
    text_dim=16,
    text_len=5,
    audio_dim=8,
    audio_layers=3,
    audio_inject_layers=(0, 2),
    cond_dim=4,
    enable_framepack=False,
)
FRAMES, HEIGHT, WIDTH = 3, 4, 8
TOKENS = FRAMES * (HEIGHT // 2) * (WIDTH // 2)


def build(seed: int = 0, **changes) -> DiT:
    """A transformer whose every parameter is random, so that each path counts."""
    torch.manual_seed(seed)
    dit = DiT(dataclasses.replace(SMALL, **changes)).eval()
    for name, p in dit.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.3 if p.dim() < 2 else 0.9 * p[0].numel() ** -0.5)
    return dit


@dataclasses.dataclass
class Clip:
    """Random inputs of a clip of blocks."""

    noisy: Tensor
    ref: Tensor
    audio: Tensor
    pose: Tensor
    context: Tensor
    motion: Tensor

    @classmethod
    def make(cls, cfg: DiTConfig, batch: int, blocks: int, seed: int = 1) -> Clip:
        g = torch.Generator().manual_seed(seed)
        r = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
        return cls(
            noisy=r(batch, blocks, cfg.in_dim, FRAMES, HEIGHT, WIDTH),
            ref=r(batch, cfg.in_dim, 1, HEIGHT, WIDTH),
            audio=r(batch, cfg.audio_layers, cfg.audio_dim, 12 * blocks),
            pose=r(batch, cfg.cond_dim, FRAMES * blocks, 1, 1),
            context=r(batch, 4, cfg.text_dim),
            motion=r(batch, cfg.in_dim, 19, HEIGHT, WIDTH),
        )


class Stream:
    """The streaming path over a clip, one pass at a time."""

    def __init__(self, dit: DiT, clip: Clip, stream: StreamConfig, num_rings: int = 1) -> None:
        self.dit, self.clip, self.stream = dit, clip, stream
        self.text = dit.text_kv(clip.context)
        self.condition = dit.prefill(clip.ref, self.text, clip.motion if dit.cfg.enable_framepack else None)
        self.rings = [
            RollingCache.allocate(self.condition, stream.ring_blocks, TOKENS, stream.evict) for _ in range(num_rings)
        ]

    def begin(self, block: int, distance: int) -> None:
        first = block * FRAMES
        time = self.stream.reference_time(first, distance)
        keys = self.condition.rotated_reference(self.dit.reference_rotation(time, HEIGHT, WIDTH))
        for ring in self.rings:
            ring.set_reference(keys)
            ring.begin(block)

    def run(self, block: int, x: Tensor, sigma: float, ring: int = 0, *, item: int | None = None) -> Tensor:
        """One pass of `block` at `sigma` into ring `ring`; inputs are taken from clip position `item`."""
        n = block if item is None else item
        dit, clip = self.dit, self.clip
        return dit(
            x,
            dit.step_modulation(torch.tensor(sigma * 1000)),
            self.text,
            dit.audio_condition(clip.audio[:, None, :, :, 12 * n : 12 * n + 12]),
            dit.pose(clip.pose[:, :, FRAMES * n : FRAMES * n + FRAMES], FRAMES, HEIGHT, WIDTH),
            dit.block_rotation(block * FRAMES, FRAMES, HEIGHT, WIDTH),
            self.rings[ring],
        )

    def advance(self) -> None:
        for ring in self.rings:
            ring.advance()

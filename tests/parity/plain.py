"""The published transformer written down plainly from its description: weights by released name, no state, no tricks.

It shares nothing with `model` and is only fit for tiny sizes: keys are kept in a list, angles are computed where they
are needed, attention is written out. `second_set` records fixtures with it at sizes of its own.

Letters: A speakers, F latent frames, S tokens per latent frame, L = F S, C condition tokens, D width, N heads, d head
width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Mod = list[Tensor]
"""shift, scale, gate of attention, then of the feed-forward; each broadcasts against [1, tokens, D]."""


def factors(positions: np.ndarray, head_dim: int, half: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin of positions [tokens, 3] (time, row, column), [tokens, head_dim / 2]."""
    pairs, third = head_dim // 2, head_dim // 2 // 3
    angles = []
    for axis, count in enumerate((pairs - 2 * third, third, third)):
        speed = 10000.0 ** (-np.arange(count) / count)
        angles.append(positions[:, axis : axis + 1].astype(np.float64) * speed)
    angle = torch.from_numpy(np.concatenate(angles, 1))
    cos, sin = angle.cos(), angle.sin()
    return (cos.half().double(), sin.half().double()) if half else (cos, sin)


def turn(x: Tensor, positions: np.ndarray, half: bool = False) -> Tensor:
    """Rotate [1, tokens, N, d]."""
    cos, sin = (part[:, None] for part in factors(positions, x.shape[-1], half))
    a, b = x.double()[..., 0::2], x.double()[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).float()


def box(times: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.array([(t, r, c) for t in times for r in rows for c in columns])


def spread(last: int, count: int) -> np.ndarray:
    return np.linspace(0, last, count).astype(int)


def motion_positions(height: int, width: int) -> np.ndarray:
    """Of the frame packer's tokens, newest bucket first; sizes are of latents."""
    rows, columns = height // 2, width // 2
    parts = [box([-1], np.arange(rows), np.arange(columns))]
    parts.append(box([-3], spread(rows - 1, height // 4), spread(columns - 1, width // 4)))
    times = -np.linspace(19, 4, 4).astype(int)
    parts.append(box(times, spread(rows - 1, height // 8), spread(columns - 1, width // 8)))
    return np.concatenate(parts)


@dataclass
class Memory:
    """Condition keys and one ring of one denoising step: per layer, by slot."""

    condition: list[tuple[Tensor, Tensor]]
    slots: int
    rings: list[dict[int, tuple[Tensor, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rings = self.rings or [{} for _ in self.condition]


class Plain:
    """The transformer.

    Args:
        weights: by released name.
        config: as a released `config.json` has it.
        half: round rotary tables to float16, as the original does.
    """

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any], half: bool = False) -> None:
        self.w, self.cfg, self.half = weights, config, half
        self.heads, self.layers = config["num_heads"], config["num_layers"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.w[f"{name}.weight"]

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)

    @staticmethod
    def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, tokens, N, d] each, to [B, tokens, D]."""
        scores = torch.einsum("bqnd,bknd->bnqk", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v).flatten(-2)

    def cross(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        q = self.split(self.rms(f"{name}.norm_q", self.linear(f"{name}.q", x)))
        k = self.split(self.rms(f"{name}.norm_k", self.linear(f"{name}.k", context)))
        v = self.split(self.linear(f"{name}.v", context))
        return self.linear(f"{name}.o", self.attend(q, k, v))

    # What goes in.

    def patches(self, name: str, x: Tensor) -> Tensor:
        """[1, C, F, h, w] to tokens [1, any, D]; kernel and stride are the weight's size."""
        weight = self.w[f"{name}.weight"]
        return F.conv3d(x, weight, self.w[f"{name}.bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)

    def packed(self, motion: Tensor) -> Tensor:
        """Past latents [1, C, any, h, w] to tokens: the newest, two before it, sixteen before those."""
        missing = torch.zeros(1, motion.shape[1], max(0, 19 - motion.shape[2]), *motion.shape[3:])
        motion = torch.cat([missing, motion], 2)[:, :, -19:]
        parts = (("proj", motion[:, :, 18:]), ("proj_2x", motion[:, :, 16:18]), ("proj_4x", motion[:, :, :16]))
        return torch.cat([self.patches(f"frame_packer.{name}", x) for name, x in parts], 1)

    def embedded(self, text: Tensor) -> Tensor:
        """[n, text_dim] to [1, text_len, D]."""
        padded = torch.zeros(1, self.cfg["text_len"], text.shape[1])
        padded[0, : len(text)] = text
        hidden = F.gelu(self.linear("text_embedding.0", padded), approximate="tanh")
        return self.linear("text_embedding.2", hidden)

    def time(self, t: float) -> tuple[Tensor, Tensor]:
        """Embedding [D] and the six modulations [6, D]."""
        half = self.cfg["freq_dim"] // 2
        angle = float(torch.tensor(t, dtype=torch.float32)) * 10000.0 ** (-torch.arange(half).double() / half)
        wave = torch.cat([angle.cos(), angle.sin()]).float()
        e = self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", wave)))
        return e, self.linear("time_projection.1", F.silu(e)).view(6, -1)

    def heard(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Feature columns [A, layers, audio_dim, T] to local [A, F, tokens + 1, D] and global [A, F, 1, D] tokens."""
        name, count = "casual_audio_encoder.encoder", self.cfg["num_audio_token"]
        weights = F.silu(self.w["casual_audio_encoder.weights"])
        x = (features * weights).sum(1) / weights.sum()

        def conv(which: str, x: Tensor, stride: int) -> Tensor:
            padded = torch.cat([x[..., :1], x[..., :1], x], -1)
            part = f"{name}.{which}.conv"
            return F.conv1d(padded, self.w[f"{part}.weight"], self.w[f"{part}.bias"], stride=stride)

        def act(x: Tensor) -> Tensor:
            return F.silu(self.norm(x.transpose(1, 2))).transpose(1, 2)

        def tail(x: Tensor) -> Tensor:
            return act(conv("conv3", act(conv("conv2", act(x), 2)), 2)).transpose(1, 2)

        local = torch.stack([tail(part) for part in conv("conv1_local", x, 1).chunk(count, 1)], 2)
        padding = self.w[f"{name}.padding_tokens"].expand(*local.shape[:2], 1, -1)
        glob = self.linear(f"{name}.final_linear", tail(conv("conv1_global", x, 1)))
        return torch.cat([local, padding], 2), glob[:, :, None]

    def heard_block(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of one block: 73 copies of the first column in front, 19 outputs dropped."""
        local, glob = self.heard(torch.cat([features[..., :1].expand(-1, -1, -1, 73), features], -1))
        return local[:, 19:], glob[:, 19:]

    # One block.

    def block(self, i: int, x: Tensor, mod: Mod, text: Tensor, attention: Any) -> Tensor:
        """`attention(q, k, v)` is given unrotated heads and returns [1, tokens, D]."""
        name = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = mod
        y = self.norm(x) * (1 + scale) + shift
        q = self.split(self.rms(f"{name}.self_attn.norm_q", self.linear(f"{name}.self_attn.q", y)))
        k = self.split(self.rms(f"{name}.self_attn.norm_k", self.linear(f"{name}.self_attn.k", y)))
        v = self.split(self.linear(f"{name}.self_attn.v", y))
        x = x + self.linear(f"{name}.self_attn.o", attention(q, k, v)) * gate
        y = self.norm(x) * self.w[f"{name}.norm3.weight"] + self.w[f"{name}.norm3.bias"]
        x = x + self.cross(f"{name}.cross_attn", y, text)
        y = self.norm(x) * (1 + scale2) + shift2
        hidden = F.gelu(self.linear(f"{name}.ffn.0", y), approximate="tanh")
        return x + self.linear(f"{name}.ffn.2", hidden) * gate2

    def modulated(self, j: int, x: Tensor, glob: Tensor) -> Tensor:
        """[A F, S, D] as injector j's queries see it; glob [A F, 1, D]."""
        shift, scale = self.linear(f"audio_injector.injector_adain_layers.{j}.linear", F.silu(glob)).chunk(2, -1)
        return self.norm(x, 1e-5) * (1 + scale) + shift

    def injected(self, j: int, x: Tensor, local: Tensor, glob: Tensor, mask: Tensor | None) -> Tensor:
        """x [1, L, D] plus what injector j hears; mask [A, >= F, rows, columns, 1]."""
        speakers, frames = local.shape[:2]
        queries = x.view(1, frames, -1, x.shape[-1]).expand(speakers, -1, -1, -1).flatten(0, 1)
        y = self.modulated(j, queries, glob.flatten(0, 1))
        out = self.cross(f"audio_injector.injector.{j}", y, local.flatten(0, 1)).view(speakers, *x.shape[1:])
        if mask is not None:
            out = (out * mask[:, :frames].reshape(speakers, -1, 1)).sum(0, keepdim=True)
        return x + out

    # The two passes.

    def condition_positions(self, reference_time: int, height: int, width: int) -> np.ndarray:
        reference = box([reference_time], np.arange(height // 2), np.arange(width // 2))
        return np.concatenate([reference, motion_positions(height, width)])

    def prefill(self, reference: Tensor, motion: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Unrotated keys and values of the condition, per layer."""
        height, width = reference.shape[-2:]
        row = self.w["trainable_cond_mask.weight"]
        x = torch.cat([self.patches("patch_embedding", reference) + row[1], self.packed(motion) + row[2]], 1)
        positions, kept = self.condition_positions(30, height, width), []

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            return self.attend(turn(q, positions, self.half), turn(k, positions, self.half), v)

        e0 = self.time(0.0)[1]
        for i in range(self.layers):
            x = self.block(i, x, list(self.w[f"blocks.{i}.modulation"][0] + e0), text, attention)
        return kept

    def denoise(
        self,
        x: Tensor,
        t: float,
        text: Tensor,
        sound: tuple[Tensor, Tensor],
        memory: Memory,
        block: int,
        distance: int,
        pose: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Velocity of block `block`, x [C, F, h, w]; writes its keys into `memory`."""
        frames, height, width = x.shape[1:]
        first, slot = block * frames, block % memory.slots
        tokens = self.patches("patch_embedding", x[None])
        tokens = tokens + self.patches("cond_encoder", torch.zeros_like(x)[None] if pose is None else pose)
        tokens = tokens + self.w["trainable_cond_mask.weight"][0]
        noisy = box(np.arange(first, first + frames), np.arange(height // 2), np.arange(width // 2))
        behind = self.condition_positions(30 + max(0, first - (30 - distance)), height, width)
        e, e0 = self.time(t)
        where = self.cfg["audio_inject_layers"]
        for i in range(self.layers):
            ring, (cond_k, cond_v) = memory.rings[i], memory.condition[i]

            def attention(q: Tensor, k: Tensor, v: Tensor, ring=ring, cond_k=cond_k, cond_v=cond_v) -> Tensor:
                ring[slot] = (turn(k, noisy, self.half), v)
                keys = torch.cat([*(k for k, _ in ring.values()), turn(cond_k, behind, self.half)], 1)
                values = torch.cat([*(v for _, v in ring.values()), cond_v], 1)
                return self.attend(turn(q, noisy, self.half), keys, values)

            tokens = self.block(i, tokens, list(self.w[f"blocks.{i}.modulation"][0] + e0), text, attention)
            if i in where:
                tokens = self.injected(where.index(i), tokens, *sound, mask)
        shift, scale = self.w["head.modulation"][0] + e
        y = self.linear("head.head", self.norm(tokens) * (1 + scale) + shift)
        y = y.view(frames, height // 2, width // 2, 2, 2, -1)
        return y.permute(5, 0, 1, 3, 2, 4).reshape(-1, frames, height, width)

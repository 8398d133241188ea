"""The causal speech-to-video transformer: velocity of one block of latents, given sound, prompt, portrait and the past.

Written once for every size; all numbers come from `DiTConfig`, parameter names are those of the released checkpoints
(the spelling `casual_audio_encoder` included). Two ways in share the blocks: `prefill` runs the condition tokens alone
at timestep 0 and keeps their keys and values; `forward` runs the noisy tokens of one block against a `RollingCache`.
What does not change between the passes of a block (text keys, audio tokens, pose, rotations, modulations) is prepared
by the methods in between and passed in. Training runs all blocks of a clip at once over the same submodules
(`model.training.parallel_forward`).

Residuals are laid out [B, F, S, D], so that modulation and audio broadcast over the tokens of a latent frame.

Letters: B batch, A speakers, F latent frames, h and w latent rows and columns, S tokens per latent frame, L = F S,
D width, N heads, d head width, C condition tokens, Y layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import rope
from model.attention import Attention, attend
from model.audio_tokens import AudioCondition, AudioInjector, CausalAudioEncoder
from model.config import MOTION_BUCKETS, DiTConfig
from model.kv_cache import ConditionCache, RollingCache
from model.relay import WHOLE, Relay
from model.rope import Rotation, rotate

TextKV = list[tuple[Tensor, Tensor]]
"""Per layer the prompt's keys and values [B, text_len, N, d]."""


class Modulation(NamedTuple):
    """What the timestep does to one block: vectors [D], or [B, F, 1, D] where frames differ. One is added to scales."""

    shift1: Tensor
    scale1: Tensor
    gate1: Tensor
    shift2: Tensor
    scale2: Tensor
    gate2: Tensor


class StepModulation(NamedTuple):
    """What one timestep does to the whole network."""

    blocks: list[Modulation]
    head_scale: Tensor
    head_shift: Tensor


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Norm without statistics of its own, scaled and shifted; one fused kernel where all tokens share the vectors."""
    if scale.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    return (F.layer_norm(x, x.shape[-1:], eps=eps) * scale + shift).to(x.dtype)


class PatchProjection(nn.Conv3d):
    """Convolution whose kernel is its stride, as one matrix product; overhanging cells are left out."""

    def __init__(self, dim_in: int, dim_out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(dim_in, dim_out, kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F, h, w] to [B, f, s, D], rows before columns."""
        (a, b, c), (batch, channels, *size) = self.kernel_size, x.shape
        f, h, w = (n // k for n, k in zip(size, self.kernel_size, strict=True))
        x = x[:, :, : f * a, : h * b, : w * c].reshape(batch, channels, f, a, h, b, w, c)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, f, h * w, channels * a * b * c)
        return F.linear(x.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class FramePacker(nn.Module):
    """Past latents as tokens: the newest frame in full, two frames at half, sixteen at quarter resolution."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        kernel = lambda i: (1 << i, cfg.patch << i, cfg.patch << i)  # noqa: E731
        self.proj, self.proj_2x, self.proj_4x = (PatchProjection(cfg.in_dim, cfg.dim, kernel(i)) for i in range(3))

    def forward(self, motion: Tensor) -> Tensor:
        """Motion latents [B, C, any, h, w], oldest first, to tokens [B, T, D], newest bucket first.

        The last 19 frames count; zeros stand in for missing ones.
        """
        total = sum(MOTION_BUCKETS)
        motion = F.pad(motion, (0, 0, 0, 0, max(0, total - motion.shape[2]), 0))[:, :, -total:]
        oldest_first = motion.split(MOTION_BUCKETS[::-1], 2)
        projections = (self.proj, self.proj_2x, self.proj_4x)
        return torch.cat([p(x).flatten(1, 2) for p, x in zip(projections, oldest_first[::-1], strict=True)], 1)


class Block(nn.Module):
    """One transformer block, in two halves around self-attention."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)
        self.self_attn = Attention(cfg.dim, cfg.num_heads, cfg.eps)
        self.norm3 = nn.LayerNorm(cfg.dim, cfg.eps)
        self.cross_attn = Attention(cfg.dim, cfg.num_heads, cfg.eps)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(cfg.ffn_dim, cfg.dim)
        )

    def modulation_at(self, e0: Tensor) -> Modulation:
        """Time projection [6, D] or [B, F, 6, D] plus the block's own offset."""
        parts = (self.modulation[0] + e0).unbind(-2)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts if e0.dim() == 2 else (p[..., None, :] for p in parts)
        return Modulation(shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2)

    def qkv(self, x: Tensor, m: Modulation) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, F, S, D] to normed, unrotated queries and keys, and values: [B, F S, N, d] each."""
        y = modulate(x, m.scale1, m.shift1, self.eps)
        return self.self_attn.queries_keys_values(y)

    def finish(self, x: Tensor, attended: Tensor, m: Modulation, text: tuple[Tensor, Tensor]) -> Tensor:
        """Residual x [B, F, S, D] and attention output [B, F S, D] to the block's output [B, F, S, D]."""
        x = torch.addcmul(x, self.self_attn.o(attended).view(x.shape), m.gate1)
        x = x + self.cross_attn.cross(self.norm3(x), *text)
        return torch.addcmul(x, self.ffn(modulate(x, m.scale2, m.shift2, self.eps)), m.gate2)


class Head(nn.Module):
    """Final modulated norm and projection to patches."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.eps, self.patch, self.channels = cfg.eps, cfg.patch, cfg.out_dim
        self.modulation = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        self.head = nn.Linear(cfg.dim, cfg.patch**2 * cfg.out_dim)

    def modulation_at(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding [D] or [B, F, D] to scale (one added) and shift."""
        shift, scale = self.modulation[0].unbind(0)
        if e.dim() > 1:
            e = e[..., None, :]
        return 1 + scale + e, shift + e

    def project(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x [B, F, S, D] to patches [B, F, S, patch patch out_dim]."""
        return self.head(modulate(x, scale, shift, self.eps))

    def unpatch(self, y: Tensor, rows: int) -> Tensor:
        """Patches [B, F, S, patch patch out_dim] to [B, out_dim, F, h, w] float32; channels are the fastest."""
        y = y.float().unflatten(-1, (self.patch, self.patch, self.channels)).unflatten(2, (rows, -1))
        return y.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, rows: int) -> Tensor:
        """x [B, F, S, D] to velocity [B, out_dim, F, h, w] float32."""
        return self.unpatch(self.project(x, scale, shift), rows)


class DiT(nn.Module):
    """The transformer; state is passed in, so one instance serves every session."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embedding = PatchProjection(cfg.in_dim, cfg.dim, cfg.patch_size)
        self.cond_encoder = PatchProjection(cfg.cond_dim, cfg.dim, cfg.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_dim, cfg.dim), nn.GELU(approximate="tanh"), nn.Linear(cfg.dim, cfg.dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(cfg.freq_dim, cfg.dim), nn.SiLU(), nn.Linear(cfg.dim, cfg.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(cfg.dim, 6 * cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg)
        self.trainable_cond_mask = nn.Embedding(3, cfg.dim)
        if cfg.enable_framepack:
            self.frame_packer = FramePacker(cfg)
        self.casual_audio_encoder = CausalAudioEncoder(cfg)
        self.audio_injector = AudioInjector(cfg)
        self.is_split = False
        """Whether tokens and heads lie on several devices; see `model.sequence`."""
        self._injector_of = {layer: index for index, layer in enumerate(cfg.audio_inject_layers)}
        self.init_weights()

    def init_weights(self) -> None:
        """Start of training: quiet text and audio branches, a head that predicts zero."""
        nn.init.normal_(self.trainable_cond_mask.weight, std=0.02)
        for block in self.blocks:
            nn.init.normal_(block.cross_attn.o.weight, std=0.005)
        for injector in self.audio_injector.injector:
            nn.init.normal_(injector.o.weight, std=0.005)
        nn.init.zeros_(self.head.head.weight)
        nn.init.zeros_(self.head.head.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self.head.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.head.weight.device

    # What is prepared once per prompt, step or block.

    def text(self, context: Tensor) -> Tensor:
        """Prompt [B, n <= text_len, text_dim] to [B, text_len, D]; padding is attended to, without a mask."""
        missing = self.cfg.text_len - context.shape[1]
        if missing < 0:
            raise ValueError(f"the prompt has {context.shape[1]} tokens; cut it to text_len ({self.cfg.text_len})")
        return self.text_embedding(F.pad(context.to(self.text_embedding[0].weight.dtype), (0, 0, 0, missing)))

    def text_kv(self, context: Tensor) -> TextKV:
        """Keys and values of a prompt for every block; they depend on nothing else."""
        text = self.text(context)
        return [block.cross_attn.keys_values(text) for block in self.blocks]

    def time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [...] in 0..1000 (float32) to the embedding [..., D] and its projection [..., 6, D], in float32."""
        half = self.cfg.freq_dim // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
        angle = t.float().double()[..., None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1).float()
        first, _, second = self.time_embedding
        projection = self.time_projection[1]
        with torch.autocast(t.device.type, enabled=False):
            e = F.linear(wave, first.weight.float(), first.bias.float())
            e = F.linear(F.silu(e), second.weight.float(), second.bias.float())
            e0 = F.linear(F.silu(e), projection.weight.float(), projection.bias.float())
        return e, e0.unflatten(-1, (6, -1))

    def step_modulation(self, t: Tensor) -> StepModulation:
        """Modulations of a timestep: scalar t (all tokens alike, the fast path) or [B, F] (one per latent frame)."""
        e, e0 = self.time(t)
        cast = lambda parts: [p.to(self.dtype) for p in parts]  # noqa: E731
        blocks = [Modulation(*cast(block.modulation_at(e0))) for block in self.blocks]
        return StepModulation(blocks, *cast(self.head.modulation_at(e)))

    def audio_condition(self, features: Tensor, mask: Tensor | None = None) -> AudioCondition:
        """Prepare a block's sound.

        Args:
            features: [B, A, audio_layers, audio_dim, 4 F] hidden states, one column per picture.
            mask: [B or 1, A, >= F, rows, columns] weight of each speaker's residual; needed when A > 1.
        """
        batch, speakers = features.shape[:2]
        if speakers > 1 and mask is None:
            raise ValueError(f"{speakers} speakers need a mask of [batch, speakers, frames, rows, columns]")
        local, glob = self.casual_audio_encoder.block(features.flatten(0, 1))
        sound = [self.audio_injector.prepare(i, local, glob, batch) for i in range(len(self._injector_of))]
        if mask is not None:
            mask = mask[:, :, : local.shape[1]].flatten(3, 4)[..., None]
        return AudioCondition(sound, mask)

    def pose(self, pose: Tensor | None, frames: int, height: int, width: int) -> Tensor:
        """What pose and the noisy mask row add to every token: [B or 1, F, S, D].

        Args:
            pose: [B, cond_dim, F, h, w], sizes of 1 are repeated; None is a zero pose, whose bias still counts.
            frames, height, width: latent frames, rows and columns of a block.
        """
        row = self.trainable_cond_mask.weight[0]
        if pose is None:
            return (self.cond_encoder.bias + row).expand(1, 1, 1, -1)
        return self.cond_encoder(pose.expand(-1, -1, frames, height, width)) + row

    def block_rotation(self, first_frame: int, frames: int, height: int, width: int) -> Rotation:
        """Rotation of the noisy tokens of a block that starts at latent frame `first_frame`."""
        return self._rotation(rope.block_positions(first_frame, frames, *self._grid(height, width)))

    def reference_rotation(self, time: int, height: int, width: int) -> Rotation:
        """Rotation of the reference tokens at time position `time`."""
        return self._rotation(rope.reference_positions(time, *self._grid(height, width)))

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.cfg.patch, width // self.cfg.patch

    def _rotation(self, positions: np.ndarray) -> Rotation:
        return rope.rotation_of(positions, self.cfg.head_dim, self.device, self.cfg.rope_tables == "rounded")

    # The two passes.

    def condition_tokens(self, reference: Tensor, motion: Tensor | None = None) -> Tensor:
        """Reference [B, C, 1, h, w] and motion latents to condition tokens [B, 1, C, D]."""
        mask = self.trainable_cond_mask.weight
        tokens = self.patch_embedding(reference) + mask[1]
        if self.cfg.enable_framepack:
            if motion is None:
                raise ValueError("this model has a frame packer; give it motion latents")
            tokens = torch.cat([tokens, self.frame_packer(motion)[:, None] + mask[2]], 2)
        return tokens

    def condition_pass(
        self, x: Tensor, by: Rotation, text: TextKV, ends: bool = True
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Run condition tokens [B, 1, C, D] at timestep 0.

        Args:
            x, by, text: tokens, their rotation, the prompt's keys and values.
            ends: whether nothing lies behind the last block, whose second half is then left out.

        Returns:
            Per layer unrotated keys and values [B, C, N, d], and the tokens behind the last block that was finished.
        """
        step = self.step_modulation(torch.zeros((), device=x.device))
        kept = []
        for index, (block, m) in enumerate(zip(self.blocks, step.blocks, strict=True)):
            q, k, v = block.qkv(x, m)
            kept.append((k, v))
            if index + 1 < len(self.blocks) or not ends:
                x = block.finish(x, attend(rotate(q, by), rotate(k, by), v), m, text[index])
        return kept, x

    def prefill(
        self,
        reference: Tensor,
        text: TextKV,
        motion: Tensor | None = None,
        time: int = 30,
        relay: Relay = WHOLE,
    ) -> ConditionCache:
        """Make the condition cache of the layers that are here.

        Args:
            reference: [B, in_dim, 1, h, w] latent of the portrait.
            text: as `text_kv` gives it.
            motion: [B, in_dim, any, h, w] past latents, oldest first; only with frame packing.
            time: time position of the reference during this pass.
            relay: where the layers before and behind are.
        """
        height, width = reference.shape[-2:]
        rows, columns = self._grid(height, width)
        positions = [rope.reference_positions(time, rows, columns)]
        behind = None
        if self.cfg.enable_framepack:
            positions.append(rope.motion_positions(height, width, self.cfg.patch))
            behind = self._rotation(positions[1])
        every = np.concatenate(positions)
        if relay.enters:
            tokens = self.condition_tokens(reference, motion)
        else:
            tokens = relay.take_hidden((len(reference), 1, len(every), self.cfg.dim), self.head.head.weight)
        kept, tokens = self.condition_pass(tokens, self._rotation(every), text, relay.leaves)
        if not relay.leaves:
            relay.give_hidden(tokens)
        k, v = (torch.stack(parts) for parts in zip(*kept, strict=True))
        return ConditionCache(k=k, v=v, motion=behind, num_reference=rows * columns)

    def forward(
        self,
        x: Tensor,
        step: StepModulation,
        text: TextKV,
        audio: AudioCondition,
        pose: Tensor,
        by: Rotation,
        cache: RollingCache,
        only_remember: bool = False,
    ) -> Tensor:
        """Velocity (noise minus data) of one block; writes the block's keys and values into `cache`.

        Args:
            x: [B, in_dim, F, h, w] noisy latents.
            step: as `step_modulation` gives it for the step's timestep.
            text: as `text_kv` gives it.
            audio: as `audio_condition` gives it for the block.
            pose: as `pose` gives it for the block.
            by: as `block_rotation` gives it for the block.
            cache: the step's ring; `begin` was called for this block and the reference was placed.
            only_remember: stop once the last block's keys are written.

        Returns:
            [B, out_dim, F, h, w] float32; with `only_remember` x itself.
        """
        hidden = self.through(self.enter(x, pose), step, text, audio, by, cache, only_remember)
        return x if only_remember else self.leave(hidden, step, x.shape[-2])

    # `forward` in three, for plans that lay them apart.

    def hidden_shape(self, batch: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the residual stream of a block: B, F, S, D."""
        rows, columns = self._grid(height, width)
        return batch, frames, rows * columns, self.cfg.dim

    def enter(self, x: Tensor, pose: Tensor) -> Tensor:
        """Noisy latents [B, in_dim, F, h, w] to the residual stream [B, F, S, D]."""
        return self.patch_embedding(x) + pose

    def through(
        self,
        x: Tensor,
        step: StepModulation,
        text: TextKV,
        audio: AudioCondition,
        by: Rotation,
        cache: RollingCache,
        only_remember: bool = False,
    ) -> Tensor:
        """The residual stream [B, F, S, D] through all blocks; arguments as `forward`'s."""
        last = len(self.blocks) - 1
        for index, (block, m) in enumerate(zip(self.blocks, step.blocks, strict=True)):
            q, k, v = block.qkv(x, m)
            q, k, v = self.remember(index, rotate(q, by), rotate(k, by), v, cache)
            if only_remember and index == last:
                return x
            x = block.finish(x, self.attend(q, k, v), m, text[index])
            x = self.inject(index, x, audio)
        return x

    def remember(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, cache: RollingCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write rotated keys and values [B, L, N, d] into the ring.

        Returns:
            What `attend` takes: the queries, and all keys and values that they see.
        """
        return q, *cache.update(layer, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries [B, L, N, d] over keys and values [B, K, N, d] to [B, L, D]."""
        return attend(q, k, v)

    def leave(self, x: Tensor, step: StepModulation, latent_height: int) -> Tensor:
        """The residual stream [B, F, S, D] to velocity [B, out_dim, F, h, w] float32."""
        patches = self.head.project(x, step.head_scale, step.head_shift)
        return self.head.unpatch(patches, latent_height // self.cfg.patch)

    def injector_of(self, layer: int) -> int | None:
        """Number of the injector behind block `layer`, None where there is none."""
        return self._injector_of.get(layer)

    def inject(self, layer: int, x: Tensor, audio: AudioCondition) -> Tensor:
        """Add what block `layer`'s injector hears to x [B, F, S, D]; blocks without one pass it through."""
        index = self.injector_of(layer)
        if index is None:
            return x
        return self.audio_injector(index, x, audio.injections[index], audio.mask)

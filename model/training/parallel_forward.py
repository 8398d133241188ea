"""All blocks of a clip in one differentiable pass, each seeing exactly what the streaming rings would show it.

Block b attends to the condition, to blocks b - ring + 1 .. b - 1 and to itself. With `same_step` history the earlier
blocks are the noisy ones of this very pass, each at its own sigma. With `clean` history a second copy of the clip at
nearly no noise runs beside it: noisy blocks see clean earlier blocks, clean blocks see clean earlier blocks. No cache,
no complex numbers, no dependence on data, so the pass compiles and runs under autocast.

Letters: B batch, n blocks, F latent frames per block, h and w latent rows and columns, S tokens per latent frame,
L = F S tokens per block, C condition tokens, N heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import rope
from model.attention import attend
from model.dit import DiT, StepModulation, TextKV
from model.rope import Rotation, rotate


def parallel_forward(
    dit: DiT,
    x: Tensor,
    sigma: Tensor,
    ref: Tensor,
    audio: Tensor,
    pose: Tensor | None,
    context: Tensor,
    ref_time: Tensor,
    ring_blocks: int,
    *,
    history: tuple[Tensor, Tensor] | None = None,
    motion: Tensor | None = None,
    first_block: int = 0,
) -> Tensor:
    """Velocity of every block of a clip.

    Args:
        dit: the transformer.
        x: [B, n, in_dim, F, h, w] noisy latents.
        sigma: [B, n] noise level of each block, 0..1.
        ref: [B, in_dim, 1, h, w] reference latent.
        audio: [B, audio_layers, audio_dim, 4 F n] features of the clip.
        pose: [B, cond_dim, F n, h, w] pose condition, sizes of 1 are repeated over space; None is a zero pose.
        context: [B, tokens, text_dim] output of the text encoder.
        ref_time: [B, n] time position of the reference for each block.
        ring_blocks: blocks that attention sees, the current one included.
        history: `clean` policy: latents shaped like x at nearly no noise, and their sigma [B, n].
        motion: [B, in_dim, any, h, w] past latents, for a model with a frame packer.
        first_block: index of the clip's first block; its ring is empty.

    Returns:
        [B, n, out_dim, F, h, w] float32.
    """
    _, blocks, _, frames, height, width = x.shape
    grid = (height // dit.cfg.patch, width // dit.cfg.patch)
    text = dit.text_kv(context)
    condition = _condition(dit, ref, motion, text)
    reference = _reference_rotation(dit, ref_time, *grid)
    by = _block_rotation(dit, x, first_block, *grid)
    sound = dit.audio_condition(audio.unflatten(-1, (blocks, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)[:, None])
    added = dit.pose(pose, blocks * frames, height, width)

    streams = [(x, sigma)] if history is None else [(x, sigma), history]
    steps = [dit.step_modulation((s.float() * 1000).repeat_interleave(frames, 1)) for _, s in streams]
    hidden = [dit.patch_embedding(latents.transpose(1, 2).flatten(2, 3)) + added for latents, _ in streams]
    for index, block in enumerate(dit.blocks):
        qkv = [[t.unflatten(1, (blocks, -1)) for t in block.qkv(y, s.blocks[index])] for y, s in _pairs(hidden, steps)]
        qkv = [(rotate(q, by), rotate(k, by), v) for q, k, v in qkv]
        sink = _sink(*condition[index], reference, dit, height, width)
        past = qkv[-1][1:]
        last = index + 1 == len(dit.blocks)
        for i in range(1 if last else len(hidden)):
            attended = _ring_attention(*qkv[i], *past, *sink, ring_blocks)
            y = block.finish(hidden[i], attended.flatten(1, 2), steps[i].blocks[index], text[index])
            hidden[i] = dit.inject(index, y.unflatten(1, (blocks, frames)).flatten(0, 1), sound).view(y.shape)
    velocity = dit.head(hidden[0], steps[0].head_scale, steps[0].head_shift, grid[0])
    return velocity.unflatten(2, (blocks, frames)).transpose(1, 2)


def _pairs(hidden: list[Tensor], steps: list[StepModulation]) -> list[tuple[Tensor, StepModulation]]:
    return list(zip(hidden, steps, strict=True))


def _ring_attention(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, sink_k: Tensor, sink_v: Tensor, ring: int
) -> Tensor:
    """Attention of all blocks without a mask: the first ring - 1 blocks one by one, all others as one batch.

    Args:
        q, k, v: [B, n, L, N, d] of the blocks themselves.
        past_k, past_v: [B, n, L, N, d] what later blocks see of each block.
        sink_k, sink_v: [B, n, C, N, d] condition as each block sees it.

    Returns:
        [B, n, L, N d].
    """
    batch, blocks = q.shape[:2]
    out = []
    for b in range(min(ring - 1, blocks)):
        keys = torch.cat([sink_k[:, b], past_k[:, :b].flatten(1, 2), k[:, b]], 1)
        values = torch.cat([sink_v[:, b], past_v[:, :b].flatten(1, 2), v[:, b]], 1)
        out.append(attend(q[:, b], keys, values)[:, None])
    first, count = ring - 1, blocks - ring + 1
    if count > 0:
        windows = [slice(i, i + count) for i in range(first)]
        keys = torch.cat([sink_k[:, first:], *(past_k[:, w] for w in windows), k[:, first:]], 2)
        values = torch.cat([sink_v[:, first:], *(past_v[:, w] for w in windows), v[:, first:]], 2)
        full = attend(q[:, first:].flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1))
        out.append(full.unflatten(0, (batch, count)))
    return torch.cat(out, 1)


def _condition(dit: DiT, ref: Tensor, motion: Tensor | None, text: TextKV) -> list[tuple[Tensor, Tensor]]:
    """Per layer unrotated condition keys and values [B, C, N, d], made as the streaming prefill makes them."""
    height, width = ref.shape[-2:]
    start = torch.full((1, 1), 30, device=ref.device)
    by = _reference_rotation(dit, start, height // dit.cfg.patch, width // dit.cfg.patch)
    by = Rotation(by.cos[0, 0], by.sin[0, 0], None)
    if dit.cfg.enable_framepack:
        behind = _motion_rotation(dit, height, width, ref.device)
        by = Rotation(torch.cat([by.cos, behind.cos]), torch.cat([by.sin, behind.sin]), None)
    return dit.condition_pass(dit.condition_tokens(ref, motion), by, text)[0]


def _sink(k: Tensor, v: Tensor, reference: Rotation, dit: DiT, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Condition [B, C, N, d] as each block sees it, [B, n, C, N, d]: the reference rolls, motion stays."""
    blocks, tokens = reference.cos.shape[1:3]
    keys = rotate(k[:, None, :tokens], reference)
    if dit.cfg.enable_framepack:
        behind = rotate(k[:, tokens:], _motion_rotation(dit, height, width, k.device))
        keys = torch.cat([keys, behind[:, None].expand(-1, blocks, -1, -1, -1)], 2)
    return keys, v[:, None].expand(-1, blocks, -1, -1, -1)


def _axes(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every token of a latent frame, [S] each."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return row.repeat_interleave(columns), column.repeat(rows)


def _rotation(dit: DiT, angle: Tensor) -> Rotation:
    return rope.rotation(angle, dit.cfg.rope_tables == "rounded", with_complex=False)


def _block_rotation(dit: DiT, x: Tensor, first_block: int, rows: int, columns: int) -> Rotation:
    """Rotation of the noisy tokens, [n, L, d/2]."""
    blocks, frames = x.shape[1], x.shape[3]
    time = torch.arange(blocks * frames, device=x.device) + first_block * frames
    angle = rope.angles(time[:, None], *_axes(rows, columns, x.device), dit.cfg.head_dim)
    return _rotation(dit, angle.reshape(blocks, frames * rows * columns, -1))


def _reference_rotation(dit: DiT, time: Tensor, rows: int, columns: int) -> Rotation:
    """Rotation of the reference at times [B, n]: [B, n, S, d/2]."""
    return _rotation(dit, rope.angles(time[..., None], *_axes(rows, columns, time.device), dit.cfg.head_dim))


def _motion_rotation(dit: DiT, height: int, width: int, device: torch.device) -> Rotation:
    positions = torch.from_numpy(rope.motion_positions(height, width, dit.cfg.patch)).to(device)
    return _rotation(dit, rope.angles(*positions.unbind(-1), dit.cfg.head_dim))

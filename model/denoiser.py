"""Noise to latents, block by block: the steps, the rings of keys and the moving reference.

This is all there is to the published pipelines' core loop; one process, several stages and the offline path differ
only in who calls it. A block runs one pass per noise level against that level's ring; with `history: clean` all levels
share a ring, and one more pass at nearly no noise writes what later blocks remember.

Letters: B batch, F latent frames per block, h and w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.audio_tokens import AudioCondition
from model.config import StreamConfig
from model.dit import DiT, StepModulation, TextKV
from model.kv_cache import ConditionCache, RollingCache
from model.rope import Rotation
from model.sampler import timestep
from model.solvers import solver_maker
from model.state import State

Observer = Callable[[int, Tensor, Tensor], None]
"""Is shown (step, latents in, velocity out) of every step."""


@dataclass(slots=True)
class StreamState(State):
    """One stream's memory, without the VAE's."""

    text: TextKV
    """The prompt's keys and values."""
    reference: Tensor
    """[B, in_dim, 1, h, w] what the stream is conditioned on now."""
    motion: Tensor | None
    """[B, in_dim, any, h, w] past latents for the frame packer."""
    condition: ConditionCache
    """Keys and values made of the three above."""
    rings: list[RollingCache]
    """One per denoising step, or a single clean one."""
    first_latent: Tensor | None = None
    """[B, in_dim, 1, h, w] the first latent frame generated since the start."""
    num_blocks: int = 0
    """Blocks generated since the start."""
    negative: StreamState | None = None
    """With guidance, the same stream as it is heard without prompt and sound: own condition, own rings."""


class Denoiser:
    """The denoising loop of one model at one picture size; holds no stream's state."""

    def __init__(
        self,
        dit: DiT,
        stream: StreamConfig,
        sigmas: Sequence[float],
        latent_height: int,
        latent_width: int,
        kv_dtype: torch.dtype | None = None,
        solver: str = "euler",
        guidance: float = 0.0,
    ) -> None:
        """
        Args:
            dit: the transformer, already in its final dtype and place.
            stream: blocks and memory.
            sigmas: falling noise levels, one per step.
            latent_height, latent_width: of the pictures.
            kv_dtype: of the rings' keys and values; None takes the transformer's.
            solver: one of `sampling.SOLVERS`.
            guidance: above 1, every pass runs a second time and the velocity is `v_null + guidance (v - v_null)`.
        """
        self.guidance = guidance if guidance > 1 else None
        self._solver = solver_maker(solver, sigmas)
        self.dit, self.stream, self._kv_dtype = dit, stream, kv_dtype
        self.height, self.width = latent_height, latent_width
        device = dit.head.head.weight.device
        modulation = lambda sigma: dit.step_modulation(timestep(sigma).to(device))  # noqa: E731
        self.sigmas = tuple(sigmas)
        self.steps = [modulation(sigma) for sigma in sigmas]
        self._clean = modulation(stream.clean_sigma) if stream.history == "clean" else None

    @property
    def num_passes(self) -> int:
        """Passes of the transformer per block."""
        return (len(self.steps) + (self._clean is not None)) * (1 if self.guidance is None else 2)

    @property
    def num_rings(self) -> int:
        """Rings of keys, and with guidance of both streams; each is `ring_blocks` blocks of every layer."""
        return (1 if self._clean is not None else len(self.steps)) * (1 if self.guidance is None else 2)

    def start(
        self, text: TextKV, reference: Tensor, motion: Tensor | None = None, negative: TextKV | None = None
    ) -> StreamState:
        """Fill the condition cache and lay out empty rings; with guidance a second time, for the negative prompt."""
        assert (negative is None) == (self.guidance is None), "guidance needs a negative prompt, and only guidance"
        state = self._start(text, reference, motion)
        state.negative = None if negative is None else self._start(negative, reference, motion)
        return state

    def _start(self, text: TextKV, reference: Tensor, motion: Tensor | None) -> StreamState:
        condition = self.dit.prefill(reference, text, motion, self.stream.sink_time)
        tokens = self.stream.frames_per_block * condition.num_reference
        rings = [
            RollingCache.allocate(condition, self.stream.ring_blocks, tokens, self.stream.evict, self._kv_dtype)
            for _ in range(1 if self._clean is not None else len(self.steps))
        ]
        return StreamState(text=text, reference=reference, motion=motion, condition=condition, rings=rings)

    def recondition(
        self,
        state: StreamState,
        text: TextKV | None = None,
        reference: Tensor | None = None,
        motion: Tensor | None = None,
    ) -> None:
        """Change prompt, reference or motion from the next block on; what is None stays, and so do the rings."""
        state.text = state.text if text is None else text
        state.reference = state.reference if reference is None else reference
        state.motion = state.motion if motion is None else motion
        state.condition = self.dit.prefill(state.reference, state.text, state.motion, self.stream.sink_time)
        for ring in state.rings:
            ring.set_condition(state.condition)
        if state.negative is not None:
            self.recondition(state.negative, reference=reference, motion=motion)

    def block(
        self,
        state: StreamState,
        index: int,
        noise: Tensor,
        audio: AudioCondition,
        pose: Tensor,
        distance: int | Sequence[int],
        observe: Observer | None = None,
        silence: AudioCondition | None = None,
    ) -> Tensor:
        """Generate one block.

        Args:
            state: of the stream; updated in place.
            index: block index; positions follow it.
            noise: [B, in_dim, F, h, w].
            audio, pose: as the transformer's `audio_condition` and `pose` give them for this block.
            distance: latent frames by which the reference is ahead, one for all steps or one per step.
            observe: sees every step.
            silence: with guidance, the condition of features that are all zero.

        Returns:
            Latents [B, out_dim, F, h, w].
        """
        if self.stream.replace_sink and state.num_blocks == self.stream.ring_blocks:
            self.recondition(state, reference=state.first_latent)
        by = self.dit.block_rotation(index * self.stream.frames_per_block, noise.shape[2], self.height, self.width)
        negative = state.negative
        streams = [(state, audio)]
        if negative is not None:
            assert silence is not None, "guidance needs the condition of silence"
            streams.append((negative, silence))
        for stream, _ in streams:
            self._begin(stream, index, distance)
        x, solver = noise, self._solver()
        for i, step in enumerate(self.steps):
            velocities = [self._pass(stream, i, index, distance, x, step, sound, pose, by) for stream, sound in streams]
            velocity = velocities[0]
            if negative is not None:
                velocity = velocities[1] + self.guidance * (velocity - velocities[1])
            if observe is not None:
                observe(i, x, velocity)
            x = solver.step(i, x, velocity)
        for stream, sound in streams:
            if self._clean is not None:
                self.dit(x, self._clean, stream.text, sound, pose, by, stream.rings[0], only_remember=True)
            for ring in stream.rings:
                ring.advance()
        if state.first_latent is None:
            state.first_latent = x[:, :, :1].clone()
        state.num_blocks += 1
        return x

    def _pass(
        self,
        state: StreamState,
        i: int,
        index: int,
        distance: int | Sequence[int],
        x: Tensor,
        step: StepModulation,
        audio: AudioCondition,
        pose: Tensor,
        by: Rotation,
    ) -> Tensor:
        """Velocity of one stream at step `i`."""
        ring = state.rings[i if self._clean is None else 0]
        if self._clean is not None and not isinstance(distance, int):
            ring.set_reference(self._reference_keys(state, index, distance[i]))
        return self.dit(x, step, state.text, audio, pose, by, ring)

    def _begin(self, state: StreamState, index: int, distance: int | Sequence[int]) -> None:
        """Open the block's slot in every ring and place the reference; equal distances share one rotation."""
        distances = [distance] * len(state.rings) if isinstance(distance, int) else list(distance)
        keys = {d: self._reference_keys(state, index, d) for d in set(distances[: len(state.rings)])}
        for ring, d in zip(state.rings, distances, strict=False):
            ring.begin(index)
            ring.set_reference(keys[d])

    def _reference_keys(self, state: StreamState, index: int, distance: int) -> Tensor:
        time = self.stream.reference_time(index * self.stream.frames_per_block, distance)
        return state.condition.rotated_reference(self.dit.reference_rotation(time, self.height, self.width))

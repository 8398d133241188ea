"""Noise to latents, block by block: the steps, the rings of keys and the moving reference.

This is all there is to the published pipelines' core loop; one process, several stages and the offline path differ
only in who calls it. A block runs one pass per noise level against that level's ring; with `history: clean` all levels
share a ring, and one more pass at nearly no noise writes what later blocks remember.

A stage of a plan runs some of the passes, or all of them through some of the layers, and blocks overlap there: one
enters its first step while the one before is in its last. So a block keeps what it is conditioned on (`BlockRun`), and
a ring takes a changed condition over when the first block comes that knows it.

Letters: B batch, F latent frames per block, h and w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.audio_tokens import AudioCondition
from model.config import StreamConfig
from model.dit import DiT, TextKV
from model.kv_cache import ConditionCache, RollingCache
from model.relay import WHOLE, Relay
from model.rope import Rotation
from model.sampler import timestep
from model.solvers import Solver, solver_maker
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
    """Blocks begun since the start."""
    version: int = 0
    """Counts the changes of `condition`."""
    negative: StreamState | None = None
    """With guidance, the same stream as it is heard without prompt and sound: own condition, own rings."""


@dataclass(slots=True)
class _Hearing:
    """What one pass of a block is conditioned on: prompt, portrait, sound, as they were when the block began."""

    state: StreamState
    text: TextKV
    condition: ConditionCache
    version: int
    audio: AudioCondition
    keys: dict[int, Tensor] = field(default_factory=dict)
    """Rotated reference keys by distance."""


@dataclass(slots=True)
class BlockRun:
    """One block between its steps."""

    index: int
    x: Tensor
    """[B, in_dim, F, h, w] latents as far as this share knows them."""
    pose: Tensor
    by: Rotation
    distance: int | Sequence[int]
    solver: Solver
    hearings: list[_Hearing]
    """One, with guidance a second one without prompt and sound."""


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
        relay: Relay = WHOLE,
        allocate: Callable[..., RollingCache] = RollingCache.allocate,
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
            relay: which steps and layers are here, and where the others are.
            allocate: makes a ring, with the arguments of `RollingCache.allocate`.
        """
        self._relay, self._allocate = relay, allocate
        self.guidance = guidance if guidance > 1 else None
        self._solver = solver_maker(solver, sigmas)
        self.dit, self.stream, self._kv_dtype = dit, stream, kv_dtype
        self.height, self.width = latent_height, latent_width
        modulation = lambda sigma: dit.step_modulation(timestep(sigma).to(dit.device))  # noqa: E731
        self.sigmas = tuple(sigmas)
        self.steps = [modulation(sigma) for sigma in sigmas]
        self._clean = modulation(stream.clean_sigma) if stream.history == "clean" else None

    @property
    def num_steps(self) -> int:
        """Steps of a block; with `history: clean` the pass that only remembers is one more."""
        return len(self.steps) + (self._clean is not None)

    @property
    def num_passes(self) -> int:
        """Passes of the transformer per block."""
        return self.num_steps * (1 if self.guidance is None else 2)

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
        condition = self._prefill(reference, text, motion)
        tokens = self.stream.frames_per_block * condition.num_reference
        first, last = self._relay.first_step, min(self._relay.last_step, len(self.steps) - 1)
        rings = [
            self._allocate(condition, self.stream.ring_blocks, tokens, self.stream.evict, self._kv_dtype)
            for _ in range(1 if self._clean is not None else last - first + 1)
        ]
        return StreamState(text=text, reference=reference, motion=motion, condition=condition, rings=rings)

    def _prefill(self, reference: Tensor, text: TextKV, motion: Tensor | None) -> ConditionCache:
        return self.dit.prefill(reference, text, motion, self.stream.sink_time, self._relay)

    def recondition(
        self,
        state: StreamState,
        text: TextKV | None = None,
        reference: Tensor | None = None,
        motion: Tensor | None = None,
    ) -> None:
        """Change prompt, reference or motion from the next block on; what is None stays, and so do past blocks."""
        state.text = state.text if text is None else text
        state.reference = state.reference if reference is None else reference
        state.motion = state.motion if motion is None else motion
        state.condition = self._prefill(state.reference, state.text, state.motion)
        state.version += 1
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
        if self.needs_new_sink(state.num_blocks):
            self.recondition(state, reference=state.first_latent)
        run = self.begin(state, index, noise, audio, pose, distance, silence)
        for i in range(self.num_steps):
            self.step(run, i, observe)
        if state.first_latent is None:
            state.first_latent = run.x[:, :, :1].clone()
        return run.x

    def needs_new_sink(self, num_blocks: int) -> bool:
        """Whether the block after `num_blocks` is the first that is conditioned on the stream's own first latent."""
        return self.stream.replace_sink and num_blocks == self.stream.ring_blocks

    def begin(
        self,
        state: StreamState,
        index: int,
        noise: Tensor,
        audio: AudioCondition,
        pose: Tensor,
        distance: int | Sequence[int],
        silence: AudioCondition | None = None,
    ) -> BlockRun:
        """Prepare a block for its steps; arguments as `block`'s. Blocks of a stream begin in order."""
        by = self.dit.block_rotation(index * self.stream.frames_per_block, noise.shape[2], self.height, self.width)
        hearings = [_Hearing(state, state.text, state.condition, state.version, audio)]
        other = state.negative
        if other is not None:
            assert silence is not None, "guidance needs the condition of silence"
            hearings.append(_Hearing(other, other.text, other.condition, other.version, silence))
        state.num_blocks += 1
        return BlockRun(index, noise, pose, by, distance, self._solver(), hearings)

    def step(self, run: BlockRun, i: int, observe: Observer | None = None) -> None:
        """Run step `i` of a block through the layers that are here.

        Every ring sees the steps of a stream's blocks in the blocks' order; beyond that they may come in any order that
        the latents allow.
        """
        relay, dit = self._relay, self.dit
        x = hidden = run.x
        if relay.enters:
            x = hidden = relay.take_latents(i, run.x)
        else:
            shape = dit.hidden_shape(len(run.hearings) * len(x), x.shape[2], *x.shape[3:])
            hidden = relay.take_hidden(shape, dit.head.head.weight)
        passed = [
            self._pass(run, i, hearing, x, hidden[n * len(x) : (n + 1) * len(x)])
            for n, hearing in enumerate(run.hearings)
        ]
        if not relay.leaves:
            relay.give_hidden(torch.cat(passed) if len(passed) > 1 else passed[0])
        elif i < len(self.steps):
            velocities = [dit.leave(each, self.steps[i], x.shape[3]) for each in passed]
            velocity = velocities[0]
            if len(velocities) > 1:
                velocity = velocities[1] + self.guidance * (velocity - velocities[1])
            if observe is not None:
                observe(i, x, velocity)
            run.x = run.solver.step(i, x, velocity)
            relay.give_latents(i, run.x)

    def _pass(self, run: BlockRun, i: int, hearing: _Hearing, x: Tensor, hidden: Tensor) -> Tensor:
        """One stream's hidden states behind the layers that are here."""
        ring = self._ring(run, i, hearing)
        if self._relay.enters:
            hidden = self.dit.enter(x, run.pose)
        is_clean = i == len(self.steps)
        step = self._clean if is_clean else self.steps[i]
        ends = is_clean and self._relay.leaves
        hidden = self.dit.through(hidden, step, hearing.text, hearing.audio, run.by, ring, ends)
        if self._clean is None or is_clean:
            ring.advance()
        return hidden

    def _ring(self, run: BlockRun, i: int, hearing: _Hearing) -> RollingCache:
        """The step's ring, the block's slot open and the condition in place."""
        is_shared = self._clean is not None
        ring = hearing.state.rings[0 if is_shared else i - self._relay.first_step]
        if ring.version != hearing.version:
            ring.set_condition(hearing.condition)
            ring.version = hearing.version
        is_new = not is_shared or i == 0
        if is_new:
            ring.begin(run.index)
        if is_new or (not isinstance(run.distance, int) and i < len(self.steps)):
            distance = run.distance if isinstance(run.distance, int) else run.distance[i]
            if distance not in hearing.keys:
                hearing.keys[distance] = self._reference_keys(hearing.condition, run.index, distance)
            ring.set_reference(hearing.keys[distance])
        return ring

    def _reference_keys(self, condition: ConditionCache, index: int, distance: int) -> Tensor:
        time = self.stream.reference_time(index * self.stream.frames_per_block, distance)
        return condition.rotated_reference(self.dit.reference_rotation(time, self.height, self.width))

"""A rank of a plan from nothing to work: it learns its role, loads its share, meets the others, builds its stage.

Every rank runs these same steps; the leader then drives (`model.leader`), the others follow orders (`model.crew`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch
from torch import nn

from model.config import ModelConfig, RunConfig
from model.crew import Peers, follow
from model.denoiser import Denoiser
from model.errors import UnsupportedError
from model.fast import device_of, kv_dtype_of, make_fast
from model.links import Limit, Ways, find_store, join, open_store
from model.mesh import Mesh, Role, check_sequence
from model.orders import Answer, Joined, Meet
from model.parallel import Plan
from model.profile import Profile
from model.screen import Screen
from model.sequence import share_out
from model.share import layer_costs, share_of
from model.solvers import with_choices
from model.stages import RankRelay, Stage
from model.wan_vae import decode_in_tiles
from model.weights import load_weights, read_config

LOADING_S = 900.0
"""Longest time that one rank waits for another while they load and compile."""
HURRY_S = 20.0
"""The same once every rank has computed a block."""


DECODING_PASSES = 0.43
"""A block's decoding in passes of the transformer: 69 and 158 ms for the published ones on an H200."""


@dataclass(slots=True)
class Loaded:
    """What a rank has before it meets the others."""

    config: ModelConfig
    mesh: Mesh
    role: Role
    device: torch.device
    modules: dict[str, nn.Module]
    run: RunConfig


def mesh_of(config: ModelConfig, plan: Plan) -> Mesh:
    """Roles of a plan over a model.

    Raises:
        ValueError: the model cannot be laid out so.
    """
    geometry, dit, stream = config.geometry, config.dit, config.stream
    tokens = (geometry.latent_height // dit.patch) * (geometry.latent_width // dit.patch)
    check_sequence(plan.sequence, dit.num_heads, tokens)
    steps = len(config.sampler.sigmas)
    is_clean = stream.history == "clean"
    if plan.kind == "timestep" and plan.pipeline > 1 and is_clean:
        raise ValueError(f"plan is timestep, but all steps of {config.name} share one memory; use layers or sequence")
    block = stream.frames_per_block * tokens
    keys = dit.condition_tokens(geometry.latent_height, geometry.latent_width) + stream.ring_blocks * block
    costs = layer_costs(dit, block, keys)
    decoding = DECODING_PASSES * sum(costs) / (steps + is_clean)
    return Mesh(plan, dit.num_layers, steps + is_clean, costs, decoding)


def place_of(run: RunConfig, plan: Plan, rank: int) -> RunConfig:
    """The configuration with this rank's own device.

    Raises:
        ValueError: the machine has too few.
    """
    kind = torch.device(
        "cuda" if run.device == "auto" and torch.cuda.is_available() else run.device.replace("auto", "cpu")
    )
    if kind.type != "cuda":
        return replace(run, device="cpu")
    if kind.index is not None:
        raise ValueError(f"device is {run.device}, but plan {plan.name} takes all; set device to cuda or auto")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < plan.num_devices:
        raise ValueError(
            f"plan {plan.name} needs {plan.num_devices} GPUs but this machine has {count}; lower parallel.pipeline or "
            "parallel.sequence, or put the VAE on a shared device"
        )
    return replace(run, device=f"cuda:{rank}")


@torch.inference_mode()
def load_rank(run: RunConfig, plan: Plan, rank: int) -> Loaded:
    """Learn the role and load its share.

    Raises:
        CheckpointError: as `load_weights`.
        UnsupportedError: plan, machine and checkpoint do not fit each other.
    """
    try:
        run = place_of(run, plan, rank)
        if run.steps == "light":
            raise ValueError("steps is light, which is for slow machines; a plan over several devices runs full")
        if plan.kind == "timestep" and plan.pipeline > 1 and run.solver != "euler":
            raise ValueError(
                f"solver is {run.solver}, which remembers the steps before; plan timestep runs them elsewhere, so use "
                "euler, or plan layers"
            )
        if run.decoder == "small" and not getattr(read_config(run).vae, "small_widths", ()):
            raise ValueError("decoder is small, but this checkpoint has none; choose auto or full")
        device_of(run)
        mesh = mesh_of(with_choices(read_config(run), {}, run), plan)
        role = mesh.roles[rank]
        config, modules = load_weights(run, share_of(role))
        config = with_choices(config, modules, run)
        if plan.vae == "tiled" and role.decodes:
            decode_in_tiles(modules["vae"], config.name)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    return Loaded(config, mesh, role, torch.device(run.device), modules, run)


def build_stage(
    config: ModelConfig,
    role: Role,
    ways: Ways,
    device: torch.device,
    *,
    dit: nn.Module | None,
    screen: Screen | None,
    answer: Callable[[Answer], None],
    kv_dtype: torch.dtype | None = None,
    solver: str = "euler",
    guidance: float = 0.0,
) -> Stage:
    """A rank's stage around modules that are in their final form.

    Args:
        config: of the whole checkpoint.
        role, ways, device: of the rank.
        dit, screen: where the role needs them.
        answer: takes what the stage reports.
        kv_dtype, solver, guidance: as for `Denoiser`.
    """
    geometry, sigmas = config.geometry, config.sampler.sigmas
    size = geometry.latent_height, geometry.latent_width
    shape = (1, config.dit.in_dim, config.stream.frames_per_block, *size)
    num_steps = len(sigmas) + (config.stream.history == "clean")
    relay = RankRelay(role, ways, shape, num_steps)
    denoiser = None
    if dit is not None:
        with torch.inference_mode():
            denoiser = Denoiser(dit, config.stream, sigmas, *size, kv_dtype, solver, guidance, relay)
    return Stage(
        role,
        ways,
        device,
        latent_shape=shape,
        num_steps=num_steps,
        num_sigmas=len(sigmas),
        relay=relay,
        denoiser=denoiser,
        screen=screen,
        answer=answer,
    )


def stage_of(loaded: Loaded, ways: Ways, answer: Callable[[Answer], None]) -> tuple[Stage, Profile]:
    """Bring a rank's modules into their final form and build its stage."""
    run, modules, config = loaded.run, loaded.modules, loaded.config
    dit, vae = modules.get("dit"), modules.get("vae")
    if dit is not None and ways.team is not None:
        share_out(dit, ways.team)
    reasons: dict[str, str] = {"schedule": "full schedule: a plan over several devices has no other"}
    if loaded.device.type == "cuda":
        dit_dtype, vae_dtype = make_fast(modules, run, reasons)
    else:
        dit_dtype = vae_dtype = torch.bfloat16 if run.dtype == "bfloat16" else torch.float32
        reasons["dtype"] = "float32 unless bfloat16 is configured: ranks do not choose apart from each other"
        if dit is not None:
            dit.to(dit_dtype)
        for name in ("decoder", "small_decoder"):
            if getattr(vae, name, None) is not None:
                getattr(vae, name).to(vae_dtype)
    if vae is not None and loaded.run.decoder == "small":
        vae.uses_small = True
    profile = replace(
        Profile.untimed(config),
        dit_dtype=dit_dtype,
        vae_dtype=vae_dtype,
        reasons=reasons,
        schedule="full",
        kv_dtype=kv_dtype_of(run),
    )
    stage = build_stage(
        config,
        loaded.role,
        ways,
        loaded.device,
        dit=dit,
        screen=None if vae is None else Screen(vae, config.stream, vae_dtype),
        answer=answer,
        kv_dtype=profile.kv_dtype,
        solver=run.solver,
        guidance=run.guidance if run.is_guided else 0.0,
    )
    return stage, profile


def meet(loaded: Loaded, pipes: list[Connection]) -> Ways:
    """Join the group: the leader opens its meeting point and tells where, the others come there.

    Args:
        loaded: this rank.
        pipes: to the others for the leader, else the one to the leader.
    """
    role, world = loaded.role, loaded.role.world
    if role.leads:
        store = open_store(world, LOADING_S)
        for pipe in pipes:
            pipe.send(Meet(port=store.port))
    else:
        told = pipes[0].recv()
        assert isinstance(told, Meet), told
        store = find_store(told.port, world, LOADING_S)
    join(store, role.rank, world, loaded.device, LOADING_S, few_cores=loaded.mesh.plan.sequence == 1)
    return Ways(loaded.mesh, role, loaded.device, Limit(LOADING_S))


def run_follower(run: RunConfig, plan: Plan, rank: int, pipe: Connection) -> None:
    """Everything that a rank but the leader does, until it is told to leave.

    Raises:
        ModelError: one sentence.
    """
    loaded = load_rank(run, plan, rank)
    ways = meet(loaded, [pipe])
    stage, _ = stage_of(loaded, ways, pipe.send)
    pipe.send(Joined(rank))
    follow(stage, pipe)


def leader_of(run: RunConfig, plan: Plan, pipes: list[Connection]) -> tuple[Loaded, Stage, Profile, Peers]:
    """The leader's part of the same: its own share, and the others at the end of their pipes."""
    loaded = load_rank(run, plan, 0)
    ways = meet(loaded, pipes)
    peers = Peers(pipes)
    stage, profile = stage_of(loaded, ways, peers.answers.put)
    return loaded, stage, profile, peers

"""What a mesh makes of a plan, what each rank holds, and what cannot be laid out."""

from __future__ import annotations

import dataclasses

import pytest

from model.config import DiTConfig
from model.forge import forged_config
from model.gpus import parse_gpus
from model.memory import Setting
from model.mesh import Mesh, check_sequence, split
from model.parallel import Plan
from model.planner import lay_out
from model.rank import mesh_of
from model.share import share_config, whole_name


def test_every_layer_and_step_is_somewhere_once() -> None:
    for plan in (
        Plan(kind="layers", pipeline=3, vae="own"),
        Plan(kind="timestep", pipeline=2, sequence=2),
        Plan(kind="layers", pipeline=2, sequence=2),
        Plan(kind="sequence", sequence=4),
        Plan(),
    ):
        mesh = Mesh(plan, 10, 4)
        ours = [role for role in mesh.roles if role.transforms and role.part == 0]
        pairs = sorted((layer, step) for role in ours for layer in role.layers for step in role.steps)
        assert pairs == [(layer, step) for layer in range(10) for step in range(4)]
        assert [role.rank for role in mesh.roles if role.decodes] == [mesh.decoder]
        assert [role.rank for role in mesh.roles if role.leads] == [0]
        sources = [(link.kind, link.target) for link in mesh.links()]
        assert len(set(sources)) == len(sources), "a rank hears each kind from one other"


def test_layers_are_cut_by_cost_and_the_decoder_counts() -> None:
    assert split([1, 1, 1, 1, 1, 1], 3) == [range(0, 2), range(2, 4), range(4, 6)]
    assert split([4, 1, 1, 1, 1], 2) == [range(0, 1), range(1, 5)]
    lengths = [len(run) for run in split([1.0] * 40, 4, tail=5.0)]
    assert sum(lengths) == 40 and max(*lengths[:3], lengths[3] + 5) == 12


def test_the_planners_cut_is_what_ranks_load() -> None:
    mini = forged_config("mini")
    layout = lay_out(Setting(config=mini, steps=4), Plan(kind="layers", pipeline=2), parse_gpus("2x24GB"), 1.0)
    assert len(layout.plan.cut) == 2 and sum(layout.plan.cut) == mini.dit.num_layers
    mesh = mesh_of(mini, dataclasses.replace(layout.plan, cut=(1, mini.dit.num_layers - 1)))
    assert mesh.layers == [range(1), range(1, mini.dit.num_layers)]
    assert mesh_of(mini, layout.plan).layers == [duty.layers for duty in layout.duties]
    with pytest.raises(ValueError, match="made for 5 layers but the checkpoint has 4"):
        mesh_of(mini, dataclasses.replace(layout.plan, cut=(3, 2)))


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="40 heads; use 1, 2, 4, 5, 8"):
        check_sequence(3, 40, 1056)
    with pytest.raises(ValueError, match="tokens of a picture"):
        check_sequence(5, 40, 1056)
    with pytest.raises(ValueError, match="at most 4"):
        mesh_of(forged_config("mini"), Plan(kind="timestep", pipeline=5))
    with pytest.raises(ValueError, match="4 layers"):
        mesh_of(forged_config("mini"), Plan(kind="layers", pipeline=8))
    mini = forged_config("mini")
    clean = dataclasses.replace(mini, stream=dataclasses.replace(mini.stream, history="clean"))
    with pytest.raises(ValueError, match="share one memory"):
        mesh_of(clean, Plan(kind="timestep", pipeline=2))


def test_a_share_knows_its_names_in_the_whole() -> None:
    whole, layers = DiTConfig(), range(10, 20)
    assert share_config(whole, layers).audio_inject_layers == (2, 6)
    assert whole_name("blocks.3.ffn.0.weight", whole, layers) == "blocks.13.ffn.0.weight"
    assert whole_name("audio_injector.injector.1.q.bias", whole, layers) == "audio_injector.injector.4.q.bias"
    assert whole_name("head.head.weight", whole, layers) == "head.head.weight"

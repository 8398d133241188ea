"""The planner's bytes against measured peaks and real modules, its choices, and the plans of the shipped hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.bench_memory import CASES, measure
from model.config import RunConfig, tiny
from model.errors import UnsupportedError
from model.gpus import USABLE, parse_gpus
from model.memory import (
    GB,
    Duty,
    Setting,
    audio_bytes,
    base_params,
    decoder_params,
    decoding,
    encoder_params,
    layer_bytes,
    need_of,
    text_bytes,
)
from model.parallel import ParallelConfig, Plan
from model.planner import choose, lay_out
from model.published import forged_config, published
from model.setting import model_sizes, setting_of
from model.weights import build_modules

BENCH = Setting(config=published(), steps=4, with_encoders=False, live=False)
ALL = Duty(layers=range(40), rings=4, leads=True, decodes=False)


@pytest.mark.parametrize(
    ("weights", "kv", "measured_gb"), [("fp8", "bf16", 72.75), ("fp8", "fp8", 47.66), ("bf16", "bf16", 88.7)]
)
def test_predictions_hold_against_measured_peaks(weights: str, kv: str, measured_gb: float) -> None:
    need = need_of(BENCH, Plan(weights_dtype=weights, kv_dtype=kv), ALL)
    assert need.peak / GB == pytest.approx(measured_gb, rel=0.01)


def test_the_decoder_holds_against_its_measured_peak() -> None:
    state, work = decoding(BENCH)
    assert state / GB == pytest.approx(1.278, rel=0.001)
    assert (state + work + 2 * decoder_params(BENCH.config.vae)) / GB == pytest.approx(7.12, rel=0.02)


@pytest.mark.parametrize("config", [published(), forged_config("mini")], ids=lambda c: c.name)
def test_weights_are_counted_exactly(config) -> None:
    with torch.device("meta"):
        modules = build_modules(config)

    def count(*parts: torch.nn.Module) -> int:
        return sum(p.numel() for p in {id(p): p for part in parts for p in part.parameters()}.values())

    dit, vae = config.dit, modules["vae"]
    assert count(modules["dit"]) == base_params(dit) + layer_bytes(dit, range(dit.num_layers), False) // 2
    assert count(modules["text"]) == text_bytes(config.text) // 2
    assert count(modules["audio"]) == pytest.approx(audio_bytes(config.audio) / 4, rel=0.01)
    assert count(vae.encoder, vae.quant_conv) == encoder_params(config.vae)
    assert count(vae.decoder, vae.post_quant_conv) == decoder_params(config.vae)


@pytest.mark.parametrize("name", ["single-fp8", "decoder"])
def test_what_stays_is_what_was_predicted(name: str) -> None:
    """The script that runs on a card, at mini size: tensors that stay, where a processor counts no peaks."""
    case = next(case for case in CASES if case.name == name)
    assert measure(case, "mini", "64x64", compiled=False)["kept"]["ratio"] == pytest.approx(1, abs=0.02)


def test_a_larger_wish_never_needs_less() -> None:
    def total(plan: Plan | None = None, **changes) -> float:
        setting = replace(Setting(config=published(), steps=4), **changes)
        return need_of(setting, plan or Plan(), replace(ALL, decodes=True)).peak

    base = total()
    small = replace(published(), width=512, height=288)
    assert total(guided=True) > base + 50 * GB  # a second set of caches
    assert total(config=small) < total(Plan(kv_dtype="fp8")) < base
    assert total(Plan(weights_dtype="fp8")) < base - 15 * GB
    assert base - total(text_on_host=True) == pytest.approx(11.36 * GB, rel=0.01)
    assert total(Plan(vae="tiled")) < base
    one = Setting(config=published(), steps=4)
    apart = [
        need_of(one, Plan(vae=place), Duty(layers=range(0), rings=0, leads=False, decodes=True))
        for place in ("own", "tiled")
    ]
    assert apart[0].peak - apart[1].peak > 2 * GB
    offloads = [Plan(kind="offload", offload=what) for what in ("weights", "weights+kv")]
    rings = [need_of(one, plan, ALL).rolling_cache for plan in offloads]
    assert rings[1] == pytest.approx(rings[0] * 2 / (4 * 40))  # two layers of one ring


def test_the_fastest_plan_that_fits_is_taken() -> None:
    setting = Setting(config=published(), steps=4)
    blocks = {}
    for count in (1, 2, 4):
        best = choose(setting, parse_gpus(f"{count}x141GB")).chosen
        assert best is not None and best.fits and best.plan.num_devices == count
        blocks[count] = best.block_s
        assert best.sessions == int(0.48 / best.block_s)
    assert blocks[1] == pytest.approx(0.704, rel=0.01)  # 4 passes and a decoding, as measured
    assert blocks[4] < 0.3 * blocks[1]
    only = choose(setting, parse_gpus("4x141GB"), runnable={"single": ("shared",)}).chosen
    assert only is not None and only.plan.kind == "single"


def test_layers_are_split_so_that_every_card_has_room() -> None:
    setting, cards = Setting(config=published(), steps=4, text_on_host=True), parse_gpus("4x24GB")
    layout = lay_out(setting, Plan(kind="layers", pipeline=4, kv_dtype="fp8"), cards, 1.0)
    assert layout.fits and min(layout.free) >= 0
    spans = [duty.layers for duty in layout.duties]
    assert [layer for span in spans for layer in span] == list(range(40))
    assert len(spans[3]) < len(spans[1])  # the last card decodes as well
    packed = lay_out(replace(setting, text_on_host=False), Plan(kind="layers", pipeline=4, kv_dtype="fp8"), cards, 1.0)
    assert not packed.fits and len(packed.duties[0].layers) < len(spans[0])  # the first holds the prompt encoder


@pytest.mark.parametrize(
    ("gpus", "changes", "words"),
    [
        ("1x80GB", {"text_on_host": True}, "fp8 caches"),
        ("1x80GB", {"text_on_host": False}, "fp8 weights and fp8 caches"),
        ("1x63GB", {}, "prompt encoder on the host"),
        ("1x48GB", {"text_on_host": True}, "fewer cached frames"),
        ("1x24GB", {"text_on_host": True}, "offload of weights and caches"),
    ],
)
def test_a_miss_says_by_how_much_and_what_helps(gpus: str, changes: dict, words: str) -> None:
    cards, setting = parse_gpus(gpus), replace(Setting(config=published(), steps=4), **changes)
    kv = "bf16" if "caches" in words and "offload" not in words and "fewer" not in words else "fp8"
    weights = "bf16" if words == "fp8 weights and fp8 caches" else "fp8"
    outcome = choose(setting, cards, ParallelConfig(plan="single", vae="shared"), weights, kv)
    (miss,) = outcome.misses
    assert outcome.chosen is None and words in miss.remedy
    assert miss.by == pytest.approx(-min(outcome.nearest.free)) and miss.by > 0


def test_tiles_are_taken_where_only_they_fit() -> None:
    setting = Setting(config=published(), steps=4, text_on_host=True)
    whole = need_of(setting, Plan(weights_dtype="fp8", kv_dtype="fp8"), replace(ALL, decodes=True)).peak
    tight = parse_gpus(f"1x{(whole / GB + 0.5) / 0.923:.1f}GB")  # with 1 GB in reserve half of one is missing
    shared = choose(setting, tight, ParallelConfig(plan="single", vae="shared"), "fp8", "fp8")
    assert shared.chosen is None and shared.misses[0].remedy == "decoding tile by tile (parallel.vae tiled)"
    best = choose(setting, tight, ParallelConfig(plan="single"), "fp8", "fp8").chosen
    assert best is not None and best.plan.vae == "tiled"
    assert choose(setting, parse_gpus("1x141GB"), ParallelConfig(plan="single")).chosen.plan.vae == "shared"
    with pytest.raises(ValueError, match="vae is tiled, but the decoder of tiny"):
        choose(Setting(config=tiny(), steps=4), tight, ParallelConfig(vae="tiled"))


def test_what_cannot_be_laid_out_is_one_sentence() -> None:
    setting = Setting(config=published(), steps=4)
    with pytest.raises(ValueError, match="sequence that divides the heads"):
        choose(setting, parse_gpus("3x80GB"), ParallelConfig(plan="sequence", sequence=3))


@pytest.mark.parametrize("text", ["", "4", "24", "0x24GB", "4x0GB", "65x24GB", "4x24TB", "4x24GB,"])
def test_bad_cards_are_one_sentence(text: str) -> None:
    with pytest.raises(UnsupportedError, match="write 4x24GB"):
        parse_gpus(text)


def test_cards_are_read_as_people_write_them() -> None:
    cards = parse_gpus("2x24GB, 80gb")
    assert [round(card.usable / GB, 2) for card in cards] == [round(USABLE * n, 2) for n in (24, 24, 80)]


def test_sizes_come_from_headers(tmp_path) -> None:
    assert model_sizes("tiny").width == 256
    assert model_sizes(str(tmp_path / "not_there_yet")).dit.dim == 5120
    setting = setting_of(RunConfig(checkpoint="random:14b", size="512x288", num_steps=3, guidance=2.0))
    assert (setting.config.width, setting.steps, setting.passes) == (512, 3, 6)
    with pytest.raises(UnsupportedError, match="cannot be read for planning"):
        model_sizes(str(tmp_path / "gone.safetensors"))

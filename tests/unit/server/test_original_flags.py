"""Every flag of the original: it works, is taken with a notice, or is refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import av
import pytest

from server.config import ModelSection
from server.errors import ConfigError
from server.original_flags import REFUSED, SWITCHES, WITHOUT_EFFECT, read_original_flags
from tests.unit.server.test_cli import GENERATE, folder, run

__all__ = ["folder"]

WORKS = (
    "image audio prompt size num_clip infer_frames base_seed ckpt_dir lora_path_dmd out save_file save_dir output_name"
)
CONTRACT = """
image audio prompt size num_clip infer_frames fps sample_steps sample_solver sample_guide_scale base_seed ckpt_dir
lora_path_dmd load_lora pose_video mask out save_file output_name save_dir fp8 offload_model offload_kv_cache t5_cpu
num_gpus_dit ulysses_size enable_vae_parallel enable_online_decode single_gpu convert_model_dtype sample_shift task
frame_num training_config drop_motion_noisy start_from_ref t5_fsdp dit_fsdp use_prompt_extend enable_tts use_dataset
"""


def test_no_flag_of_the_contract_is_unknown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With an impossible value each is refused by name, or accepted; none is called no option."""
    own = set(WORKS.split())
    for name in sorted(set(CONTRACT.split()) - own):
        word = f"--{name}" if name in SWITCHES else f"--{name}=17"
        try:
            read_original_flags([word])
        except ConfigError as error:
            assert f"--{name} is " in str(error) and "not an option" not in str(error)
    for name in sorted(own):
        assert run(*GENERATE, f"--{name}", "") in (0, 2)
        assert "not an option" not in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_flags_without_effect_say_why(name: str) -> None:
    words = [f"--{name}"] if name in SWITCHES else [f"--{name}", "x"]
    (notice,) = read_original_flags(words).notices
    assert notice.startswith(f"--{name} has no effect: ")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_flags_name_the_replacement(name: str) -> None:
    words = [f"--{name}"] if name in SWITCHES else [f"--{name}", "x"]
    with pytest.raises(ConfigError, match=re.escape(REFUSED[name])):
        read_original_flags(words)
    if name in SWITCHES:
        assert read_original_flags([f"--{name}=false"]).notices == ()


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("--fp8", {"weights_dtype": "fp8"}),
        ("--t5_cpu true", {"text_device": "cpu"}),
        ("--convert_model_dtype", {"dtype": "bfloat16"}),
        ("--convert_model_dtype=false", {}),
        ("--enable_online_decode", {}),
        ("--enable_online_decode False", {"sink": "keep"}),
    ],
)
def test_switches_of_the_model(words: str, key: dict[str, str]) -> None:
    flags = read_original_flags(words.split())
    assert flags.model == key and not flags.notices
    ModelSection(checkpoint="random:mini", **flags.wish["sampling"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fbs", "25"], "did you mean --fps"),
        (["--numclip", "2"], "did you mean --num_clip"),
        (["stray"], "not an option"),
        (["--fps"], "has no value"),
        (["--fp8=perhaps"], "write true or false"),
        (["--sample_guide_scale", "0.5"], "0 or 1 is off"),
        (["--sample_guide_scale", "-1"], "0 or 1 is off"),
        (["--sample_solver", "heun"], "--sample_solver is .heun.; choose euler"),
        (["--sample_steps", "9"], "--sample_steps is 9; use 1 to 8"),
        (["--sample_steps", "2.5"], "give a whole number"),
        (["--sample_shift", "0"], "--sample_shift is 0"),
        (["--fps", "30"], "--fps is 30; choose 16 or 25"),
        (["--sample_guide_scale", "much"], "give a number"),
    ],
)
def test_bad_flags_are_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_original_flags(words, ["num_clip"])


def test_sampling_flags_become_keys_of_the_model() -> None:
    words = "--sample_solver dpm++ --sample_steps=6 --sample_shift 5 --sample_guide_scale 4.5 --fps 16 --parity".split()
    flags = read_original_flags([*words, "--size_rule", "area"])
    assert flags.parity and dict(flags.sampling) == {
        "solver": "dpm++", "num_steps": 6, "shift": 5.0, "guidance": 4.5, "fps": 16, "size_rule": "area",
    }  # fmt: skip


def test_a_command_line_of_the_original_runs(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = "--task s2v-14B --sample_solver euler --sample_guide_scale 0 --infer_frames 32 --num_clip 1 --single_gpu"
    more = "--enable_online_decode --offload_model False --convert_model_dtype --save_dir films --output_name one"
    assert run(*GENERATE, *flags.split(), *more.split()) == 0
    told = capfd.readouterr().err
    assert "--task has no effect" in told and "--infer_frames 32 becomes 24" in told
    with av.open("films/one.mp4") as film:
        assert sum(1 for _ in film.decode(video=0)) == 24
        assert abs(film.duration / 1e6 - 24 / 25) < 0.06


def test_an_adapter_needs_a_name_and_bad_lengths_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["--load_lora"], "--lora_path_dmd"),
        (["--num_clip", "0"], "--num_clip is 0"),
        (["--infer_frames", "5"], "--infer_frames is 5"),
        (["--out", "a.mp4", "--output_name", "b"], "--output_name"),
    ):
        assert run(*GENERATE, *words) == 2
        assert sentence in capfd.readouterr().err
    assert not list(Path().glob("*.mp4"))

"""The original program's flags of `generate` that are no options of ours: taken, taken with a notice, or refused.

A command line written for the original runs, or one sentence says what stands in its way. Flags of things that this
version does not have are refused as such: nothing is accepted and then silently not done.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.sampling import SamplingChoice
from server.errors import ConfigError
from server.plan_flags import PLAN_COUNTS, PLAN_SWITCHES, PlanFlags

WITHOUT_EFFECT = {
    "task": "there is one task, s2v",
    "frame_num": "the length follows the sound, or --num_clip",
    "training_config": "rank and scale of the adapter come from its file and the configuration",
    "drop_motion_noisy": "the original ignores it too",
    "start_from_ref": "the original ignores it too",
}
"""Accepted; a notice says why they change nothing."""

REFUSED = {
    "t5_fsdp": "weights are never gathered from shards; leave it out",
    "dit_fsdp": "weights are never gathered from shards; leave it out",
    "use_prompt_extend": "prompts are taken as written; extend the prompt first and give it to --prompt",
    "prompt_extend_method": "prompts are taken as written; extend the prompt first and give it to --prompt",
    "prompt_extend_model": "prompts are taken as written; extend the prompt first and give it to --prompt",
    "prompt_extend_target_lang": "prompts are taken as written; extend the prompt first and give it to --prompt",
    "enable_tts": "synthesise the speech first and give the file to --audio",
    "tts_prompt_audio": "synthesise the speech first and give the file to --audio",
    "tts_prompt_text": "synthesise the speech first and give the file to --audio",
    "tts_text": "synthesise the speech first and give the file to --audio",
    "use_dataset": "give one portrait and one sound file",
    "dataset_sample_idx": "give one portrait and one sound file",
}
"""Refused for good, with what to do instead."""

MODEL_SWITCHES = {
    "fp8": {True: ("weights_dtype", "fp8")},
    "t5_cpu": {True: ("text_device", "cpu")},
    "convert_model_dtype": {True: ("dtype", "bfloat16")},
    "enable_online_decode": {False: ("sink", "keep")},  # decoding always streams; without it the sink stayed
}
"""Flags that, being true or false, set a key of the model's section."""

SAMPLING = {
    "sample_solver": ("solver", str),
    "sample_steps": ("num_steps", int),
    "sample_shift": ("shift", float),
    "sample_guide_scale": ("guidance", float),
    "fps": ("fps", int),
    "size_rule": ("size_rule", str),
}
"""Flags that set a key of the model's section, whose range checks then speak."""

FILES = ("mask", "pose_video")
"""Flags that name files; what is in them is checked where they are read."""

SWITCHES = frozenset(
    (
        "convert_model_dtype", "drop_motion_noisy", "start_from_ref", "t5_fsdp", "dit_fsdp", "use_prompt_extend",
        "enable_tts", "use_dataset", "parity", "fp8", "offload_model", "offload_kv_cache", "t5_cpu",
        "enable_vae_parallel", "enable_online_decode", "single_gpu", "load_lora",
    )
)  # fmt: skip
"""Flags that need no value: alone they mean true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalFlags:
    """What a command line for the original says beyond our own options."""

    load_lora: bool | None = None
    """Whether an adapter is merged; None: if one is named."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `model.sampling.SamplingChoice`."""
    model: Mapping[str, str] = field(default_factory=dict)
    """Other keys of the model's section."""
    plan: PlanFlags = field(default_factory=PlanFlags)
    """About cards and memory."""
    parity: bool = False
    """Whether sound and noise are the published pipelines'."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """What the flags of `FILES` name."""
    notices: tuple[str, ...] = field(default=())
    """Sentences to print."""

    @property
    def wish(self) -> dict[str, Any]:
        """Fields of `server.generate.FilmWish`."""
        sampling = {**self.sampling, **self.model}
        plain = {"load_lora": self.load_lora, "sampling": sampling, "plan": self.plan, "parity": self.parity}
        return {**plain, **self.files}


def read_original_flags(arguments: Sequence[str], own: Sequence[str] = ()) -> OriginalFlags:
    """Read what our own options left over.

    Args:
        arguments: words of the command line, spelt with `_`.
        own: names of our own options, for the nearest known name.

    Raises:
        ConfigError: an unknown flag, a missing or impossible value, or a flag that is refused.
    """
    notices: list[str] = []
    load_lora: bool | None = None
    parity = False
    sampling: dict[str, Any] = {}
    files: dict[str, Path] = {}
    model: dict[str, str] = {}
    plan: dict[str, Any] = {}
    for name, value in _pairs(list(arguments), own):
        if name == "load_lora":
            load_lora = _truth(name, value)
        elif name in WITHOUT_EFFECT:
            notices.append(f"--{name} has no effect: {WITHOUT_EFFECT[name]}")
        elif name in REFUSED:
            if name not in SWITCHES or _truth(name, value):
                raise ConfigError(f"--{name} is {value}; it is not supported: {REFUSED[name]}")
        elif name == "parity":
            parity = _truth(name, value)
        elif name in FILES:
            files[name] = Path(value)
        elif name in PLAN_SWITCHES:
            plan[name] = _truth(name, value)
        elif name in PLAN_COUNTS:
            plan[name] = _count(name, value)
        elif name in MODEL_SWITCHES:
            model.update(pair for given, pair in MODEL_SWITCHES[name].items() if given == _truth(name, value))
        else:
            key, kind = SAMPLING[name]
            sampling[key] = _number(name, value, kind)
    return OriginalFlags(
        load_lora=load_lora,
        sampling=sampling,
        model=model,
        plan=PlanFlags(**plan),
        parity=parity,
        files=files,
        notices=tuple(notices),
    )


def _pairs(words: list[str], own: Sequence[str]) -> list[tuple[str, str]]:
    known = {*WITHOUT_EFFECT, *REFUSED, *SAMPLING, *FILES, *MODEL_SWITCHES, "load_lora", "parity"}
    known |= {*PLAN_SWITCHES, *PLAN_COUNTS}
    pairs = []
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in known:
            near = difflib.get_close_matches(name, [*known, *own], 1)
            raise ConfigError(
                f"{word} is not an option of generate; " + (f"did you mean --{near[0]}?" if near else "see --help")
            )
        if not equals and words and not words[0].startswith("--"):
            if name not in SWITCHES or words[0].lower() in ("true", "false"):
                value, equals = words.pop(0), "="
        if not equals:
            if name not in SWITCHES:
                raise ConfigError(f"--{name} has no value; write --{name}=VALUE, or leave it out")
            value = "true"
        pairs.append((name, value))
    return pairs


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"--{name} is {value}; write true or false, or nothing for true")
    return value.lower() == "true"


def _count(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"--{name} is {value}; give a whole number")
    return int(value)


def _number(name: str, value: str, kind: type) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or number != number:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"--{name} is {value}; give {what}")
    try:
        SamplingChoice(**{SAMPLING[name][0]: number}).check_sampling()
    except ValueError as error:
        raise ConfigError(f"--{flag_of(str(error))}") from None
    return number


def flag_of(sentence: str) -> str:
    """A sentence about a key of the model's section with the flag's name in the key's place."""
    key, space, rest = sentence.partition(" ")
    names = {own: flag for flag, (own, _) in SAMPLING.items()}
    return names.get(key, key) + space + rest

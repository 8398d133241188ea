"""Write a second golden folder, same layout, other sizes: `python -m tests.parity.second_set FOLDER`.

The recorded folder is one point; this one has other widths, heads, layers, block and ring lengths, step counts, picture
and file lengths, so that a number taken from the first folder instead of from the fixture shows. The transformer is
recorded with `plain`, which shares no code with `model`; schedules, VAE, prompt and speech encoders with the library
classes as they come. Sizes of pictures are our own rule again, their placement PIL's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.component_config import UMT5TextConfig, WanVAEConfig, XLSRAudioConfig
from model.config import DiTConfig
from model.dit import DiT
from model.forge import _dit_values, _released_names, _speech_values, random_tensor, shapes_of
from model.picture_size import short_side_fit, size_within_area
from model.portrait import fit_short_side
from model.published import published
from tests.parity.plain import Memory, Plain, box, factors, motion_positions, turn

SIZES = DiTConfig(
    dim=72,
    ffn_dim=80,
    num_heads=3,
    num_layers=3,
    in_dim=8,
    out_dim=8,
    cond_dim=8,
    freq_dim=32,
    text_dim=20,
    text_len=9,
    audio_dim=24,
    audio_layers=7,
    num_audio_token=3,
    audio_inject_layers=(1, 2),
)
FRAMES, HEIGHT, WIDTH, SLOTS, CLIPS, STEPS = 2, 12, 8, 4, 3, 3
S = (HEIGHT // 2) * (WIDTH // 2)
L = FRAMES * S
C = len(motion_positions(HEIGHT, WIDTH)) + S
JUMP = 25_000
"""Block of the far jump: its first latent frame lies beyond the original's table."""


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Writer:
    """Fixtures of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def write(self, name: str, info: dict[str, Any], tensors: dict[str, Tensor], suffix: str = "") -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(info))
        if tensors:
            kept = {key: value.clone().contiguous() for key, value in tensors.items()}
            save_file(kept, self.folder / f"{name}{suffix}.safetensors")


def random_weights() -> dict[str, Tensor]:
    """Every parameter random, none at the value that training starts from."""
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in DiT(SIZES).state_dict().items()}
    weights = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = 0.3 if len(shape) < 2 or "modulation" in name or "tokens" in name else int(np.prod(shape[1:])) ** -0.5
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[name] = centre + draw(1000 + i, *shape, scale=scale)
    return weights


class Recorder:
    """The transformer's fixtures."""

    def __init__(self, writer: Writer) -> None:
        self.out, self.weights = writer, random_weights()
        self.config = {**_dit_values(SIZES), "framepack_drop_mode": "padd"}
        self.plain = Plain(self.weights, self.config)
        self.text, self.reference = draw(1, 5, SIZES.text_dim), draw(2, 1, SIZES.in_dim, 1, HEIGHT, WIDTH)
        self.motion = draw(3, 1, SIZES.in_dim, 19, HEIGHT, WIDTH)
        self.inputs = {"in.text": self.text, "in.ref_latents": self.reference, "in.motion_latents": self.motion}
        writer.write("weights", {"model_config": self.config}, self.weights)

    def memory(self, plain: Plain, reference: Tensor | None = None, motion: Tensor | None = None) -> Memory:
        reference = self.reference if reference is None else reference
        motion = self.motion if motion is None else motion
        return Memory(plain.prefill(reference, motion, plain.embedded(self.text)), SLOTS)

    def rope(self) -> None:
        cases, tensors = [], {}
        grid = [HEIGHT // 2, WIDTH // 2]
        for name, start, head_dim in (("near", 6, 24), ("far", 50_000, 24), ("wide", 300, 128)):
            positions = box(np.arange(start, start + FRAMES), np.arange(grid[0]), np.arange(grid[1]))
            group = {"start": [start, 0, 0], "end": [start + FRAMES, *grid], "target": [FRAMES, *grid]}
            cases.append({"name": name, "head_dim": head_dim, "tokens": len(positions), "groups": [group]})
            tensors |= {
                f"{name}.{p}": v.float() for p, v in zip(("cos", "sin"), factors(positions, head_dim), strict=True)
            }
            halves = zip(("cos_half", "sin_half"), factors(positions, head_dim, True), strict=True)
            tensors |= {f"{name}.{p}": v.half() for p, v in halves}
            x = draw(start, 1, len(positions), 2, head_dim)
            tensors |= {f"{name}.x": x, f"{name}.y": turn(x, positions), f"{name}.y_half": turn(x, positions, True)}
        self.out.write("a_rope", {"cases": cases}, tensors)

    def framepack(self) -> None:
        cases, tensors = [], {}
        cos, sin = factors(motion_positions(HEIGHT, WIDTH), SIZES.head_dim)
        counts = [S, (HEIGHT // 4) * (WIDTH // 4), 4 * (HEIGHT // 8) * (WIDTH // 8)]
        for frames in (3, 19, 22):
            motion = draw(frames, 1, SIZES.in_dim, frames, HEIGHT, WIDTH)
            cases.append({"frames": frames, "token_counts": counts})
            parts = {
                "motion_latents": motion,
                "tokens": self.plain.packed(motion),
                "cos": cos.float(),
                "sin": sin.float(),
            }
            tensors |= {f"frames{frames}.{key}": value for key, value in parts.items()}
        self.out.write("b_framepack", {"weight_prefix": "frame_packer.", "cases": cases}, tensors)

    def sound(self) -> None:
        cases, tensors = [], {}
        for name, speakers, columns in (("plain5", 1, 5), ("block8x1", 1, 8), ("block16x3", 3, 16)):
            features = draw(columns, speakers, SIZES.audio_layers, SIZES.audio_dim, columns)
            local, glob = (self.plain.heard if name == "plain5" else self.plain.heard_block)(features)
            tensors |= {f"{name}.features": features, f"{name}.local": local, f"{name}.global": glob}
            if name != "plain5":
                case = {"name": name, "prepended_copies_of_first_frame": 73, "dropped_tokens": 19}
                cases.append({**case, "latent_frames_out": columns // 4})
        self.out.write("c_audio_encoder", {"weight_prefix": "casual_audio_encoder.", "block_cases": cases}, tensors)

        hidden, small = draw(31, 1, L, SIZES.dim), draw(32, 1, L, SIZES.dim, scale=3e-3)
        one = self.plain.heard_block(draw(33, 1, SIZES.audio_layers, SIZES.audio_dim, 4 * FRAMES))
        two = self.plain.heard_block(draw(34, 2, SIZES.audio_layers, SIZES.audio_dim, 4 * FRAMES))
        mask = (draw(35, 2, FRAMES + 1, HEIGHT // 2, WIDTH // 2, 1) > 0).float()
        tensors = {"in.hidden": hidden, "in.hidden_small": small, "in.mask": mask}
        tensors |= {"in.audio_local": one[0], "in.audio_global": one[1]}
        tensors |= {"in.audio_local_two": two[0], "in.audio_global_two": two[1]}
        for suffix, x in (("", hidden), ("_small", small)):
            tensors[f"out.adain{suffix}"] = self.plain.modulated(1, x.view(FRAMES, S, -1), one[1][0])
            tensors[f"out.hidden{suffix}"] = self.plain.injected(1, x, *one, None)
        tensors["out.hidden_two_actors"] = self.plain.injected(1, hidden, *two, mask)
        info = {"block_index": SIZES.audio_inject_layers[1], "injector_index": 1}
        self.out.write("d_audio_injector", info | {"num_frames": FRAMES, "tokens_per_frame": S}, tensors)

    def block(self) -> None:
        plain, slots, i = self.plain, 3, 2
        heads = (SIZES.num_heads, SIZES.head_dim)
        x, small, cond = draw(41, 1, L, SIZES.dim), draw(42, 1, L, SIZES.dim, scale=3e-3), draw(43, 1, C, SIZES.dim)
        e, context = draw(44, 1, FRAMES, 6, 2, SIZES.dim, scale=0.5), draw(45, 1, SIZES.text_len, SIZES.dim)
        before_k, before_v = draw(46, 1, slots * L, *heads), draw(47, 1, slots * L, *heads)
        tensors = {"in.x": x, "in.x_small": small, "in.x_cond": cond, "in.e": e, "in.context": context}
        tensors |= {"in.cache_k": before_k, "in.cache_v": before_v}
        own = self.weights[f"blocks.{i}.modulation"][0]
        noisy_mod = [(own[k] + e[0, :, k, 0]).repeat_interleave(S, 0) for k in range(6)]
        kept: list[Tensor] = []

        def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.extend((k, v))
            at = plain.condition_positions(30, HEIGHT, WIDTH)
            return plain.attend(turn(q, at), turn(k, at), v)

        tensors["out.prefill"] = plain.block(i, cond, list(own + e[0, 0, :, 1]), context, alone)
        tensors |= {"prefill.cond_k": kept[0], "prefill.cond_v": kept[1]}
        cases: dict[str, Any] = {"prefill": "the condition alone"}
        for name, index, given in (("first", 0, x), ("third", 2, x), ("wrapped", 4, x), ("small", 0, small)):
            first, slot = index * FRAMES, index % slots
            filled = min(index + 1, slots) * L
            ring_k, ring_v = (b[:, :filled].clone() if index else b[:, :filled] * 0 for b in (before_k, before_v))

            def attention(
                q: Tensor, k: Tensor, v: Tensor, first=first, slot=slot, ring_k=ring_k, ring_v=ring_v
            ) -> Tensor:
                noisy = box(np.arange(first, first + FRAMES), np.arange(HEIGHT // 2), np.arange(WIDTH // 2))
                ring_k[:, slot * L : slot * L + L], ring_v[:, slot * L : slot * L + L] = turn(k, noisy), v
                behind = plain.condition_positions(30 + first, HEIGHT, WIDTH)
                keys = torch.cat([ring_k, turn(kept[0], behind)], 1)
                return plain.attend(turn(q, noisy), keys, torch.cat([ring_v, kept[1]], 1))

            tensors[f"out.{name}"] = plain.block(i, given, noisy_mod, context, attention)
            tensors |= {f"cache.k.{name}": ring_k, f"cache.v.{name}": ring_v}
            case = {"first_frame": first, "current_start": first * S, "cond_offset": first}
            cases[name] = (
                case | {"cache": "preset" if index else "zeros"} | ({"input": "in.x_small"} if name == "small" else {})
            )
        info = {"weight_prefix": f"blocks.{i}.", "num_frames": FRAMES, "latent_hw": [HEIGHT, WIDTH], "cases": cases}
        info |= {"tokens_per_block": L, "cond_tokens": C, "kv_cache_tokens": slots * L}
        self.out.write("e_block", info, tensors)

    def rollout(self) -> None:
        blocks = [0, 1, 2, 3, 4, 5, 6, 7, JUMP]
        distances = [30, 4, 17, 30, 9, 22, 30, 13, 11]
        steps = [
            {"index": i, "block_index": b, "first_frame": b * FRAMES, "relative_dist": d, "ring_slot": b % SLOTS}
            | {"ref_rope_frame": 30 + max(0, b * FRAMES - (30 - d)), "current_start": b * L}
            for i, (b, d) in enumerate(zip(blocks, distances, strict=True))
        ]
        tensors, t, layer = dict(self.inputs), 421.5, 2
        columns = (SIZES.audio_layers, SIZES.audio_dim, 4 * FRAMES)
        for at in steps:
            tensors[f"in.noisy.{at['index']}"] = draw(100 + at["index"], SIZES.in_dim, FRAMES, HEIGHT, WIDTH)
            tensors[f"in.audio.{at['index']}"] = draw(200 + at["index"], 1, *columns)
        tensors["in.pose_cond"] = draw(51, 1, SIZES.cond_dim, FRAMES, HEIGHT, WIDTH)
        tensors["in.mask"] = (draw(52, 2, FRAMES, HEIGHT // 2, WIDTH // 2, 1) > 0).float()
        tensors["in.audio_two_actors"] = draw(53, 2, *columns)
        variants = {
            "pose": {"block_index": 1, "relative_dist": 8},
            "two_actors_mask": {"block_index": 2, "relative_dist": 6},
        }
        for prefix, half in (("", False), ("rope_half.", True)):
            plain = Plain(self.weights, self.config, half)
            text, memory = plain.embedded(self.text), self.memory(plain)
            for i, (k, v) in enumerate(memory.condition if not half else ()):
                tensors |= {f"prefill.cond_k.layer{i}": k, f"prefill.cond_v.layer{i}": v}
            for at in steps:
                i = at["index"]
                sound = plain.heard_block(tensors[f"in.audio.{i}"])
                noisy = tensors[f"in.noisy.{i}"]
                place = (memory, at["block_index"], at["relative_dist"])
                tensors[f"{prefix}out.{i}"] = plain.denoise(noisy, t, text, sound, *place)
                if not half:
                    ring = [torch.zeros(2, 1, L, SIZES.num_heads, SIZES.head_dim)] * SLOTS
                    for slot, kv in memory.rings[layer].items():
                        ring[slot] = torch.stack(kv)
                    tensors |= dict(zip((f"kv.k.{i}", f"kv.v.{i}"), torch.cat(ring, 2), strict=True))
            for name, at in variants.items():
                b = at["block_index"]
                two = name != "pose"
                sound = plain.heard_block(tensors["in.audio_two_actors" if two else f"in.audio.{b}"])
                more = {"mask": tensors["in.mask"]} if two else {"pose": tensors["in.pose_cond"]}
                place = (self.memory(plain), b, at["relative_dist"])
                tensors[f"{prefix}out.{name}"] = plain.denoise(tensors[f"in.noisy.{b}"], t, text, sound, *place, **more)
        info = {
            "model_config": self.config,
            "num_frames_per_block": FRAMES,
            "latent_hw": [HEIGHT, WIDTH],
            "steps": steps,
        }
        info |= {"tokens_per_block": L, "kv_cache_blocks": SLOTS, "kv_layer": layer, "timestep": t, "cond_tokens": C}
        info |= {"pose_variant": variants["pose"], "two_actors_variant": variants["two_actors_mask"]}
        self.out.write("f_dit_rollout", info, tensors)

    def loop(self, levels: list[float]) -> None:
        """Three clips, three steps; `levels` end with 0."""
        tensors, blocks = dict(self.inputs), CLIPS * SLOTS
        tensors["in.motion_latents_after_clip0"] = draw(61, *self.motion.shape)
        tensors["in.noise"] = draw(62, CLIPS, SIZES.in_dim, SLOTS * FRAMES, HEIGHT, WIDTH)
        tensors["in.audio"] = draw(63, 1, SIZES.audio_layers, SIZES.audio_dim, 4 * FRAMES * blocks)
        rng = np.random.default_rng(64)
        tensors["in.relative_dist_varied"] = torch.from_numpy(rng.integers(4, 31, (blocks, STEPS)))
        traced = [0, 3, 5]
        renewed = {"same": self.motion, "after": tensors["in.motion_latents_after_clip0"]}
        runs = {"single_online": ("after", False, False), "single_online_varied": ("after", True, False)}
        runs |= {"single_offline": ("", False, False), "rope_half.single_online": ("after", False, True)}
        runs |= {"tpp": ("same", False, False), "tpp_varied": ("same", True, False)}
        outs = {}
        for name, (renew, varied, half) in runs.items():
            plain = Plain(self.weights, self.config, half)
            text = plain.embedded(self.text)
            memories = [self.memory(plain) for _ in range(STEPS)]
            latents: list[Tensor] = []
            for n in range(blocks):
                if n == SLOTS and renew:
                    again = self.memory(plain, latents[0][None, :, :1], renewed[renew]).condition
                    memories = [Memory(again, SLOTS, memory.rings) for memory in memories]
                sound = plain.heard_block(tensors["in.audio"][..., 4 * FRAMES * n :][..., : 4 * FRAMES])
                x = tensors["in.noise"][n // SLOTS][:, n % SLOTS * FRAMES :][:, :FRAMES]
                for i in range(STEPS):
                    distance = int(tensors["in.relative_dist_varied"][n, i]) if varied else 30
                    velocity = plain.denoise(x, 1000 * levels[i], text, sound, memories[i], n, distance)
                    if name == "single_online" and n in traced:
                        trace = f"trace.block{n}.step{i}"
                        tensors |= {f"{trace}.input": x, f"{trace}.prediction": velocity}
                    x = x + (levels[i + 1] - levels[i]) * velocity
                latents.append(x)
            clips = [torch.cat(latents[c * SLOTS : (c + 1) * SLOTS], 1) for c in range(CLIPS)]
            outs[name] = torch.stack(clips)
        for name in ("single_online", "single_online_varied", "single_offline"):
            tensors[f"out.{name}"] = outs[name]
        tensors["rope_half.out.single_online"] = outs["rope_half.single_online"]
        info = {"model_config": self.config, "num_frames_per_block": FRAMES, "blocks_per_clip": SLOTS, "clips": CLIPS}
        info |= {"latent_hw": [HEIGHT, WIDTH], "tokens_per_block": L, "kv_cache_tokens": SLOTS * L, "steps": STEPS}
        info |= {"shift": 3, "timesteps": [1000 * level for level in levels[:-1]], "traced_blocks": traced}
        self.out.write("g_generate_single", info | {"audio_frames_per_block": 4 * FRAMES}, tensors)
        self.out.write("h_generate_tpp", {}, {f"out.{name}": outs[name] for name in ("tpp", "tpp_varied")})

    def lora(self) -> None:
        rank, alpha = 3, 6.0
        modules = {"blocks.0.self_attn.q": (12, 10), "blocks.0.ffn.2": (8, 14), "audio_injector.injector.0.o": (6, 6)}
        base = {f"{name}.weight": draw(70 + i, *shape) for i, (name, shape) in enumerate(modules.items())}
        base["head.head.weight"] = draw(80, 4, 5)
        lora, merged, merged16 = {}, {}, {}
        for i, (name, (rows, columns)) in enumerate(modules.items()):
            a, b = draw(90 + i, rank, columns), draw(95 + i, rows, rank)
            lora |= {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
            key = f"{name}.weight"
            merged[key] = base[key] + alpha / rank * (b @ a)
            merged16[key] = (base[key].bfloat16().float() + alpha / rank * (b @ a)).bfloat16()
        named = {"base": base, "lora": lora, "merged": merged, "merged_bf16": merged16}
        info = {"rank": rank, "alpha": alpha, "scale": alpha / rank, "changed": list(merged), "missing_in_file": []}
        info |= {
            "target_suffixes": ["q", "k", "v", "o", "ffn.0", "ffn.2"],
            "file_prefix_variants": ["base_model.model."],
        }
        self.out.write("k_lora", info, {f"{kind}.{k}": v for kind, part in named.items() for k, v in part.items()})


def schedules(out: Writer) -> list[float]:
    """Of the library's Euler scheduler; returns the levels of STEPS steps."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    tensors: dict[str, Tensor] = {}
    recorded, walk = {}, 5
    for steps in (2, STEPS, walk, 7):
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3)
        scheduler.set_timesteps(steps)
        tensors |= {f"n{steps}.sigmas": scheduler.sigmas, f"n{steps}.timesteps": scheduler.timesteps}
        values = {"timesteps": scheduler.timesteps.tolist(), "sigmas": scheduler.sigmas.tolist()}
        recorded[str(steps)] = values
    scheduler.set_timesteps(walk)
    x = tensors["step.sample0"] = draw(110, 2, 3, 4)
    narrow, narrow_v = draw(111, 2, 3, 4).bfloat16(), draw(112, 2, 3, 4).bfloat16()
    for i, t in enumerate(scheduler.timesteps):
        velocity = tensors[f"step.prediction{i}"] = draw(120 + i, 2, 3, 4)
        x = tensors[f"step.sample{i + 1}"] = scheduler.step(velocity, t, x).prev_sample
    scheduler.set_timesteps(walk)
    scheduler.set_begin_index(1)
    result = scheduler.step(narrow_v, scheduler.timesteps[1], narrow).prev_sample
    tensors |= {"step_bf16.sample": narrow, "step_bf16.prediction": narrow_v, "step_bf16.result_step1": result}
    info = {"shift": 3, "num_train_timesteps": 1000, "schedules": recorded, "step_example_steps": walk}
    out.write("i_scheduler", info, tensors)
    return recorded[str(STEPS)]["sigmas"]


def pictures(dit: Writer, parts: Writer) -> None:
    rows, divisor = [], 32
    for height, width in ((90, 160), (301, 200), (500, 500)):
        for area in (64 * 96, 256 * 160):
            out = size_within_area(height, width, area, divisor)
            fit = short_side_fit(height, width, *out)
            row = {"image_h": height, "image_w": width, "target_area": area, "out_h": out[0], "out_w": out[1]}
            row |= {"resized_h": fit.height, "resized_w": fit.width, "pad_ltrb": list(fit.pad)}
            rows.append(row | {"crop_top": fit.top, "crop_left": fit.left})
    dit.write("j_size", {"divisor": divisor, "rows": rows}, {})

    cases = []
    for height, width in ((333, 777), (640, 640)):
        out = size_within_area(height, width, 512 * 320)
        fit = short_side_fit(height, width, *out)
        case = {"area": "512*320", "in_h": height, "in_w": width, "out_h": out[0], "out_w": out[1]}
        cases.append(case | {"resized_h": fit.height, "resized_w": fit.width, "black_bars": any(fit.pad)})
    images, tensors, area = [], {}, 128 * 192
    for i, (height, width) in enumerate(((120, 213), (140, 100))):
        image = np.random.default_rng(i).integers(1, 256, (height, width, 3), dtype=np.uint8)
        out = size_within_area(height, width, area)
        shown = torch.from_numpy(fit_short_side(image, out[1], out[0])).permute(2, 0, 1).float() / 127.5 - 1
        black = (shown == -1).all(0)
        info = {"in_h": height, "in_w": width, "out_h": out[0], "out_w": out[1]}
        images.append(info | {"black_columns": int(black.all(0).sum()), "black_rows": int(black.all(1).sum())})
        tensors |= {f"image_{i}": torch.from_numpy(image), f"pixels_{i}": shown}
    parts.write("image", {"size_cases": cases, "target_area": area, "images": images}, tensors, "_io")


def components(out: Writer) -> None:
    """VAE, prompt and speech encoder at other sizes, computed by the library's own classes."""
    config = published(
        dit=DiTConfig(dim=24, ffn_dim=24, num_heads=2, num_layers=1, freq_dim=8, text_dim=40, text_len=64, audio_dim=48,
                      audio_layers=4, audio_inject_layers=(0,)),
        vae=WanVAEConfig(base_width=4, width_multipliers=(1, 2, 3, 3)),
        text=UMT5TextConfig(vocab=90, dim=40, head_dim=8, heads=3, ffn_dim=56, layers=2, buckets=16, max_len=64),
        audio=XLSRAudioConfig(conv_width=12, dim=48, ffn_dim=64, layers=3, heads=3, position_kernel=64,
                              position_groups=4),
    )  # fmt: skip
    shapes = shapes_of(config)

    def weights(part: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """By our name, which is the library's, and by the released one."""
        own = {k: random_tensor(f"{part}.{k}", shape, 5, torch.float32, "cpu") for k, shape in shapes[part].items()}
        names = _released_names(part, config, own)
        return own, {theirs: own[name] for theirs, name in names.items()}

    _vae(out, config.vae, *weights("vae"))
    _text(out, config.text, *weights("text"))
    _speech(out, config.audio, *weights("audio"))


def _vae(out: Writer, cfg: WanVAEConfig, own: dict[str, Tensor], released: dict[str, Tensor]) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    vae = AutoencoderKLWan(base_dim=cfg.base_width, z_dim=cfg.z_dim, dim_mult=list(cfg.width_multipliers)).eval()
    vae.load_state_dict(own)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (cfg.latents_mean, cfg.latents_std))
    encode = lambda video: (vae.encode(video[None]).latent_dist.mode()[0] - mean) / std  # noqa: E731
    raw = lambda latents: _decoded(vae, (latents * std + mean)[None])[0]  # noqa: E731
    height, width, still, warmup = 32, 64, 33, 5
    image, clip = draw(300, 3, 1, height, width).clamp(-1, 1), draw(301, 3, 13, height, width).clamp(-1, 1)
    latents = draw(302, cfg.z_dim, 8, height // 8, width // 8)
    past = encode(image.expand(-1, still, -1, -1))
    session = raw(torch.cat([past[:, :warmup], latents], 1))[:, 1 + 4 * (warmup - 1) + 3 :].clamp(-1, 1)
    tensors = {"image": image, "image_latent": encode(image), "clip": clip, "clip_latent": encode(clip)}
    tensors |= {"still5_latent": encode(image.expand(-1, 5, -1, -1)), f"still{still}_latent": past}
    tensors |= {"latents": latents, "decoded_raw": raw(latents), "session_frames": session}
    info: dict[str, Any] = {"latents_mean": cfg.latents_mean, "latents_std": cfg.latents_std}
    info["config"] = {"dim": cfg.base_width, "z_dim": cfg.z_dim, "dim_mult": cfg.width_multipliers, "attn_scales": []}
    info["config"] |= {"num_res_blocks": 2, "temporal_downsample": cfg.temporal_downsample}
    info["stream_encode"] = {"frames_per_call": [1, 8, 4], "latents_per_call": [1, 2, 1]}
    info["stream_decode"] = {"latents_per_call": [1, 2, 5], "frames_per_call": [1, 8, 20]}
    info["session"] = {"warmup_latents": warmup, "warmup_source": f"still{still}_latent[:, :{warmup}]", "blocks": 4}
    info["session"] |= {"block_latents": 2, "frames_per_block": [5, 8, 8, 8], "dropped_from_first_block": 3}
    out.write("vae", info, tensors, "_io")
    save_file(released, out.folder / "vae_weights.safetensors")


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    """The library's decoder, not clamped: its own `decode` clamps."""
    vae.clear_cache()
    x, pieces = vae.post_quant_conv(latents), []
    for i in range(x.shape[2]):
        vae._conv_idx = [0]
        first = {"first_chunk": True} if i == 0 else {}
        pieces.append(vae.decoder(x[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first))
    return torch.cat(pieces, 2)


def _text(out: Writer, cfg: UMT5TextConfig, own: dict[str, Tensor], released: dict[str, Tensor]) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    library = UMT5EncoderModel(
        UMT5Config(vocab_size=cfg.vocab, d_model=cfg.dim, d_kv=cfg.head_dim, d_ff=cfg.ffn_dim, num_layers=cfg.layers,
                   num_heads=cfg.heads, relative_attention_num_buckets=cfg.buckets, feed_forward_proj="gated-gelu",
                   relative_attention_max_distance=cfg.max_distance, tie_word_embeddings=False)
    ).eval()  # fmt: skip
    library.load_state_dict({**own, "encoder.embed_tokens.weight": own["shared.weight"]})
    lengths, ids = [3, 64], torch.zeros(2, cfg.max_len, dtype=torch.int32)
    rng, tensors, errors = np.random.default_rng(6), {"input_ids": ids}, []
    for i, length in enumerate(lengths):
        ids[i, :length] = torch.from_numpy(rng.integers(2, cfg.vocab, length).astype(np.int32))
        ids[i, length - 1] = 1
        tensors[f"context_{i}"] = library(ids[i : i + 1, :length].long()).last_hidden_state[0]
    narrow = library.to(torch.bfloat16)
    for i, length in enumerate(lengths):
        wide = narrow(ids[i : i + 1, :length].long()).last_hidden_state[0].float()
        errors.append(float((wide - tensors[f"context_{i}"]).abs().max()))
    sizes = {"vocab": cfg.vocab, "dim": cfg.dim, "dim_attn": cfg.heads * cfg.head_dim, "dim_ffn": cfg.ffn_dim}
    sizes |= {"num_heads": cfg.heads, "num_layers": cfg.layers, "num_buckets": cfg.buckets, "shared_pos": False}
    info = {"config": sizes | {"eps": 1e-6, "max_distance": cfg.max_distance}, "text_len": cfg.max_len, "pad_id": 0}
    info |= {"eos_id": 1, "lengths": lengths, "tolerance_fp32": 2e-5, "observed_bf16_max_abs_error": errors}
    out.write("t5", info, tensors, "_io")
    save_file(released, out.folder / "t5_weights.safetensors")


def _speech(out: Writer, cfg: XLSRAudioConfig, own: dict[str, Tensor], released: dict[str, Tensor]) -> None:
    from model.audio import wav2vec2

    library = wav2vec2(cfg, cfg.ffn_dim, mask_time_prob=0.0).eval()
    library.load_state_dict({name.removeprefix("wav2vec2."): value for name, value in own.items()})
    clips, tensors, rng = [], {}, np.random.default_rng(7)
    for i, samples in enumerate((21_777, 40_000)):
        wave = torch.from_numpy(0.05 * rng.standard_normal(samples) * (1 + np.arange(samples) / samples)).float() + 0.01
        levelled = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
        states = library(levelled[None], output_hidden_states=True)
        hidden = torch.cat([*states.hidden_states[:-1], states.last_hidden_state])
        length = int(hidden.shape[1] / 50 * 30)
        at = np.arange(length) * (hidden.shape[1] - 1) / (length - 1)
        below = np.minimum(at.astype(int), hidden.shape[1] - 2)
        share = torch.from_numpy(at - below).float()[:, None]
        grid = hidden[:, below] * (1 - share) + hidden[:, below + 1] * share
        tensors |= {f"wave_{i}": wave, f"hidden_{i}": hidden, f"feat30_{i}": grid}
        buckets = {}
        for fps, batch in ((25, 20), (16, 8)):
            count = int(length / (batch * 30 / fps)) + 1
            source = [
                min(round(30 * n / fps), int(np.ceil(30 * count * batch / fps)) - 1) for n in range(count * batch)
            ]
            columns = torch.stack([grid[:, k] if k < length else grid[:, 0] * 0 for k in source], 2)
            name = f"fps{fps}_batch{batch}"
            tensors[f"bucket_{i}_{name}"] = columns[None]
            kept = sum(k < length for k in source)
            buckets[name] = {
                "num_clips": count,
                "columns": len(source),
                "source_index": source,
                "nonzero_columns": kept,
            }
        info = {
            "samples": samples,
            "mean": wave.double().mean().item(),
            "var": wave.double().var(unbiased=False).item(),
        }
        clips.append(info | {"frames50": hidden.shape[1], "frames30": length, "buckets": buckets})
    out.write("wav2vec2", {"clips": clips}, tensors, "_io")
    folder = out.folder / "wav2vec2"
    folder.mkdir()
    save_file(released, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_speech_values(cfg)))
    front = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 16_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(front))


@torch.inference_mode()
def write_second_set(folder: Path) -> None:
    """Everything, into a new folder."""
    dit, parts = Writer(folder / "dit"), Writer(folder / "components")
    recorder = Recorder(dit)
    recorder.rope()
    recorder.framepack()
    recorder.sound()
    recorder.block()
    recorder.rollout()
    recorder.loop(schedules(dit))
    recorder.lora()
    pictures(dit, parts)
    components(parts)


if __name__ == "__main__":
    write_second_set(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}")

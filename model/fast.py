"""From loaded modules to the fast form on a GPU, the one way of every caller that runs a checkpoint there.

The transformer's pass is compiled and its linear layers go to fp8 on request; the VAE's convolutions take their weights
in the layout they read. On a processor none of this is done: `profile` times plain modules there instead.
"""

from __future__ import annotations

import gc

import torch
from torch import nn

from model.compile import speed_up
from model.config import RunConfig
from model.fp8 import Fp8Linear
from model.wan_decoder import for_gpu
from model.wan_vae import WanVAE

FP8_CAPABILITY = (8, 9)
"""Compute capability from which a GPU multiplies in fp8."""


def device_of(run: RunConfig) -> torch.device:
    """Where a checkpoint runs.

    Raises:
        ValueError: the device is not there, or cannot do what the configuration asks.
    """
    name = run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device is {run.device} but this machine has {count} GPUs that torch can use; use cpu")
    for name in ("weights_dtype", "kv_dtype"):
        if getattr(run, name) == "fp8" and not can_fp8(device):
            raise ValueError(
                f"{name} is fp8, which needs a GPU of compute capability 8.9 or newer (Ada, Hopper); use bf16"
            )
    return device


def can_fp8(device: torch.device) -> bool:
    """Whether the device multiplies in fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def kv_dtype_of(run: RunConfig) -> torch.dtype | None:
    """Precision of the remembered keys and values; None is the transformer's own."""
    return torch.float8_e4m3fn if run.kv_dtype == "fp8" else None


def make_fast(
    modules: dict[str, nn.Module],
    run: RunConfig,
    reasons: dict[str, str],
    backend: str | None = "inductor",
    is_final: bool = False,
) -> tuple[torch.dtype, torch.dtype]:
    """Change the transformer and the decoder in place for fast inference.

    Args:
        modules: on their device; the transformer or the decoder may be missing.
        run: what the operator asked for; float32 leaves both modules plain.
        reasons: gets one sentence for each of the two.
        backend: of `torch.compile`; None leaves out the compiler.
        is_final: whether the transformer is in its fast form already.

    Returns:
        Precision of the transformer and of the decoder.
    """
    dit, vae = modules.get("dit"), modules.get("vae")
    dit = None if is_final else dit
    if run.dtype == "float32":
        if dit is not None:
            dit.float()
        reasons["dit_dtype"] = reasons["vae_dtype"] = "float32 as configured"
        return torch.float32, torch.float32
    is_fp8 = run.weights_dtype == "fp8"
    if dit is not None:
        is_fp8 = is_fp8 or any(isinstance(module, Fp8Linear) for module in dit.modules())
        speed_up(dit.bfloat16(), fp8=is_fp8, backend=backend)
    if vae is not None:
        vae.decoder.to(torch.bfloat16)
        if isinstance(vae, WanVAE):
            for_gpu(vae)
    layers = "linear layers in fp8, the rest in bfloat16" if is_fp8 else "bfloat16"
    reasons["dit_dtype"] = f"{layers}, compiled for the GPU"
    reasons["vae_dtype"] = "bfloat16 on the GPU"
    return torch.bfloat16, torch.bfloat16


def release() -> None:
    """Give the memory of tensors that nobody holds back to the devices."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

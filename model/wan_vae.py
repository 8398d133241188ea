"""The published video VAE (Wan 2.1) as a stream: the library's encoder, our decoder, own memory.

The library's `encode` and `decode` keep their memory in the module and clear it on every call, so one session would
destroy another's. Here that memory is a value that goes in and comes back; weights never change and any number of
sessions share them. The encoder runs once a portrait; the decoder runs in every block and is `model.wan_decoder`. The
very first latent of a stream is decoded alone (it gives one picture, later ones four); after it any number may go
together, and every splitting gives the same pictures.

Letters: B batch, T pictures, F latent frames (T = 1 + 4 (F - 1) from the start of a stream, then T = 4 F), H and W
pixels, h and w latent rows and columns, z latent channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.component_config import WanVAEConfig
from model.state import State
from model.vae import Still
from model.wan_decoder import WanDecoder

LATENTS_PER_CALL = 3
"""Latents that go through the decoder together: a block of the published model."""


@dataclass(slots=True, kw_only=True)
class WanMemory(State):
    """What one stream of the encoder or of the decoder carries between calls; never changed in place."""

    slots: tuple[Any, ...]
    """Per causal convolution its last inputs, None before any: of the decoder [B, 2, rows, columns, channels], of the
    encoder as the library keeps them, [B, channels, at most 2, rows, columns]."""
    started: bool = False
    """The first picture, or latent, has passed."""


@functools.lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[z, 1, 1, 1] float32; not a buffer, so that modules can be built without memory and filled key by key."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None, None]


class WanVAE(nn.Module):
    """See the module. Parameters carry the names of the library's `AutoencoderKLWan`."""

    def __init__(self, cfg: WanVAEConfig) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d

        library = AutoencoderKLWan(
            base_dim=cfg.base_width,
            z_dim=cfg.z_dim,
            dim_mult=list(cfg.width_multipliers),
            num_res_blocks=cfg.residual_blocks,
            temperal_downsample=list(cfg.temporal_downsample),
            latents_mean=list(cfg.latents_mean),
            latents_std=list(cfg.latents_std),
        )
        self.cfg = cfg
        self.encoder, self.quant_conv = library.encoder, library.quant_conv
        self.post_quant_conv, self.decoder = library.post_quant_conv, WanDecoder(cfg)
        self._encoder_slots = sum(isinstance(m, WanCausalConv3d) for m in self.encoder.modules())

    def encode(self, video: Tensor, state: WanMemory | None = None) -> tuple[Tensor, WanMemory]:
        """Pictures to normalised latents, the mean of the posterior.

        Args:
            video: [B, 3, T, H, W] in -1..1; T is 1 + a multiple of 4 at the start of a stream, a multiple of 4 later.
            state: what the previous call of this stream returned; None starts a stream.

        Returns:
            Latents [B, z, F, h, w] float32 and the state for the next call.

        Raises:
            ValueError: T leaves a remainder, which could not be encoded without what follows.
        """
        state = state or WanMemory(slots=(None,) * self._encoder_slots)
        stride, pictures = self.cfg.stride[0], video.shape[2]
        first = 0 if state.started else 1
        if pictures < max(first, 1) or (pictures - first) % stride:
            start = "" if state.started else f"1 + a multiple of {stride} at the start of a stream, then "
            raise ValueError(f"{pictures} pictures leave a remainder; pass {start}a multiple of {stride}")
        pieces = [video[:, :, :1]] if first else []
        pieces += list(video[:, :, first:].split(stride, 2)) if pictures > first else []
        memory, dtype = list(state.slots), next(self.encoder.parameters()).dtype
        moments = [self.encoder(p.to(dtype), feat_cache=memory, feat_idx=[0]) for p in pieces]
        mean = self.quant_conv(torch.cat(moments, 2).to(self.quant_conv.weight.dtype))[:, : self.cfg.z_dim].float()
        shift, scale = self._statistics(mean.device)
        return (mean - shift) / scale, WanMemory(slots=tuple(memory), started=True)

    def decode(self, latents: Tensor, state: WanMemory | None = None) -> tuple[Tensor, WanMemory]:
        """Normalised latents to pictures.

        Args:
            latents: [B, z, F, h, w].
            state: what the previous call of this stream returned; None starts a stream.

        Returns:
            Video [B, 3, T, H, W], about -1..1 (not clamped), and the state for the next call.
        """
        state = state or WanMemory(slots=(None,) * self.decoder.num_slots)
        shift, scale = self._statistics(latents.device)
        x = self.post_quant_conv((latents.float() * scale + shift).to(self.post_quant_conv.weight.dtype))
        x = x.to(self.decoder.conv_in.weight.dtype)
        pieces = [] if state.started else [x[:, :, :1]]
        x = x[:, :, len(pieces) :]
        pieces += list(x.split(LATENTS_PER_CALL, 2)) if x.shape[2] else []
        slots, video = state.slots, []
        for i, piece in enumerate(pieces):
            pictures, slots = self.decoder(piece, slots, is_first=not state.started and i == 0)
            video.append(pictures)
        return torch.cat(video, 2) if len(video) > 1 else video[0], WanMemory(slots=slots, started=True)

    def still(self, image: Tensor) -> Still:
        """What a stream starts from: [B, 3, H, W] in -1..1 as a still video.

        The first latents of a still video differ from the later ones; the published model was trained with them, and
        its decoder warmed up with the first `warmup_latents`.
        """
        cfg = self.cfg
        video = image[:, :, None].expand(-1, -1, 1 + cfg.stride[0] * (cfg.motion_latents - 1), -1, -1)
        past, _ = self.encode(video)
        missing = max(0, cfg.warmup_latents - cfg.motion_latents)
        warmup = torch.cat([past, past[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)[:, :, : cfg.warmup_latents]
        shown, state = self.decode(warmup)
        reference = past[:, :, :1] if cfg.reference_latent == "first" else past[:, :, 1:2]
        return Still(reference=reference, past=past, state=state, shown=shown[:, :, -1])

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _per_channel(self.cfg.latents_mean, device), _per_channel(self.cfg.latents_std, device)

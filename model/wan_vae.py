"""The published video VAE (Wan 2.1) as a stream: `model.wan_encoder`, `model.wan_decoder`, and memory as a value.

The library's `AutoencoderKLWan` keeps its memory in the module and clears it on every call, so one session would
destroy another's. Here that memory goes in and comes back; weights never change and any number of sessions share them.
The encoder runs once a portrait, the decoder in every block. The very first latent of a stream is decoded alone (it
gives one picture, later ones four); after it any number may go together, and every splitting gives the same pictures.

Letters: B batch, T pictures, F latent frames (T = 1 + 4 (F - 1) from the start of a stream, then T = 4 F), H and W
pixels, h and w latent rows and columns, z latent channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.component_config import WanVAEConfig
from model.disk_cache import DiskCache
from model.state import State
from model.vae import Still
from model.wan_decoder import WanDecoder
from model.wan_encoder import WanEncoder

LATENTS_PER_CALL = 3
"""Latents that go through the decoder together: a block of the published model."""


@dataclass(slots=True, kw_only=True)
class WanMemory(State):
    """What one stream of the encoder or of the decoder carries between calls; never changed in place."""

    slots: tuple[Tensor | None, ...]
    """Per causal convolution its last inputs, [B, 1 or 2, rows, columns, channels]; None before any."""
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
        self.cfg = cfg
        self.encoder, self.decoder = WanEncoder(cfg), WanDecoder(cfg)
        self.quant_conv = nn.Conv3d(2 * cfg.z_dim, 2 * cfg.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(cfg.z_dim, cfg.z_dim, 1)
        self.cache: DiskCache | None = None
        """Of portraits' latents; whoever loads the weights may set it."""

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
        state = state or WanMemory(slots=(None,) * self.encoder.num_slots)
        stride, pictures = self.cfg.stride[0], video.shape[2]
        first = 0 if state.started else 1
        if pictures < max(first, 1) or (pictures - first) % stride:
            start = "" if state.started else f"1 + a multiple of {stride} at the start of a stream, then "
            raise ValueError(f"{pictures} pictures leave a remainder; pass {start}a multiple of {stride}")
        pieces = [video[:, :, :1]] if first else []
        pieces += list(video[:, :, first:].split(stride, 2)) if pictures > first else []
        slots, moments, dtype = state.slots, [], next(self.encoder.parameters()).dtype
        for i, piece in enumerate(pieces):
            found, slots = self.encoder(piece.to(dtype), slots, is_first=bool(first) and i == 0)
            moments.append(found)
        mean = self.quant_conv(torch.cat(moments, 2).to(self.quant_conv.weight.dtype))[:, : self.cfg.z_dim].float()
        shift, scale = self._statistics(mean.device)
        return (mean - shift) / scale, WanMemory(slots=slots, started=True)

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
        past = self._encoded(video, image)
        missing = max(0, cfg.warmup_latents - cfg.motion_latents)
        warmup = torch.cat([past, past[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)[:, :, : cfg.warmup_latents]
        shown, state = self.decode(warmup)
        reference = past[:, :, :1] if cfg.reference_latent == "first" else past[:, :, 1:2]
        return Still(reference=reference, past=past, state=state, shown=shown[:, :, -1])

    def _encoded(self, video: Tensor, image: Tensor) -> Tensor:
        """Latents of a still video, from disk where the picture is known."""
        if self.cache is None:
            return self.encode(video)[0]
        picture = repr((tuple(video.shape), str(image.dtype))).encode() + image.cpu().contiguous().numpy().tobytes()
        return self.cache.get("portrait", picture, lambda: self.encode(video)[0], image.device)

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _per_channel(self.cfg.latents_mean, device), _per_channel(self.cfg.latents_std, device)


def decode_in_tiles(vae: nn.Module, name: str) -> None:
    """Let a VAE decode tile by tile from now on.

    Args:
        vae: changed in place.
        name: of the checkpoint.

    Raises:
        ValueError: its decoder is none of the published kind.
    """
    if not isinstance(vae, WanVAE):
        raise ValueError(f"parallel.vae is tiled, but the decoder of {name} is a small one; use auto or shared")
    vae.decoder.is_tiled = True

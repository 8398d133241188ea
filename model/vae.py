"""Video VAEs behind one streaming interface. Here: `LightVAE`, the one of the tiny checkpoint.

8x or 16x in space and 4x in time with 2D convolutions only: every memory block also sees a reduced copy of the previous
frame's features, so the temporal field is finite, and streaming equals offline exactly. What is carried between calls
is the tuple of those copies, passed in and handed back; weights never change, so sessions can take turns.

Letters: B batch, T pictures, F latent frames (T = 4 F), H and W pixels, h and w latent rows and columns, z latent
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VAEState = tuple[Tensor, ...]
REFERENCE_FRAMES = 12
"""How often a still picture is repeated before its latent is taken: longer than the encoder's temporal field."""

NORM_EPS = 1e-6
"""What norms add to the mean square."""

PAST_LATENTS = 19
"""Latent frames of the past that the frame packer sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """What a VAE makes of a still portrait before a stream starts."""

    reference: Tensor
    """[B, z, 1, h, w] what the transformer is conditioned on."""
    past: Tensor
    """[B, z, F, h, w] the latents of a still video, for the frame packer."""
    state: Any
    """The decoder's memory after a still video: the first block follows it smoothly."""
    shown: Tensor
    """[B, 3, H, W] the last picture of that video as decoded."""


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class PixelNorm(nn.Module):
    """RMS norm over the channels of every pixel: [N, width, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.permute(0, 2, 3, 1), self.gain.shape, self.gain.to(x.dtype), NORM_EPS).permute(0, 3, 1, 2)


class MemoryBlock(nn.Module):
    """Residual block whose first convolution sees the current frame and a reduced copy of the previous one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = PixelNorm(width)
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.conv1 = nn.Conv2d(width + width // 4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, batch: int, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: [B*T, width, h, w]; previous: [B, 1, width/4, h, w] or None at the start of a stream."""
        y = self.norm(x)
        reduced = self.reduce(y).unflatten(0, (batch, -1))
        first = torch.zeros_like(reduced[:, :1]) if previous is None else previous.to(reduced.dtype)
        shifted = torch.cat([first, reduced[:, :-1]], 1).flatten(0, 1)
        y = F.silu(self.conv1(torch.cat([y, shifted], 1)))
        return x + self.conv2(y), reduced[:, -1:]


class PlainBlock(nn.Module):
    """Residual block without memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = PixelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


class Stage(nn.Module):
    """`num_blocks` residual blocks of one width, the first `num_memory` of them with memory."""

    def __init__(self, width: int, num_blocks: int, num_memory: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MemoryBlock(width) if i < num_memory else PlainBlock(width) for i in range(num_blocks)
        )

    def forward(self, x: Tensor, batch: int, state: VAEState | None, carried: list[Tensor]) -> Tensor:
        for block in self.blocks:
            if isinstance(block, MemoryBlock):
                x, last = block(x, batch, None if state is None else state[len(carried)])
                carried.append(last)
            else:
                x = block(x)
        return x


class LightEncoder(nn.Module):
    """[B, T, 3, H, W] in -1..1 to [B, T/4, z, H/stride, W/stride], stride 8 or 16."""

    def __init__(self, z_dim: int, widths: tuple[int, int, int], stride: int) -> None:
        super().__init__()
        a, b, c = widths
        self.fold = stride // 8
        self.conv_in = nn.Conv2d(48, a, 3, padding=1)
        self.stage0 = Stage(a, 2, 1)
        self.down0, self.halve0 = nn.Conv2d(4 * a, b, 1), nn.Conv2d(2 * b, b, 1)
        self.stage1 = Stage(b, 2, 1)
        self.down1, self.halve1 = nn.Conv2d(self.fold**2 * b, c, 1), nn.Conv2d(2 * c, c, 1)
        self.stage2 = Stage(c, 3, 1)
        self.conv_out = nn.Conv2d(c, z_dim, 1)

    def forward(self, video: Tensor, state: VAEState | None) -> tuple[Tensor, VAEState]:
        batch, carried = video.shape[0], []
        x = _channels_last(F.pixel_unshuffle(video.flatten(0, 1), 4))
        x = self.stage0(self.conv_in(x), batch, state, carried)
        x = self.down0(F.pixel_unshuffle(x, 2))
        x = self.stage1(self.halve0(x.unflatten(0, (-1, 2)).flatten(1, 2)), batch, state, carried)
        x = self.down1(F.pixel_unshuffle(x, self.fold))
        x = self.stage2(self.halve1(x.unflatten(0, (-1, 2)).flatten(1, 2)), batch, state, carried)
        return self.conv_out(x).unflatten(0, (batch, -1)), tuple(carried)


class LightDecoder(nn.Module):
    """[B, F, z, h, w] to [B, 4F, 3, stride h, stride w], stride 8 or 16."""

    def __init__(self, z_dim: int, widths: tuple[int, int, int], blocks: tuple[int, int, int], stride: int) -> None:
        super().__init__()
        a, b, c = widths
        self.fold = stride // 8
        self.conv_in = nn.Conv2d(z_dim, a, 3, padding=1)
        self.stage0 = Stage(a, blocks[0], blocks[0])
        self.double0, self.up0 = nn.Conv2d(a, 2 * a, 1), nn.Conv2d(a, self.fold**2 * b, 1)
        self.stage1 = Stage(b, blocks[1], blocks[1])
        self.double1, self.up1 = nn.Conv2d(b, 2 * b, 1), nn.Conv2d(b, 4 * c, 1)
        self.stage2 = Stage(c, blocks[2], 1)
        self.conv_out = nn.Conv2d(c, 48, 3, padding=1)

    @staticmethod
    def _double(conv: nn.Conv2d, x: Tensor) -> Tensor:
        """One frame becomes two."""
        return _channels_last(conv(x).unflatten(1, (2, -1)).flatten(0, 1))

    def forward(self, latents: Tensor, state: VAEState | None) -> tuple[Tensor, VAEState]:
        batch, carried = latents.shape[0], []
        x = self.conv_in(_channels_last(latents.flatten(0, 1)))
        x = self.stage0(x, batch, state, carried)
        x = F.pixel_shuffle(self.up0(self._double(self.double0, x)), self.fold)
        x = self.stage1(_channels_last(x), batch, state, carried)
        x = F.pixel_shuffle(self.up1(self._double(self.double1, x)), 2)
        x = self.stage2(_channels_last(x), batch, state, carried)
        return F.pixel_shuffle(self.conv_out(x), 4).unflatten(0, (batch, -1)), tuple(carried)


class LightVAE(nn.Module):
    """The tiny checkpoint's causal VAE; latents are normalised per channel with measured mean and std."""

    def __init__(
        self,
        z_dim: int = 48,
        stride: int = 16,
        encoder_widths: tuple[int, int, int] = (64, 128, 192),
        decoder_widths: tuple[int, int, int] = (192, 96, 48),
        decoder_blocks: tuple[int, int, int] = (2, 2, 2),
        small_widths: tuple[int, ...] = (),
        small_blocks: tuple[int, ...] = (3, 2, 1),
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.stride = (4, stride, stride)
        self.encoder = LightEncoder(z_dim, encoder_widths, stride)
        self.decoder = LightDecoder(z_dim, decoder_widths, decoder_blocks, stride)
        self.small_decoder = LightDecoder(z_dim, small_widths, small_blocks, stride) if small_widths else None
        self.uses_small = False
        """Streams are decoded by `small_decoder`, which costs less than half."""
        self.register_buffer("mean", torch.zeros(z_dim))
        self.register_buffer("std", torch.ones(z_dim))
        self._init_unit_gain()

    def _init_unit_gain(self) -> None:
        """The framework's default shrinks the signal to nothing over twenty layers."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                nn.init.zeros_(layer.bias)
        for layer in self.modules():
            if isinstance(layer, (MemoryBlock, PlainBlock)):
                layer.conv2.weight.data.mul_(0.5)

    def encode(self, video: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Pictures to normalised latents.

        Args:
            video: [B, 3, T, H, W] in -1..1, T a multiple of 4, H and W multiples of the stride.
            state: what the previous call of this stream returned; None starts a stream.

        Returns:
            Latents [B, z, T/4, h, w] and the state for the next call.
        """
        latents, state = self.encoder(video.transpose(1, 2), state)
        scale, shift = self._affine(latents.dtype)
        return ((latents - shift) / scale).transpose(1, 2), state

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Normalised latents to pictures.

        Args:
            latents: [B, z, F, h, w].
            state: what the previous call of this stream returned; None starts a stream.

        Returns:
            Video [B, 3, 4F, H, W], about -1..1 (not clamped), and the state for the next call.
        """
        return self._decode(self.small_decoder if self.uses_small else self.decoder, latents, state)

    def _decode(self, decoder: nn.Module, latents: Tensor, state: VAEState | None) -> tuple[Tensor, VAEState]:
        scale, shift = self._affine(latents.dtype)
        video, state = decoder(latents.transpose(1, 2) * scale + shift, state)
        return video.transpose(1, 2), state

    def reference_latent(self, image: Tensor) -> Tensor:
        """The steady latent of a still picture: [B, 3, H, W] in -1..1 to [B, z, 1, h, w]."""
        latents, _ = self.encode(image[:, :, None].expand(-1, -1, REFERENCE_FRAMES, -1, -1))
        return latents[:, :, -1:]

    def primed_state(self, reference: Tensor) -> VAEState:
        """Decoder state after a still stream of `reference` [B, z, 1, h, w]: the first block follows it smoothly."""
        return self.decode(reference.expand(-1, -1, REFERENCE_FRAMES // 4, -1, -1))[1]

    def still(self, image: Tensor) -> Still:
        """What a stream starts from: [B, 3, H, W] in -1..1. A still picture is its own past."""
        reference = self.reference_latent(image)
        dtype = next(self.decoder.parameters()).dtype
        latents = reference.expand(-1, -1, REFERENCE_FRAMES // 4, -1, -1).to(dtype)
        video, state = self._decode(self.decoder, latents, None)
        if self.uses_small:  # the full decoder says how well a picture can be had, the small one goes on
            state = self.decode(latents)[1]
        past = reference.expand(-1, -1, PAST_LATENTS, -1, -1)
        return Still(reference=reference, past=past, state=state, shown=video[:, :, -1])

    def _affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.std[:, None, None].to(dtype), self.mean[:, None, None].to(dtype)

"""Speech inside the transformer: features to audio tokens, and their injection into chosen blocks.

Each latent frame attends to its own few tokens only; a global vector of that frame modulates the norm in front (AdaIN).
Tokens, keys, values and modulations depend on the block's sound but not on the denoising step, so they are made once
per block. The injected residual of several speakers is weighted by a mask and summed.

Letters: B batch, A speakers, M = B A, F latent frames, S tokens per latent frame, D width, N heads, d head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import DiTConfig

FRAMES_PER_LATENT = 4
"""Feature columns (pictures) per latent frame: two convolutions of stride 2."""
_ADAIN_EPS = 1e-5


class Injection(NamedTuple):
    """What one injector needs of a block's sound."""

    k: Tensor
    """[M F, tokens, N, d]."""
    v: Tensor
    """[M F, tokens, N, d]."""
    scale: Tensor
    """[B, A, F, 1, D], one added."""
    shift: Tensor
    """[B, A, F, 1, D]."""


class AudioCondition(NamedTuple):
    """A block's sound, prepared for every injector."""

    injections: list[Injection]
    """One per injecting block, in order."""
    mask: Tensor | None
    """[B or 1, A, F, S, 1] weight of each speaker, needed with more than one."""


class _PaddedConv(nn.Module):
    """Causal convolution over time, kernel 3, the first column repeated on the left."""

    def __init__(self, dim_in: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim_in, dim_out, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (2, 0), mode="replicate"))


class _TokenEncoder(nn.Module):
    """The local (num_audio_token streams) and global branches; the last two convolutions are shared."""

    def __init__(self, audio_dim: int, dim: int, num_tokens: int, eps: float) -> None:
        super().__init__()
        quarter = dim // 4
        self.num_tokens, self.eps = num_tokens, eps
        self.conv1_local = _PaddedConv(audio_dim, quarter * num_tokens, 1)
        self.conv1_global = _PaddedConv(audio_dim, quarter, 1)
        self.conv2 = _PaddedConv(quarter, dim // 2, 2)
        self.conv3 = _PaddedConv(dim // 2, dim, 2)
        self.final_linear = nn.Linear(dim, dim)
        self.padding_tokens = nn.Parameter(torch.randn(1, 1, 1, dim) * 0.02)

    def _act(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return F.silu(F.layer_norm(x, x.shape[-1:], eps=self.eps)).transpose(1, 2)

    def _tail(self, x: Tensor) -> Tensor:
        """[n, dim/4, T] to [n, frames, dim]."""
        return self._act(self.conv3(self._act(self.conv2(self._act(x))))).transpose(1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [M, audio_dim, T] to local [M, F, tokens + 1, D] and global [M, F, 1, D]."""
        local = self.conv1_local(x).unflatten(1, (self.num_tokens, -1)).flatten(0, 1)
        local = self._tail(local).unflatten(0, (x.shape[0], self.num_tokens)).transpose(1, 2)
        padding = self.padding_tokens.to(local.dtype).expand(*local.shape[:2], 1, -1)
        return torch.cat([local, padding], 2), self.final_linear(self._tail(self.conv1_global(x)))[:, :, None]


class CausalAudioEncoder(nn.Module):
    """Mixes the speech encoder's hidden states and turns 4 F feature columns into tokens of F latent frames."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, cfg.audio_layers, 1, 1), 0.01))
        self.encoder = _TokenEncoder(cfg.audio_dim, cfg.dim, cfg.num_audio_token, cfg.eps)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a stretch of features as it stands.

        Args:
            features: [M, layers, audio_dim, T].

        Returns:
            Local tokens [M, ceil(T/4), num_audio_token + 1, D] (the learned one last) and global [M, ceil(T/4), 1, D].
        """
        weights = F.silu(self.weights)
        return self.encoder((features.to(weights.dtype) * weights).sum(1) / weights.sum())

    def block(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of one block; nothing of earlier blocks' sound enters.

        The published model puts 73 copies of the first column in front and drops 19 outputs. One copy and one output
        give exactly the same, since the padding repeats the first column anyway.

        Args:
            features: [M, layers, audio_dim, 4 F].
        """
        local, glob = self(torch.cat([features[..., :1], features], -1))
        return local[:, 1:], glob[:, 1:]


class _Adain(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)


class AudioInjector(nn.Module):
    """Audio cross-attention after some of the blocks."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        count = len(cfg.audio_inject_layers)
        self.injector = nn.ModuleList(Attention(cfg.dim, cfg.num_heads, cfg.eps) for _ in range(count))
        self.injector_adain_layers = nn.ModuleList(_Adain(cfg.dim) for _ in range(count))

    def prepare(self, index: int, local: Tensor, glob: Tensor, batch: int) -> Injection:
        """Keys, values and modulation of injector `index` from tokens as `CausalAudioEncoder` gives them."""
        k, v = self.injector[index].keys_values(local.flatten(0, 1))
        shift, scale = self.injector_adain_layers[index].linear(F.silu(glob)).chunk(2, -1)
        split = (batch, -1)
        return Injection(k, v, (1 + scale).unflatten(0, split), shift.unflatten(0, split))

    @staticmethod
    def modulated(x: Tensor, sound: Injection) -> Tensor:
        """The queries' input: x [B, F, S, D] normed and modulated by each speaker's global vector, [B, A, F, S, D]."""
        normed = F.layer_norm(x, x.shape[-1:], eps=_ADAIN_EPS)
        return torch.addcmul(sound.shift, normed[:, None], sound.scale)

    def forward(self, index: int, x: Tensor, sound: Injection, mask: Tensor | None) -> Tensor:
        """x [B, F, S, D] plus what injector `index` hears."""
        return self.hear(self.injector[index], x, sound, mask)

    @staticmethod
    def hear(injector: Attention, x: Tensor, sound: Injection, mask: Tensor | None) -> Tensor:
        """x [B, F, S, D] plus what one injector hears."""
        y = AudioInjector.modulated(x, sound)
        out = injector.cross(y.flatten(0, 2), sound.k, sound.v).view(y.shape)
        if mask is not None:
            return x + (out * mask.to(out.dtype)).sum(1)
        assert y.shape[1] == 1, "several speakers need a mask"
        return x + out[:, 0]

"""What rooms, microphones and lines do to a voice, on the device and in batches."""

from __future__ import annotations

import torch
from torch import Tensor


def _uniform(wave: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(wave.shape[0], 1, device=wave.device)


def _room(wave: Tensor, on: Tensor) -> Tensor:
    """Impulse responses: exponentially decaying noise behind the direct sound. [B, 8000]"""
    t = torch.arange(8000, device=wave.device)[None] / 16000
    response = torch.randn(wave.shape[0], 8000, device=wave.device) * torch.exp(-6.9 * t / _uniform(wave, 0.1, 0.6))
    response = response / response.norm(dim=1, keepdim=True) * 10 ** (-_uniform(wave, 2, 18) / 20) * on
    response[:, 0] += 1
    return response


def _equaliser(wave: Tensor, bins: int, on: Tensor, limited: Tensor) -> Tensor:
    """A smooth random curve over log frequency and band limits: gains [B, bins]."""
    f = torch.linspace(0, 1, bins, device=wave.device)[None]
    knots = torch.randn(wave.shape[0], 10, device=wave.device) * _uniform(wave, 0, 6) * on
    position = (torch.log2(1 + 63 * f) / 6 * 9).clamp(0, 8.999)
    low = position.long().expand(wave.shape[0], -1)
    weight = position - low
    db = knots.gather(1, low) * (1 - weight) + knots.gather(1, low + 1) * weight
    bottom = _uniform(wave, 0, 0.04) * limited
    top = 1 - (1 - _uniform(wave, 0.42, 0.9)) * limited
    return 10 ** (db / 20) * torch.sigmoid((f - bottom) * 400) * torch.sigmoid((top - f) * 120)


def _coloured_noise(wave: Tensor) -> Tensor:
    """Unit RMS noise with a random spectral slope."""
    spectrum = torch.fft.rfft(torch.randn_like(wave))
    k = torch.arange(1, spectrum.shape[1] + 1, device=wave.device)[None].float()
    noise = torch.fft.irfft(spectrum * k ** (-_uniform(wave, 0, 1)), wave.shape[1])
    return noise / noise.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


@torch.no_grad()
def damage(wave: Tensor, strength: float = 1.0) -> Tensor:
    """Room, equaliser, band limit, noise, babble, gain and clipping at random.

    Args:
        wave: [B, samples] float32, about -1..1.
        strength: scales how often each kind of damage happens.
    """
    on = lambda p: (torch.rand(wave.shape[0], 1, device=wave.device) < p * strength).float()  # noqa: E731
    n = wave.shape[1]
    padded = n + 8192
    spectrum = torch.fft.rfft(wave, padded) * torch.fft.rfft(_room(wave, on(0.6)), padded)
    spectrum = spectrum * _equaliser(wave, spectrum.shape[1], on(0.7), on(0.4))
    x = torch.fft.irfft(spectrum, padded)[:, :n]
    reference = x.square().mean(1, keepdim=True).sqrt().clamp_min(0.03)
    x = x + _coloured_noise(x) * reference * 10 ** (-_uniform(wave, 3, 40) / 20) * on(0.75)
    babble = wave.roll(1, 0) + wave.roll(2, 0) + wave.roll(3, 0)
    x = x + babble * 10 ** (-_uniform(wave, 14, 34) / 20) * on(0.25)
    x = x * 10 ** (_uniform(wave, -30, 4) / 20)
    limit = _uniform(wave, 0.1, 0.6)
    return torch.where(on(0.1) > 0, torch.minimum(torch.maximum(x, -limit), limit), x)

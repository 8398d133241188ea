"""The published speech encoder (wav2vec2-large-xlsr-53) for whole files and for live windows.

A file is levelled over its whole length and encoded at once, as the published pipeline does. A stream is levelled by
what this speaker has said so far (`Level`), encoded in one window per block, and only the block's states are kept. Both
give one column per picture; `model.speech_columns` says which states it is made of.

Letters: B batch, T states of 20 ms, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.audio import wav2vec2
from model.component_config import XLSRAudioConfig
from model.interface import WindowSpec
from model.speech_columns import (
    HOP_SAMPLES,
    columns_at,
    columns_of_file,
    live_positions,
    num_states,
    to_grid,
)

SAMPLES_PER_S = 16_000


@dataclass(slots=True)
class Level:
    """Running mean and power of one speaker, over 20 ms pieces on the stream's own clock.

    At first all speech counts alike, with the assumed level as some of it; later old speech is forgotten. Pieces are
    counted once, however windows overlap. Silence leaves the level alone, so that a pause does not turn
    room noise into speech.
    """

    mean: float
    power: float
    """Variance about the mean."""
    heard: int
    """Absolute sample up to which the stream has been counted; the sample at which it started, at first."""
    origin: int
    """Absolute sample at which the stream started; nothing before it is sound."""
    num_pieces: int = 0
    """Pieces of speech counted so far."""

    def hear(self, samples: Tensor, first: int, cfg: XLSRAudioConfig) -> None:
        """Count new pieces among `samples`, a float32 wave that starts at absolute sample `first`."""
        start = max(self.heard, first)
        start += -start % HOP_SAMPLES
        count = max(0, (first + len(samples) - start) // HOP_SAMPLES)
        if count == 0:
            return
        pieces = samples[start - first :][: count * HOP_SAMPLES].double().unflatten(0, (count, HOP_SAMPLES))
        means, squares = pieces.mean(1).tolist(), pieces.square().mean(1).tolist()
        piece_s = HOP_SAMPLES / SAMPLES_PER_S
        least, assumed = 1 - math.exp(-piece_s / cfg.forget_s), cfg.prior_s / piece_s
        for mean, square in zip(means, squares, strict=True):
            if square - mean * mean > cfg.gate_rms**2:
                self.num_pieces += 1
                share = max(least, 1 / (assumed + self.num_pieces))
                second = (1 - share) * (self.power + self.mean**2) + share * square
                self.mean += share * (mean - self.mean)
                self.power = max(second - self.mean**2, 0.0)
        self.heard = start + count * HOP_SAMPLES

    def apply(self, wave: Tensor, floor_rms: float) -> Tensor:
        """Remove the mean and divide by the level, or by the floor where the speaker is quieter."""
        return (wave - self.mean) / math.sqrt(max(self.power, floor_rms**2))


class XLSREncoder(nn.Module):
    """See the module. Parameters under `wav2vec2` carry the names of the library's `Wav2Vec2Model`."""

    def __init__(self, cfg: XLSRAudioConfig, window: WindowSpec, frames_per_block: int, fps: int) -> None:
        super().__init__()
        self.cfg, self.window = cfg, window
        self.frames_per_block, self.fps = frames_per_block, fps
        self.wav2vec2 = wav2vec2(cfg, cfg.ffn_dim, mask_time_prob=0.0)

    def states(self, wave: Tensor, valid: int | None = None) -> Tensor:
        """All hidden states of a levelled wave.

        Args:
            wave: [B, samples].
            valid: samples that are sound; what follows is padding, which nothing attends to.

        Returns:
            [B, layers + 1, T, D]. The last one is taken from `last_hidden_state`, since recent library versions leave
            the final norm out of the list.
        """
        mask = None
        if valid is not None and valid < wave.shape[1]:
            mask = (torch.arange(wave.shape[1], device=wave.device) < valid).long().expand(len(wave), -1)
        dtype = self.wav2vec2.feature_projection.projection.weight.dtype
        out = self.wav2vec2(wave.to(dtype), attention_mask=mask, output_hidden_states=True)
        states = torch.stack([*out.hidden_states[:-1], out.last_hidden_state], 1)
        return states if valid is None else states[:, :, : num_states(valid)]

    # Whole files.

    def file_states(self, wave: Tensor) -> Tensor:
        """States of a whole file at 30 Hz: [samples] float32 at 16 kHz to [layers + 1, L, D]."""
        return to_grid(self.states(level_of_file(wave)[None])[0])

    def file_features(self, wave: Tensor, frames_per_clip: int) -> Tensor:
        """Columns of a whole file, as published: [samples] to [1, layers + 1, D, pictures of all clips]."""
        return columns_of_file(self.file_states(wave), frames_per_clip, self.fps)

    # Streams.

    def listen(self, first_block: int = 0) -> Level:
        """What a stream that starts at `first_block` carries."""
        origin = first_block * self.window.block_samples
        return Level(mean=0.0, power=self.cfg.prior_rms**2, heard=origin, origin=origin)

    def window_features(self, window: Tensor, block: int, heard: Level, known: int | None = None) -> Tensor:
        """The block's columns; the level is brought up to the block's end first and stays as it is for the window.

        Args:
            window: [1, samples] float32 in -1..1, `window.samples` to `window.most_samples` of them.
            block: index on the stream's clock; it decides which states the pictures fall on.
            heard: level of the stream, as `listen` gives it; updated in place.
            known: samples of the window that have been heard already, where its end is still to come; that end is
                left out, not taken for silence. At least up to 80 samples after the block.

        Returns:
            [1, layers + 1, D, frames_per_block].
        """
        spec = self.window
        known = window.shape[1] if known is None else known
        shape = spec.samples if known <= spec.samples else spec.most_samples  # two shapes, whatever is known
        start = block * spec.block_samples - spec.left_samples
        heard.hear(window[0, : spec.left_samples + spec.block_samples], start, self.cfg)
        # Windows start on the 50 Hz grid, at the stream's origin at the earliest; the rest of the shape is padding.
        first = max(start, heard.origin)
        first += -first % HOP_SAMPLES
        sound = heard.apply(window[:, first - start : known], self.cfg.floor_rms)
        wave = torch.nn.functional.pad(sound, (0, shape - sound.shape[1]))
        states = self.states(wave, sound.shape[1])
        positions = live_positions(block * self.frames_per_block, self.frames_per_block, self.fps)
        return columns_at(states, positions, first // HOP_SAMPLES)


def level_of_file(wave: Tensor) -> Tensor:
    """Remove the mean and bring a whole file [samples] to unit variance, as the published feature extractor does."""
    wave = wave.float()
    return (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()

"""What a share of the work takes from its neighbours and gives to them; alone, it takes and gives nothing.

The denoising loop and the transformer are written once against `Relay`. One process has all of both (`Whole`); a rank
of a plan has some steps or some layers (`model.stages`).

Letters: B batch, F latent frames, S tokens per latent frame, D width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Relay(Protocol):
    """Neighbours of one share. What is given goes out in order; every take waits for its give."""

    first_step: int
    """Number of the first denoising step that is run here."""
    last_step: int
    """Number of the last one."""
    enters: bool
    """Whether latents become hidden states here: the first layer is here."""
    leaves: bool
    """Whether hidden states become velocities here: the last layer is here."""

    def take_latents(self, step: int, x: Tensor) -> Tensor:
        """Latents that enter `step`; `x` is what this share knows of them (noise, or its own last result)."""
        ...

    def give_latents(self, step: int, x: Tensor) -> None:
        """Latents that came out of `step`."""
        ...

    def take_hidden(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Hidden states of the layer before the first one here, in `like`'s dtype and on its device."""
        ...

    def give_hidden(self, x: Tensor) -> None:
        """Hidden states of the last layer here."""
        ...


class Whole:
    """All steps and all layers in one process."""

    first_step, last_step = 0, 1 << 30
    enters = leaves = True

    def take_latents(self, step: int, x: Tensor) -> Tensor:
        return x

    def give_latents(self, step: int, x: Tensor) -> None:
        pass

    def take_hidden(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        raise AssertionError("nothing lies before the first layer")

    def give_hidden(self, x: Tensor) -> None:
        raise AssertionError("nothing lies behind the last layer")


WHOLE = Whole()

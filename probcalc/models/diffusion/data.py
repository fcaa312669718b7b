r"""What diffuses: levels of pixels, or real numbers; and p(x | z_0) at the end next to the data.

p(x = v | z_0) ∝ exp(−(z_0 − α_0 x_v)² / 2σ_0²)   over the levels v
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.models.diffusion.schedules import signal_and_noise
from probcalc.models.vae.likelihoods import check_levels


@runtime_checkable
class Kind(Protocol):
    """A kind of data."""

    def check(self, x: Tensor) -> None:
        """Refuse other kinds."""
        ...

    def encoded(self, x: Tensor) -> Tensor:
        """In the units in which it diffuses."""
        ...

    def decoded(self, z: Tensor) -> Tensor:
        """Back, the nearest that there is."""
        ...

    def log_prob(self, x: Tensor, z: Tensor, gamma: Tensor) -> Float[Tensor, "*n"]:
        """Ln p(x|z_0) of rows."""
        ...


@dataclass(frozen=True)
class Levels:
    """Whole numbers 0 … V − 1, which diffuse on [−1, 1].

    Args:
        levels: V.
    """

    levels: int

    def check(self, x: Tensor) -> None:
        """Whole numbers below V.

        Raises:
            ValueError: If one is not.
        """
        check_levels(x, self.levels)

    def encoded(self, x: Tensor) -> Tensor:
        """From −1 to 1."""
        return 2 * x / (self.levels - 1) - 1

    def decoded(self, z: Tensor) -> Tensor:
        """The nearest level."""
        return ((z + 1) * (self.levels - 1) / 2).round().clamp(0, self.levels - 1)

    def places(self, like: Tensor) -> Float[Tensor, " v"]:
        """The levels, where they diffuse."""
        return self.encoded(torch.arange(self.levels, dtype=like.dtype, device=like.device))

    def log_masses(
        self, z: Float[Tensor, "*n p"], gamma: Float[Tensor, "*n"]
    ) -> Float[Tensor, "*n v p"]:
        """Ln N(z; α x_v, σ²) for every level, up to what levels share."""
        alpha, sigma = (s[..., None, None] for s in signal_and_noise(gamma))
        away = (z[..., None, :] - alpha * self.places(z)[:, None]) / sigma
        return -0.5 * away.square()

    def log_prob(
        self, x: Float[Tensor, "*n p"], z: Float[Tensor, "*n p"], gamma: Float[Tensor, "*n"]
    ) -> Float[Tensor, "*n"]:
        """Ln p(x|z_0) of rows."""
        logs = self.log_masses(z, gamma).log_softmax(dim=-2)
        return logs.gather(-2, x.long()[..., None, :]).sum(dim=(-2, -1))


@dataclass(frozen=True)
class Real:
    """Real numbers, which should be of about unit variance."""

    def check(self, x: Tensor) -> None:
        """Any finite numbers."""

    def encoded(self, x: Tensor) -> Tensor:
        """As they are."""
        return x

    def decoded(self, z: Tensor) -> Tensor:
        """As they are."""
        return z

    def log_prob(
        self, x: Float[Tensor, "*n p"], z: Float[Tensor, "*n p"], gamma: Float[Tensor, "*n"]
    ) -> Float[Tensor, "*n"]:
        """Ln N(x; z_0/α_0, σ_0²/α_0²) of rows."""
        alpha, sigma = (s[..., None] for s in signal_and_noise(gamma))
        each = -0.5 * ((x - z / alpha) * alpha / sigma).square() - (sigma / alpha).log()
        return (each - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

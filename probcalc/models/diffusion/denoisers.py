r"""Networks that guess x from z_t, and what their numbers mean.

    ε̂ → x̂ = (z − σ ε̂)/α;    v̂ → x̂ = α z − σ v̂;    x̂ itself;
    logits → x̂ = Σ_v x_v softmax(logits + ln N(z; α x_v, σ²))

The last is the exact posterior mean of pixels with these log priors: at low noise it is right
before the network has learned anything, which the others are not. Salimans & Ho (2022),
Progressive distillation, section 4, for v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc.models.diffusion.data import Levels
from probcalc.models.diffusion.schedules import signal_and_noise

_WAVES = 8  # sines and cosines by which a network sees the noise level


@runtime_checkable
class Prediction(Protocol):
    """What a network's numbers mean."""

    def num_outputs(self, kind: Any) -> int:
        """Numbers a pixel."""
        ...

    def x(self, out: Tensor, z: Tensor, gamma: Tensor, kind: Any) -> Float[Tensor, "*n p"]:
        """The guess of x, from the network's numbers ``(*n, k, p)``."""
        ...


@dataclass(frozen=True)
class Epsilon:
    """The noise."""

    def num_outputs(self, kind: Any) -> int:
        """One."""
        return 1

    def x(self, out: Tensor, z: Tensor, gamma: Tensor, kind: Any) -> Tensor:
        """(z − σ ε̂)/α."""
        alpha, sigma = (s[..., None] for s in signal_and_noise(gamma))
        return (z - sigma * out[..., 0, :]) / alpha


@dataclass(frozen=True)
class Data:
    """X itself."""

    def num_outputs(self, kind: Any) -> int:
        """One."""
        return 1

    def x(self, out: Tensor, z: Tensor, gamma: Tensor, kind: Any) -> Tensor:
        """As it is."""
        return out[..., 0, :]


@dataclass(frozen=True)
class Velocity:
    """V = α ε − σ x."""

    def num_outputs(self, kind: Any) -> int:
        """One."""
        return 1

    def x(self, out: Tensor, z: Tensor, gamma: Tensor, kind: Any) -> Tensor:
        """α z − σ v̂."""
        alpha, sigma = (s[..., None] for s in signal_and_noise(gamma))
        return alpha * z - sigma * out[..., 0, :]


@dataclass(frozen=True)
class LevelLogits:
    """Log prior weights of the levels, from which the posterior mean follows."""

    def num_outputs(self, kind: Any) -> int:
        """One a level.

        Raises:
            ValueError: If the data have no levels.
        """
        if not isinstance(kind, Levels):
            raise ValueError(
                "`LevelLogits` is for data with levels; use `Velocity()` or `Epsilon()` for real "
                "numbers."
            )
        return kind.levels

    def x(self, out: Tensor, z: Tensor, gamma: Tensor, kind: Any) -> Tensor:
        """Σ x_v softmax(…)."""
        weights = (out + kind.log_masses(z, gamma)).softmax(dim=-2)
        return kind.places(z) @ weights


@dataclass(frozen=True)
class ResidualPerceptron:
    """Blocks of two layers, told of the noise level in each.

    Args:
        width: Of the layers.
        num_blocks: How many.
        activation: Class of the modules between layers.
        dropout: Share of units left out in training.
    """

    width: int = 256
    num_blocks: int = 2
    activation: Callable[[], nn.Module] = nn.SiLU
    dropout: float = 0.0

    def build(self, pixels: int, num_outputs: int, condition: int) -> nn.Module:
        """From z, γ and a condition to ``(n, k, p)``."""
        return _Residual(self, pixels, num_outputs, condition)


class _Residual(nn.Module):
    def __init__(
        self, settings: ResidualPerceptron, pixels: int, num_outputs: int, condition: int
    ) -> None:
        super().__init__()
        width = settings.width
        self.first = nn.Linear(pixels + condition, width)
        self.level = nn.Linear(2 * _WAVES + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                settings.activation(),
                nn.Dropout(settings.dropout),
                nn.Linear(width, width),
            )
            for _ in range(settings.num_blocks)
        )
        self.last = nn.Sequential(
            nn.LayerNorm(width),
            settings.activation(),
            nn.Linear(width, num_outputs * pixels),
            nn.Unflatten(1, (num_outputs, pixels)),
        )
        nn.init.zeros_(self.last[2].weight)
        nn.init.zeros_(self.last[2].bias)

    def forward(self, z: Tensor, gamma: Tensor, condition: Tensor | None) -> Tensor:
        rows = z if condition is None else torch.cat([z, condition], dim=1)
        told = self.level(_waves(gamma))
        h = self.first(rows)
        for block in self.blocks:
            h = h + block(h + told)
        return self.last(h)


def _waves(gamma: Float[Tensor, " n"]) -> Float[Tensor, "n w"]:
    """The noise level at several resolutions."""
    rates = math.pi / 32 * 2.0 ** torch.arange(_WAVES, dtype=gamma.dtype, device=gamma.device)
    angles = gamma[:, None] * rates
    return torch.cat([gamma[:, None] / 10, angles.sin(), angles.cos()], dim=1)

"""Activations and their derivatives by formula; at kinks the one from the left is taken.

A kink has two one-sided slopes and every number between them is a subgradient; torch takes the
left one for the rectifier, and so do we.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """A function of one number, elementwise."""

    def __call__(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The function."""
        raise NotImplementedError

    def derivative(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Its slope."""
        raise NotImplementedError


@dataclass(frozen=True)
class Identity(Activation):
    """The number itself."""

    def __call__(self, x: Tensor) -> Tensor:
        """The number."""
        return x

    def derivative(self, x: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(x)


@dataclass(frozen=True)
class Sigmoid(Activation):
    """1/(1 + e^−x), with a slope of at most 1/4."""

    def __call__(self, x: Tensor) -> Tensor:
        """σ."""
        return x.sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        """σ(x) σ(−x)."""
        return x.sigmoid() * (-x).sigmoid()


@dataclass(frozen=True)
class Tanh(Activation):
    """Hyperbolic tangent, with a slope of at most one."""

    def __call__(self, x: Tensor) -> Tensor:
        """Of x."""
        return x.tanh()

    def derivative(self, x: Tensor) -> Tensor:
        """4 σ(2x) σ(−2x) = 1 − tanh², to full precision in the tails."""
        return 4 * (2 * x).sigmoid() * (-2 * x).sigmoid()


@dataclass(frozen=True)
class ReLU(Activation):
    """The positive part (Nair & Hinton 2010)."""

    def __call__(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return x.relu()

    def derivative(self, x: Tensor) -> Tensor:
        """One above zero, else zero."""
        return (x > 0).to(x)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """The positive part and a share of the negative one (Maas et al. 2013).

    Args:
        slope: Below zero.
    """

    slope: float = 0.01

    def __call__(self, x: Tensor) -> Tensor:
        """The function."""
        return torch.where(x > 0, x, self.slope * x)

    def derivative(self, x: Tensor) -> Tensor:
        """One above zero, else the slope."""
        return torch.where(x > 0, torch.ones_like(x), self.slope)


@dataclass(frozen=True)
class ELU(Activation):
    """x above zero, e^x − 1 below (Clevert et al. 2016)."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function."""
        return torch.where(x > 0, x, x.clamp(max=0).expm1())

    def derivative(self, x: Tensor) -> Tensor:
        """One above zero, e^x below."""
        return x.clamp(max=0).exp()


@dataclass(frozen=True)
class Softplus(Activation):
    """ln(1 + e^x), whose slope is the sigmoid."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function."""
        return torch.logaddexp(x, torch.zeros_like(x))

    def derivative(self, x: Tensor) -> Tensor:
        """σ."""
        return x.sigmoid()


@dataclass(frozen=True)
class SiLU(Activation):
    """x σ(x) (Elfwing et al. 2018)."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function."""
        return x * x.sigmoid()

    def derivative(self, x: Tensor) -> Tensor:
        """σ (1 + x σ(−x))."""
        return x.sigmoid() * (1 + x * (-x).sigmoid())


@dataclass(frozen=True)
class GELU(Activation):
    """x Φ(x) (Hendrycks & Gimpel 2016)."""

    def __call__(self, x: Tensor) -> Tensor:
        """The function."""
        return x * torch.special.ndtr(x)

    def derivative(self, x: Tensor) -> Tensor:
        """Φ + x φ, with the normal density φ."""
        density = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
        return torch.special.ndtr(x) + x * density


ACTIVATIONS = {
    cls.__name__: cls
    for cls in (Identity, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, Softplus, SiLU, GELU)
}

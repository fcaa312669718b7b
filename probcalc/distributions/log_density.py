"""Log densities, where torch's own lose digits."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, VonMises


def log_density(dist: Distribution, x: Float[Tensor, "*x"]) -> Float[Tensor, "*out"]:
    """Log density or mass at x, as `dist.log_prob` but where that loses digits.

    Von Mises: torch approximates the Bessel function to about eight digits.
    """
    if isinstance(dist, VonMises):
        # κ (cos(x − μ) − 1) − log 2π − log(e^−κ I_0(κ))
        half = torch.sin(0.5 * (x - dist.loc))
        bessel = torch.special.i0e(dist.concentration)
        return -2 * dist.concentration * half.square() - math.log(2 * math.pi) - bessel.log()
    return dist.log_prob(x)

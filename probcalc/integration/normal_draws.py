"""Low-discrepancy normal draws in independent replicates.

Sobol points with a random digital shift a replicate, each point then uniform within its own cell:
every point is uniform, replicates are independent, so their spread is an honest error bar (Owen
2013, Monte Carlo theory, methods and examples, section 17.3). Pairs ±z integrate every odd
function exactly; `matched_normal_draws` every quadratic too, at the price of a bias.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from probcalc.linalg import whitened

_BITS = 30  # of torch's Sobol points


def normal_draws(
    num_replicates: int,
    num_draws: int,
    dim: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "r n d"]:
    """Standard normal draws in ± pairs, for estimates whose error bar is the replicates' spread.

    Draws within a replicate depend on each other: their own scatter is no error bar.

    Args:
        num_replicates: Independent sets.
        num_draws: Draws in each set, even.
        dim: Dimension of a draw.
        generator: Source of randomness; the draws live on its device.
        dtype: Of the draws.

    Raises:
        ValueError: If `num_draws` is odd or below 2.
    """
    z = _half(num_replicates, num_draws, dim, generator, dtype)
    return torch.cat([z, -z], dim=1)


def matched_normal_draws(
    num_replicates: int,
    num_draws: int,
    dim: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "r n d"]:
    """The same draws, mapped linearly so that their first three moments are exact.

    For fixed draws in an optimisation. The map biases every moment from the fourth on, by about
    d/n, which the spread between replicates does not show: weigh with `normal_draws`.

    Args:
        num_replicates: Independent sets.
        num_draws: Draws in each set, even; the second moment is the identity where
            ``num_draws >= 2 * dim`` and close to it otherwise.
        dim: Dimension of a draw.
        generator: Source of randomness; the draws live on its device.
        dtype: Of the draws.

    Raises:
        ValueError: If `num_draws` is odd or below 2.
    """
    z = whitened(_half(num_replicates, num_draws, dim, generator, dtype))
    return torch.cat([z, -z], dim=1)


def _half(
    r: int, num_draws: int, d: int, generator: torch.Generator, dtype: torch.dtype
) -> Float[Tensor, "r h d"]:
    if num_draws < 2 or num_draws % 2:
        raise ValueError(f"`num_draws` must be even and at least 2, got {num_draws}.")
    half = num_draws // 2
    if half >= 4 * d and d <= SobolEngine.MAXDIM:
        return _scrambled_net(r, half, d, generator, dtype)
    # too few points for a net to help
    return torch.randn((r, half, d), generator=generator, dtype=dtype, device=generator.device)


def _scrambled_net(
    r: int, n: int, d: int, generator: torch.Generator, dtype: torch.dtype
) -> Float[Tensor, "r n d"]:
    device = generator.device
    net = (SobolEngine(d).draw(n, dtype=torch.float64) * 2**_BITS).long().to(device)
    shift = torch.randint(2**_BITS, (r, 1, d), generator=generator, device=device)
    # a net of n points has one in each of n cells: where in its cell is drawn for each point,
    # since one shift for all leaves a grid whose error is anything but normal
    low = _BITS - math.ceil(math.log2(n))
    inside = torch.randint(2**low, (r, n, d), generator=generator, device=device)
    points = ((net ^ shift) >> low << low) | inside
    # the middle of the finest cell, so that 0 and 1 are never met
    return torch.special.ndtri((points.double() + 0.5) / 2**_BITS).to(dtype)

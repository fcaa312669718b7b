"""Low-discrepancy normal draws in independent replicates.

Sobol points with a random digital shift a replicate: every point is uniform, replicates are
independent, so their spread is an honest error bar (Owen 2013, Monte Carlo theory, methods and
examples, section 17.3). Pairs ±z and a second moment made equal to the identity integrate every
quadratic exactly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from probcalc.linalg import whitened

_BITS = 30  # of torch's Sobol points


def matched_normal_draws(
    num_replicates: int,
    num_draws: int,
    dim: int,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "r n d"]:
    """Standard normal draws with exact moments up to the third, in independent replicates.

    The pairing and the matching make draws within a replicate dependent: their own scatter is
    no error bar, the scatter between replicates is.

    Args:
        num_replicates: Independent sets.
        num_draws: Draws in each set, even; the second moment is the identity where
            ``num_draws >= 2 * dim`` and close to it otherwise.
        dim: Dimension of a draw.
        generator: Source of randomness; the draws live on its device.
        dtype: Of the draws.

    Returns:
        Draws, shape ``(num_replicates, num_draws, dim)``.

    Raises:
        ValueError: If `num_draws` is odd or below 2.
    """
    if num_draws < 2 or num_draws % 2:
        raise ValueError(f"`num_draws` must be even and at least 2, got {num_draws}.")
    half = num_draws // 2
    if half < 4 * dim or dim > SobolEngine.MAXDIM:
        # too few points for a net to help
        shape = (num_replicates, half, dim)
        z = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    else:
        z = _shifted_sobol(num_replicates, half, dim, generator, dtype)
    z = whitened(z)
    return torch.cat([z, -z], dim=1)


def _shifted_sobol(
    r: int, n: int, d: int, generator: torch.Generator, dtype: torch.dtype
) -> Float[Tensor, "r n d"]:
    device = generator.device
    net = (SobolEngine(d).draw(n, dtype=torch.float64) * 2**_BITS).long().to(device)
    shift = torch.randint(2**_BITS, (r, 1, d), generator=generator, device=device)
    cells = net ^ shift
    # the middle of the cell, so that 0 and 1 are never met
    return torch.special.ndtri((cells.double() + 0.5) / 2**_BITS).to(dtype)

"""Shifted rank-1 lattice points in an order that may be extended, made on the device.

    x_i = 1 − |2 {φ(i) z + s} − 1|,   z = (1, a, a², ...)

with the radical inverse φ(i) in base 2, one uniform shift s a replicate, and the baker's (tent)
transformation, which lets the error of smooth integrands fall nearly as n^−2 though they are not
periodic. Hickernell, Hong, L'Ecuyer & Lemieux (2000), Extensible lattice sequences for
quasi-Monte Carlo quadrature; Hickernell (2002), Obtaining O(N^(−2+ε)) convergence for lattice
quadrature rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probcalc._random import child

MAX_LOG = 30  # of the number of points
_MULTIPLIER = 17797  # Hickernell et al. (2000), good up to 2^20 points and some tens of dimensions
_LEAST = 2.0**-54  # in place of zero


@dataclass(frozen=True, eq=False)
class ShiftedLattice:
    """Independent shifts of one lattice.

    Args:
        generator: The powers of the multiplier modulo 2^30, ``(d)``.
        shift: Uniform, ``(r, d)``.
    """

    generator: Int[Tensor, " d"]
    shift: Float[Tensor, "r d"]

    @classmethod
    def of(cls, seed: int, replicates: int, dim: int, device: torch.device) -> ShiftedLattice:
        """The shifts of a seed."""
        powers = [pow(_MULTIPLIER, j, 2**MAX_LOG) for j in range(dim)]
        generator = child(seed, 0, device)
        shift = torch.rand(
            replicates, dim, dtype=torch.float64, device=device, generator=generator
        )
        return cls(torch.tensor(powers, device=device), shift)

    def points(self, start: int, num: int) -> Float[Tensor, "r n d"]:
        """Points `start` to `start + num`, inside (0, 1)."""
        index = torch.arange(start, start + num, device=self.shift.device)
        reverse = torch.zeros_like(index)
        for bit in range(MAX_LOG):
            reverse |= (index >> bit & 1) << (MAX_LOG - 1 - bit)
        place = (reverse[:, None] * self.generator & (2**MAX_LOG - 1)).double() * 2.0**-MAX_LOG
        x = (place + self.shift[:, None]) % 1.0
        return (1 - (2 * x - 1).abs()).clamp(min=_LEAST, max=1 - _LEAST)

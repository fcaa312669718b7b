"""Scrambled Sobol points, made on the device that uses them, with 63 bits.

    x_i = ⊕_k i_k L v_k ⊕ s

over the binary digits i_k of i: random lower triangular matrices L and shifts s of bits, one each
for every coordinate of every replicate. Every point is uniform, replicates are independent, and
2^m points stay a net: Matoušek (1998), On the L2-discrepancy for anchored boxes; Owen (1997),
Scrambled net variance for integrals of smooth functions, for the rate n^−3/2 of smooth integrands.
Directions v_k are those of Joe & Kuo (2008), as torch has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.quasirandom import SobolEngine

from probcalc._random import child

MAX_DIM = SobolEngine.MAXDIM
MAX_LOG = SobolEngine.MAXBIT  # of the number of points
_BITS = 63
_KEPT = 52  # bits of a number in (0, 1), to which half a step is added


@dataclass(frozen=True, eq=False)
class ScrambledSobol:
    """Independent randomisations of one sequence.

    Args:
        columns: Scrambled directions, ``(r, d, k)``.
        shift: Random bits, ``(r, d)``.
    """

    columns: Int[Tensor, "r d k"]
    shift: Int[Tensor, "r d"]

    @classmethod
    def of(
        cls, seed: int, replicates: int, dim: int, device: torch.device, log: int = MAX_LOG
    ) -> ScrambledSobol:
        """The randomisations of a seed.

        Args:
            seed: Of the randomisations.
            replicates: How many.
            dim: Of the points.
            device: Of the points.
            log: Binary logarithm of the most points that will be asked for.

        Raises:
            ValueError: If the dimension is beyond that of the directions.
        """
        if dim > MAX_DIM:
            raise ValueError(f"Sobol points have at most {MAX_DIM} coordinates, got {dim}.")
        options = {"generator": child(seed, 0, device), "device": device}
        shift = torch.randint(2**62, (2, replicates, dim), **options)
        # column j of L: one at row j, anything below it
        row = torch.arange(log, device=device)
        one = 1 << (_BITS - 1 - row)
        below = torch.randint(2**62, (replicates, dim, log), **options) & (one - 1)
        matrix = below | one
        directions = _directions(dim)[:, :log].to(device)
        columns = torch.zeros_like(matrix)
        for j in range(log):  # the first 2^log points have no digits beyond
            bit = (directions >> (MAX_LOG - 1 - j)) & 1
            columns ^= matrix[..., j, None] & -bit
        return cls(columns, shift[0] ^ (shift[1] << 1))

    def points(self, start: int, num: int) -> Float[Tensor, "r n d"]:
        """Points `start` to `start + num`, inside (0, 1).

        Args:
            start: A multiple of `num`.
            num: A power of two.
        """
        x = self.shift[:, None]
        for k in range(self.columns.shape[-1]):
            column = self.columns[:, None, :, k]
            if 2**k < num:
                x = torch.cat([x, x ^ column], dim=1)
            elif start >> k & 1:
                x = x ^ column
        return ((x >> (_BITS - _KEPT)).double() + 0.5) * 2.0**-_KEPT


@lru_cache(maxsize=64)
def _directions(dim: int) -> Int[Tensor, "d k"]:
    """Of Joe & Kuo, as whole numbers of 30 bits."""
    return SobolEngine(dim).sobolstate

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
        columns: Scrambled directions, ``(r, d, 30)``.
        shift: Random bits, ``(r, d)``.
    """

    columns: Int[Tensor, "r d k"]
    shift: Int[Tensor, "r d"]

    @classmethod
    def of(cls, seed: int, replicates: int, dim: int, device: torch.device) -> ScrambledSobol:
        """The randomisations of a seed.

        Raises:
            ValueError: If the dimension is beyond that of the directions.
        """
        if dim > MAX_DIM:
            raise ValueError(f"Sobol points have at most {MAX_DIM} coordinates, got {dim}.")
        generator = child(seed, 0, device)
        state = SobolEngine(dim).sobolstate.to(device)
        place = torch.arange(MAX_LOG - 1, -1, -1, device=device)
        bits = ((state[..., None] >> place) & 1).float()  # (d, column, bit from the first)
        options = {"generator": generator, "device": device}
        matrix = torch.randint(2, (replicates, dim, _BITS, MAX_LOG), **options).float()
        matrix = matrix.tril(-1) + torch.eye(_BITS, MAX_LOG, device=device)
        mixed = torch.einsum("rdij,dkj->rdki", matrix, bits).long() & 1
        weight = 2 ** torch.arange(_BITS - 1, -1, -1, device=device)
        columns = (mixed * weight).sum(dim=-1)
        shift = torch.randint(2**62, (2, replicates, dim), **options)
        return cls(columns, shift[0] ^ (shift[1] << 1))

    def points(self, start: int, num: int) -> Float[Tensor, "r n d"]:
        """Points `start` to `start + num`, inside (0, 1).

        Args:
            start: A multiple of `num`.
            num: A power of two.
        """
        x = self.shift[:, None]
        for k in range(MAX_LOG):
            column = self.columns[:, None, :, k]
            if 2**k < num:
                x = torch.cat([x, x ^ column], dim=1)
            elif start >> k & 1:
                x = x ^ column
        return ((x >> (_BITS - _KEPT)).double() + 0.5) * 2.0**-_KEPT

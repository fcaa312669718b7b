"""Uniform points, one in every cell of a grid on the unit cube.

The 2^m cells are cut axis by axis in turn: the binary digits of a cell's number are dealt to the
axes. Owen (2013), Monte Carlo theory, methods and examples, section 8.4 and 10.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import child

_LEAST = 2.0**-54  # in place of a uniform number of zero


@dataclass(frozen=True, eq=False)
class Strata:
    """Independent sets of points.

    Args:
        seed: Of the places inside the cells.
        replicates: How many sets.
        dim: Of the cube.
        log: Binary logarithm of the number of cells.
        device: Of the points.
    """

    seed: int
    replicates: int
    dim: int
    log: int
    device: torch.device

    def points(self, start: int, num: int) -> Float[Tensor, "r n d"]:
        """Points of cells `start` to `start + num`."""
        cell = torch.arange(start, start + num, device=self.device)
        corner = torch.zeros(num, self.dim, dtype=torch.long, device=self.device)
        cuts = [0] * self.dim
        for bit in range(self.log):
            axis = bit % self.dim
            corner[:, axis] = 2 * corner[:, axis] + (cell >> bit & 1)
            cuts[axis] += 1
        width = 0.5 ** torch.tensor(cuts, dtype=torch.float64, device=self.device)
        u = torch.rand(
            self.replicates,
            num,
            self.dim,
            dtype=torch.float64,
            device=self.device,
            generator=child(self.seed, start, self.device),
        )
        return ((corner + u) * width).clamp(min=_LEAST, max=1 - _LEAST)

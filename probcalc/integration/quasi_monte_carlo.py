"""Randomised quasi-Monte Carlo: scrambled Sobol points in independent replicates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.integration.cube import Cube, cube_of, cube_of_boxes
from probcalc.integration.expectation import Expectation
from probcalc.integration.monte_carlo import STRETCHED, Draws, judged
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.replicates import Averages, Replicates
from probcalc.integration.sobol import MAX_LOG, ScrambledSobol
from probcalc.result import half_width

_MAX_EVALS = 2**17
_FIRST = 8  # binary logarithm of the points of a replicate at the first look
_ROUNDING = 4.0  # units in the last place of the mean of |f|


@dataclass(frozen=True)
class QuasiMonteCarlo:
    """Scrambled Sobol points, whose error falls as n^−3/2 where the integrand is smooth.

    The bar is Student's t of independent replicates. Where a tolerance is asked for, points are
    doubled until it is met, and the looks at the bar share its confidence.

    Args:
        replicates: Independent randomisations, at least 8.
        num_points: Points of each, rounded up to a power of two; default as many as the tolerance
            needs and `max_evals` (131,072) allows.
    """

    replicates: int = 16
    num_points: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.replicates < 8:
            raise ValueError(
                "`replicates` must be at least 8 to give an honest error bar, got "
                f"{self.replicates}."
            )
        if self.num_points is not None and not 2 <= self.num_points <= 2**MAX_LOG:
            raise ValueError(
                f"`num_points` must be between 2 and 2^{MAX_LOG}, got {self.num_points}."
            )

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation over draws made of the points by quantiles.

        Raises:
            NotImplementedError: If the draws of the family are not made of uniform numbers.
        """
        cube, seed = cube_of(posed), draw_seed(tolerance.generator)
        found = self._averaged(cube, seed, tolerance)
        draws = Draws(posed, seed)
        num = min(STRETCHED, int(found.terms.num) // 8)
        unseen, looked = draws.unseen(found.terms, torch.finfo(posed.dtype).eps, num)
        # points reach into the tails evenly: only what plain draws would miss counts
        bar = half_width(found.terms.std_error, None, tolerance.confidence)
        return self._solved(cube, found, unseen > bar, looked)

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of intervals or boxes, all with the same points.

        Raises:
            NotImplementedError: If limits are to be differentiated.
        """
        cube = cube_of_boxes(problem)
        found = self._averaged(cube, draw_seed(tolerance.generator), tolerance)
        return self._solved(cube, found, torch.zeros_like(found.std_error) > 0, 0)

    def _averaged(self, cube: Cube, seed: int, tolerance: Tolerance) -> Averages:
        r = self.replicates
        most = tolerance.max_evals or _MAX_EVALS
        if self.num_points is not None:
            last = math.ceil(math.log2(self.num_points))
        else:
            last = min(MAX_LOG, int(math.log2(max(2, most // r))))
        waits = tolerance.asked and self.num_points is None
        points = ScrambledSobol.of(seed, r, cube.dim, cube.device)
        return Replicates(cube.at, points, r).averaged(
            min(_FIRST, last) if waits else last,
            last,
            tolerance.confidence,
            lambda value, bar: ~tolerance.missed(value, bar).any(),
        )

    def _solved(self, cube: Cube, found: Averages, unseen: Tensor, looked: int) -> Solved:
        dof = self.replicates - 1
        bar = found.bar + _ROUNDING * cube.rounding * found.terms.size / found.terms.num
        status = judged(found.terms, unseen)
        error = torch.where((status != 0).reshape(-1, *[1] * (bar.ndim - 1)), math.inf, bar)
        count = torch.full_like(status, found.terms.num + looked)
        method = f"randomised quasi-Monte Carlo, {self.replicates} scrambles"
        return Solved(found.value, error, status, count, method, found.std_error, float(dof))

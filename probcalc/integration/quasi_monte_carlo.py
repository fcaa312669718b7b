"""Randomised quasi-Monte Carlo and stratification: points in independent replicates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.integration.cube import Cube, beyond_ends, cube_of, cube_of_boxes
from probcalc.integration.expectation import Expectation
from probcalc.integration.lattice import ShiftedLattice
from probcalc.integration.monte_carlo import STRETCHED, Draws, judged
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.replicates import Averages, Points, Replicates
from probcalc.integration.sobol import MAX_LOG, ScrambledSobol
from probcalc.integration.strata import Strata
from probcalc.result import half_width

_MAX_EVALS = 2**17
_FIRST = 8  # binary logarithm of the points of a replicate at the first look
_ROUNDING = 4.0  # units in the last place of the mean of |f|


@dataclass(frozen=True)
class Replicated:
    """What methods with independent replicates of a point set share.

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
        found = self.averaged(cube, seed, tolerance)
        draws = Draws(posed, seed)
        num = min(STRETCHED, int(found.terms.num) // 8)
        unseen, looked = draws.unseen(found.terms, torch.finfo(posed.dtype).eps, num)
        # points reach into the tails evenly: only what plain draws would miss counts
        bar = half_width(found.terms.std_error, None, tolerance.confidence)
        solved = self.solved(cube, found, unseen > bar, looked)
        return replace(solved, diagnostics=draws.spoilt(found.terms))

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of intervals or boxes, all with the same points.

        Raises:
            NotImplementedError: If limits are to be differentiated.
        """
        cube = cube_of_boxes(problem)
        found = self.averaged(cube, draw_seed(tolerance.generator), tolerance)
        beyond, looked = beyond_ends(cube, found.terms.low, found.terms.high)
        return self.solved(cube, found, beyond > found.bar, looked)

    def averaged(
        self,
        cube: Cube,
        seed: int,
        tolerance: Tolerance,
        spent: int = 0,
        slopes: Tensor | None = None,
    ) -> Averages:
        """The function's averages over the points.

        Args:
            cube: The function.
            seed: Of the randomisations.
            tolerance: When to stop.
            spent: Of the budget, before.
            slopes: As in `Replicates`.
        """
        r = self.replicates
        most = (tolerance.max_evals or _MAX_EVALS) - spent
        if self.num_points is not None:
            last = math.ceil(math.log2(self.num_points))
        else:
            last = min(MAX_LOG, int(math.log2(max(2, most // r))))
        first = min(_FIRST, last) if self._waits(tolerance) else last
        return Replicates(cube.at, self._points(seed, cube, last), r, slopes).averaged(
            first,
            last,
            tolerance.confidence,
            lambda value, bar: ~tolerance.missed(value, bar).any(),
        )

    def solved(self, cube: Cube, found: Averages, unseen: Tensor, looked: int) -> Solved:
        """Value, bar and flags."""
        dof = self.replicates - 1
        bar = found.bar + _ROUNDING * cube.rounding * found.terms.size / found.terms.num
        status = judged(found.terms, unseen)
        error = torch.where((status != 0).reshape(-1, *[1] * (bar.ndim - 1)), math.inf, bar)
        count = torch.full_like(status, found.terms.num + looked)
        method = f"{self._name}, {self.replicates} {self._sets}"
        return Solved(found.value, error, status, count, method, found.std_error, float(dof))

    def _waits(self, tolerance: Tolerance) -> bool:
        return tolerance.asked and self.num_points is None

    def _points(self, seed: int, cube: Cube, log: int) -> Points:
        raise NotImplementedError

    @property
    def _name(self) -> str:
        raise NotImplementedError

    @property
    def _sets(self) -> str:
        return "replicates"


@dataclass(frozen=True)
class QuasiMonteCarlo(Replicated):
    """Scrambled Sobol points, whose error falls as n^−3/2 where the integrand is smooth.

    The bar is Student's t of independent replicates. Where a tolerance is asked for, points are
    doubled until it is met, and the looks at the bar share its confidence.

    Args:
        replicates: Independent randomisations, at least 8.
        num_points: Points of each, as in `Replicated`.
        points: ``"sobol"``, or ``"lattice"`` for shifted lattice points under the baker's
            transformation: better still in few dimensions where all is smooth.
    """

    points: str = "sobol"

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if self.points not in ("sobol", "lattice"):
            raise ValueError(f'`points` must be "sobol" or "lattice", got {self.points!r}.')

    def _points(self, seed: int, cube: Cube, log: int) -> Points:
        if self.points == "sobol":
            return ScrambledSobol.of(seed, self.replicates, cube.dim, cube.device, log)
        return ShiftedLattice.of(seed, self.replicates, cube.dim, cube.device)

    @property
    def _name(self) -> str:
        lattice = ", lattice" if self.points == "lattice" else ""
        return f"randomised quasi-Monte Carlo{lattice}"

    @property
    def _sets(self) -> str:
        return "scrambles" if self.points == "sobol" else "shifts"


@dataclass(frozen=True)
class Stratified(Replicated):
    """One uniform draw in every cell of a grid, whose error falls as n^−1/2−1/d.

    As many cells as points, along as many axes as these allow; the number of points is not
    doubled, since cells are cut anew.
    """

    def _waits(self, tolerance: Tolerance) -> bool:
        return False

    def _points(self, seed: int, cube: Cube, log: int) -> Points:
        return Strata(seed, self.replicates, cube.dim, log, cube.device)

    _name = "stratified Monte Carlo"

"""Smooth functions of many variables: a sparse interpolant, and quasi-random points for the rest.

    E[f] = E[If] + E[f − If]

The first term is known, the second has a small variance: the interpolant is a control variate, so
that the bar holds whatever f is like. Owen (2013), Monte Carlo theory, methods and examples,
section 8.9; for the interpolant see `interpolant`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from probcalc._random import child, draw_seed
from probcalc.integration.cells import Box, quantile_of
from probcalc.integration.expectation import Expectation
from probcalc.integration.interpolant import Nodes, Values, grown
from probcalc.integration.monte_carlo import judged
from probcalc.integration.orthogonal import LEGENDRE
from probcalc.integration.problem import DEFAULT_RTOL, Problem, Solved, Tolerance
from probcalc.integration.replicates import Averages, Replicates
from probcalc.integration.running import Running, tail_length
from probcalc.integration.sobol import ScrambledSobol
from probcalc.integration.standard import as_standard
from probcalc.result import half_width

MOST_COORDINATES = 100
_MAX_EVALS = 2**17
_PILOT = 2**12  # draws that tell whether interpolation helps
_REPLICATES, _FIRST = 16, 8  # scrambles, and binary logarithm of the points of each at first
_LEAST = 2.0**-54  # in place of a uniform number of zero
_HELD = 2**22  # values at nodes that are held at once
_FEWER = 8  # times, where many nodes leave a heavy tail
_CHOICES = 5  # halvings of the nodes, less one, that are tried on the pilot
_HEAVY = 0.7  # shape of a tail for which fewer nodes are taken
_WORTH = 0.1  # of the squares, that an interpolant may leave
_TOGETHER = 2**21  # values of polynomials that are held at once
_ROUNDING = 4.0  # units in the last place of the terms' sizes
_EXACT = 64.0  # times that, below which a rest is nothing but rounding


@dataclass(frozen=True)
class SparseGrid:
    """Sparse interpolation of smooth functions of many variables, the rest by scrambled points.

    The bar is that of independent randomisations of what the interpolant misses, and holds at the
    confidence asked for. Where interpolation does not help, it is that of `QuasiMonteCarlo`.

    Args:
        num_nodes: The most nodes of the interpolant.
    """

    num_nodes: int = 1_000

    def __post_init__(self) -> None:
        """Check the number."""
        if self.num_nodes < 1:
            raise ValueError(f"`num_nodes` must be at least 1, got {self.num_nodes}.")

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation under an image of independent classical weights.

        Raises:
            NotImplementedError: If the distribution is none, or has more than 100 coordinates.
        """
        problem, axes = as_standard(posed, still=True)
        weights = tuple(axis.weight() for axis in axes)
        return self.solve(replace(problem, weights=weights), tolerance)

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of boxes, all with the same nodes and points.

        Raises:
            NotImplementedError: If there are more than 100 coordinates, or limits to be
                differentiated.
        """
        (dim,) = problem.event
        if dim > MOST_COORDINATES:
            raise NotImplementedError(
                f"sparse grids are for at most {MOST_COORDINATES} coordinates, got {dim}: use "
                "`MonteCarlo()`."
            )
        if problem.lower.requires_grad or problem.upper.requires_grad:
            raise NotImplementedError(
                "`SparseGrid` has no derivatives in the limits: use `Cubature()`."
            )
        left, num = tolerance.max_evals or _MAX_EVALS, self.num_nodes
        solved = _Split(problem, tolerance, left // 2).solved(num)
        while num > 1 and bool((solved.status != 0).any()):
            # fewer nodes leave a lighter tail, if a larger rest
            left, num = left - left // 2, num // _FEWER
            again = _Split(problem, tolerance, left if num <= 1 else left // 2).solved(max(num, 1))
            better = (solved.status != 0) & (again.status == 0)
            solved = solved.or_better(again, better, tolerance.confidence)
        return solved


class _Split:
    """A problem as one function of points, with a column for every element and output."""

    def __init__(self, problem: Problem, tolerance: Tolerance, most: int) -> None:
        self.problem, self.tolerance, self.most = problem, tolerance, most
        self.weights = problem.weights or (LEGENDRE,) * problem.event[0]
        self.box = Box(problem)
        self.device = problem.lower.device
        self.small = max(2, min(_PILOT, self.most // 8))
        self.width = half_width(torch.ones(()), None, tolerance.confidence).item()

    def solved(self, num_nodes: int) -> Solved:
        """Nodes are found without derivatives, then both terms with them."""
        seed = draw_seed(self.tolerance.generator)
        with torch.no_grad():
            nodes = self._nodes(num_nodes)
            f = self.at(nodes.points)
            kept, size = self._kept(nodes, nodes.coefficients(f), seed)
        known, rest = torch.zeros_like(f[0]), self.at
        if bool(kept.any()):
            alpha = torch.where(kept, nodes.coefficients(self.at(nodes.points)), 0.0)
            known, rest = nodes.mean.to(alpha.dtype) @ alpha, partial(self.rest, nodes, alpha)
            size = size + nodes.norm @ (alpha.detach().abs() + f.abs())
        spent = len(nodes.levels) + self.small
        found = self._averaged(known, rest, seed, self.most - spent)
        return self._judged(known + found.value, found, size, spent)

    def _averaged(self, known: Tensor, rest: Values, seed: int, most: int) -> Averages:
        """What the interpolant misses."""
        last = max(1, int(math.log2(max(2, most // _REPLICATES))))
        points = ScrambledSobol.of(seed, _REPLICATES, len(self.weights), self.device, last)
        return Replicates(lambda u: rest(self._place(u)), points, _REPLICATES).averaged(
            min(_FIRST, last),
            last,
            self.tolerance.confidence,
            lambda value, bar: (bar <= self._allowed(known.detach() + value)).all(),
        )

    def _kept(
        self, nodes: Nodes, alpha: Inexact[Tensor, "k c"], seed: int
    ) -> tuple[Bool[Tensor, "k c"], Float[Tensor, " c"]]:
        """Which nodes to keep, and the mean of |f|.

        All or the first ones, where a high degree would leave a heavy tail, however small; none,
        where interpolation does not help.
        """
        options = {"generator": child(seed, 1, self.device), "device": self.device}
        u = torch.rand(self.small, len(self.weights), dtype=torch.float64, **options)
        z = self._place(u.clamp(min=_LEAST))
        f, h = self.at(z), nodes.polynomials(z).to(alpha.dtype)
        top = tail_length(self.small) + 1
        plain = Running.of(f, top)
        kept, least = torch.zeros_like(alpha, dtype=torch.bool), _WORTH * plain.squares
        k = len(alpha)
        for num in sorted({k >> i for i in range(_CHOICES)} - {0}):
            terms = Running.of(f - h[:, :num] @ alpha[:num], top)
            better = (terms.squares < least) & (terms.khat() < _HEAVY)
            mine = torch.arange(k, device=self.device)[:, None] < num
            kept, least = (
                torch.where(better, mine, kept),
                torch.where(better, terms.squares, least),
            )
        return kept, plain.size / self.small

    def at(self, z: Float[Tensor, "n d"]) -> Inexact[Tensor, "n c"]:
        """Values at points of the measure."""
        every = torch.arange(self.problem.size, device=self.device)
        return self.box.measured(z[:, None].expand(-1, len(every), -1), every).flatten(1)

    def rest(
        self, nodes: Nodes, alpha: Inexact[Tensor, "k c"], u: Float[Tensor, "n d"]
    ) -> Inexact[Tensor, "n c"]:
        """What the interpolant misses at a draw."""
        parts = u.split(max(1, _TOGETHER // len(nodes.levels)))
        foreseen = [nodes.polynomials(some).to(alpha.dtype) @ alpha for some in parts]
        return self.at(u) - torch.cat(foreseen)

    def _nodes(self, most: int) -> Nodes:
        """As many as leave so little that few draws tell the rest."""
        first = Nodes(self.weights, np.zeros((1, len(self.weights)), dtype=int), self.device)
        columns = self.at(first.points).numel()
        room = max(1, min(most, self.most // 4, _HELD // max(1, columns)))
        few = self.width / _PILOT**0.5

        def unfinished(mean: Tensor, rest: Tensor) -> bool:
            return bool((few * rest > self._allowed(mean)).any())

        return grown(self.at, self.weights, room, unfinished, self.device)

    def _allowed(self, value: Tensor) -> Tensor:
        rtol = (self.tolerance.rtol or 0.0) if self.tolerance.asked else DEFAULT_RTOL
        return (rtol * value.abs()).clamp(min=self.tolerance.atol or 0.0)

    def _place(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Points of the measure."""
        columns = zip(self.weights, u.unbind(dim=1), strict=True)
        return torch.stack([quantile_of(weight, x) for weight, x in columns], dim=1)

    def _judged(self, value: Tensor, found: Averages, size: Tensor, spent: int) -> Solved:
        shape = (self.problem.size, *self.box.shape)
        terms, bar, std_error = found.terms.shaped(shape), found.bar, found.std_error
        rounding = (_ROUNDING + len(self.weights)) * self.problem.rounding * size.reshape(shape)
        # what is left where the interpolant is exact
        exact = (terms.top[0] <= _EXACT * rounding) & (size.reshape(shape) > 0)
        status = judged(terms, torch.zeros_like(exact), exact)
        bar = bar.reshape(shape) + rounding
        wide = [-1, *[1] * (len(shape) - 1)]
        error = torch.where((status != 0).reshape(wide), math.inf, bar)
        value = self.problem.sign.reshape(wide) * value.reshape(shape)
        count = torch.full_like(status, spent + terms.num)
        name = f"sparse grid, the rest by {_REPLICATES} scrambles"
        dof = float(_REPLICATES - 1)
        return Solved(value, error, status, count, name, std_error.reshape(shape), dof)

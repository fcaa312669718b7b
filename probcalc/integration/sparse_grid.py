"""Smooth functions of many variables: a sparse interpolant, and draws of what it misses.

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
from torch import distributions as td

from probcalc._random import draw_seed
from probcalc.integration.cells import Box, quantile_of
from probcalc.integration.expectation import Expectation
from probcalc.integration.interpolant import Nodes, Values, grown
from probcalc.integration.monte_carlo import Draws, judged
from probcalc.integration.orthogonal import HERMITE, LEGENDRE
from probcalc.integration.problem import DEFAULT_RTOL, Problem, Solved, Tolerance
from probcalc.integration.running import Running, tail_length
from probcalc.integration.standard import as_standard
from probcalc.result import half_width

_MOST_AXES = 100
_MAX_EVALS = 2**17
_PILOT, _FEWEST = 2**12, 2**12  # draws that tell how many are needed, and that are always taken
_AMPLE = 1.3  # times the draws that the pilot asks for
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
    """Sparse interpolation of smooth functions of many variables, the rest by Monte Carlo.

    The bar is that of random draws of what the interpolant misses and holds at the confidence
    asked for. Where interpolation does not help, it is that of plain Monte Carlo.

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
        """Integrate a batch of boxes, all with the same nodes and draws.

        Raises:
            NotImplementedError: If there are more than 100 coordinates, or limits to be
                differentiated.
        """
        (dim,) = problem.event
        if dim > _MOST_AXES:
            raise NotImplementedError(
                f"sparse grids are for at most {_MOST_AXES} coordinates, got {dim}: use "
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
        self.normal = set(self.weights) == {HERMITE}
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
            kept, variance, size = self._kept(nodes, nodes.coefficients(f), seed + 1)
        known, rest = torch.zeros_like(f[0]), self.at
        if bool(kept.any()):
            alpha = torch.where(kept, nodes.coefficients(self.at(nodes.points)), 0.0)
            known, rest = nodes.mean.to(alpha.dtype) @ alpha, partial(self.rest, nodes, alpha)
            size = size + nodes.norm @ (alpha.detach().abs() + f.abs())
        spent = len(nodes.levels) + self.small
        n = self._needed(known, variance, self.most - spent)
        value, terms = self._draws(rest, seed).averaged(n)
        return self._judged(known + value[0], terms, size, spent + n)

    def _kept(
        self, nodes: Nodes, alpha: Inexact[Tensor, "k c"], seed: int
    ) -> tuple[Bool[Tensor, "k c"], Float[Tensor, " c"], Float[Tensor, " c"]]:
        """Which nodes to keep, the variance that they leave, and the mean of |f|.

        All or the first ones, where a high degree would leave a heavy tail, however small; none,
        where interpolation does not help.
        """
        draws = self._draws(self.at, seed)
        z = self._place(draws.drawn(draws.posed.dist, 0, self.small))
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
        squares = torch.where(kept.any(dim=0), least, plain.squares)
        return kept, squares / (self.small - 1), plain.size / self.small

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
        few = self.width / _FEWEST**0.5

        def unfinished(mean: Tensor, rest: Tensor) -> bool:
            return bool((few * rest > self._allowed(mean)).any())

        return grown(self.at, self.weights, room, unfinished, self.device)

    def _allowed(self, value: Tensor) -> Tensor:
        rtol = (self.tolerance.rtol or 0.0) if self.tolerance.asked else DEFAULT_RTOL
        return (rtol * value.abs()).clamp(min=self.tolerance.atol or 0.0)

    def _needed(self, value: Tensor, variance: Tensor, most: int) -> int:
        """Draws until the bar is as small as allowed."""
        allowed = self._allowed(value.detach())
        wanted = (_AMPLE * self.width**2 * variance / allowed**2).nan_to_num(0.0)
        return max(2, min(most, max(_FEWEST, math.ceil(min(wanted.max().item(), most)))))

    def _draws(self, fn: Values, seed: int) -> Draws:
        """Of the measure, common to all columns."""
        zero = torch.zeros(len(self.weights), dtype=torch.float64, device=self.device)
        base = td.Normal(zero, 1.0) if self.normal else td.Uniform(zero, 1.0)
        placed = lambda u: fn(self._place(u))  # noqa: E731
        return Draws(Expectation(placed, (), td.Independent(base, 1), None, zero.dtype), seed)

    def _place(self, u: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Points of the measure."""
        if self.normal:
            return u
        columns = zip(self.weights, u.unbind(dim=1), strict=True)
        return torch.stack([quantile_of(weight, x) for weight, x in columns], dim=1)

    def _judged(self, value: Tensor, rest: Running, size: Tensor, spent: int) -> Solved:
        shape = (self.problem.size, *self.box.shape)
        rest = rest.shaped(shape)
        rounding = (_ROUNDING + len(self.weights)) * self.problem.rounding * size.reshape(shape)
        # what is left where the interpolant is exact
        exact = (rest.top[0] <= _EXACT * rounding) & (size.reshape(shape) > 0)
        status = judged(rest, torch.zeros_like(exact), exact)
        bar = self.width * rest.std_error + rounding
        error = torch.where((status != 0).reshape(-1, *[1] * (bar.ndim - 1)), math.inf, bar)
        sign = self.problem.sign.reshape(-1, *[1] * (bar.ndim - 1))
        count = torch.full_like(status, spent)
        name = "sparse grid, the rest by Monte Carlo"
        value = sign * value.reshape(shape)
        return Solved(value, error, status, count, name, rest.std_error, math.inf)

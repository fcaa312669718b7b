"""Integrals over boxes: a product of Gauss rules where that converges, else adaptive cubature.

Smooth integrands in few dimensions end after two or three products of Gauss–Legendre rules. The
others are integrated by Genz and Malik's rule over regions that are halved, along the
axis of the largest fourth difference, breadth first: Genz & Malik (1980); Arumugam, Sakiotis &
Paterno (2021), PAGANI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from probcalc.integration.box_rules import genz_malik
from probcalc.integration.cells import NUDGE, POINTS, Box, Cells, rule_of, whole
from probcalc.integration.expectation import Expectation
from probcalc.integration.goal import Goal
from probcalc.integration.grids import code_of, orders_of
from probcalc.integration.measure import FAINT, Sums, grouped
from probcalc.integration.orthogonal import LEGENDRE
from probcalc.integration.problem import DEFAULT_RTOL, Problem, Solved, Tolerance
from probcalc.integration.products import Outcome, products
from probcalc.integration.quadrature import GaussKronrod
from probcalc.integration.quick_box import MAX_EVALS, METHOD
from probcalc.integration.regions import regions
from probcalc.integration.replay import differentiable
from probcalc.integration.standard import as_standard
from probcalc.status import Status

MOST_AXES = 7  # for which products and regions are the best that there is


@dataclass(frozen=True)
class Cubature:
    """Adaptive cubature of boxes in up to about ten dimensions.

    Expectations are integrals over the independent coordinates of which the draw is an image.
    """

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation under an image of two or more independent classical weights.

        Raises:
            NotImplementedError: If the distribution is none, or has too many coordinates.
        """
        problem, axes = as_standard(posed, still=True)
        if not 2 <= len(axes) <= MOST_AXES:
            raise NotImplementedError(
                f"cubature is for 2 to {MOST_AXES} independent coordinates, got {len(axes)}."
            )
        weights = tuple(axis.weight() for axis in axes)
        return self.solve(replace(problem, weights=weights), tolerance)

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of boxes."""
        if problem.event == (1,):
            return _on_the_line(problem, tolerance)

        def find(args: tuple[Any, ...]) -> BoxMesh:
            return _found(replace(problem, args=args), tolerance)

        value, mesh = differentiable(problem, find)
        empty = (mesh.total.size <= FAINT).all(dim=1)
        proper = (problem.lower < problem.upper).all(dim=1)
        status = mesh.status | torch.where(empty & proper, Status.UNRESOLVED_MASS, Status.OK)
        undefined = (mesh.total.error.isinf() | ~mesh.total.value.isfinite()).any(dim=1)
        status = status | torch.where(undefined, Status.NON_FINITE, Status.OK)
        bar = mesh.total.error + mesh.total.noise
        error = torch.where((status != 0)[:, None], math.inf, bar)
        shape = [problem.size, *mesh.shape]
        signed = (value * problem.sign[:, None]).reshape(shape)
        return Solved(signed, error.reshape(shape), status, mesh.spent, METHOD)


@dataclass(frozen=True, eq=False)
class BoxMesh:
    """Cells on which the integrals stand."""

    total: Sums
    status: Int[Tensor, " b"]
    spent: Int[Tensor, " b"]
    cells: Cells
    found: Inexact[Tensor, "k o"]
    shape: tuple[int, ...]

    def assembled(self, found: Inexact[Tensor, "k o"]) -> Inexact[Tensor, "b o"]:
        """Integrals from values on the cells."""
        if found is self.found:
            return self.total.value
        return grouped(found, self.cells.elem, len(self.status))

    def chunks(self) -> tuple[Int[Tensor, " k"], ...]:
        """Cells of one rule that are evaluated together."""
        parts = []
        for order in self.cells.order.unique().tolist():
            mine = (self.cells.order == order).nonzero()[:, 0]
            dim = self.cells.centre.shape[1]
            if order:
                count = math.prod(orders_of(order, dim))
            else:
                count = len(genz_malik(dim, mine.device).points)
            parts += mine.split(max(1, POINTS // count))
        return tuple(parts)

    def values(self, problem: Problem, index: Int[Tensor, " k"]) -> Inexact[Tensor, "k o"]:
        """The rule on some cells, the integrand evaluated anew."""
        cells = self.cells[index]
        box, order = Box(problem), int(cells.order[0])
        rule = rule_of(order, box, cells.centre)
        only = replace(rule, points=rule.points[: rule.weights.shape[1]])
        if order:
            f = _finite_at(box, only.points, cells.elem)
        else:
            f = box.on(cells, only)[0]
        return torch.einsum("n,nko->ko", rule.weights[0].to(f.dtype), f)

    def beyond(self, problem: Problem) -> Inexact[Tensor, "b o"] | None:
        """Zero, with the derivatives in the limits: integrals over faces."""
        terms = []
        for limit, sign in ((problem.upper, 1.0), (problem.lower, -1.0)):
            if limit.requires_grad:
                faces = (_face(problem, limit, axis) for axis in range(limit.shape[1]))
                terms += [sign * face for face in faces]
        return sum(terms[1:], terms[0]) if terms else None


def _found(problem: Problem, tolerance: Tolerance) -> BoxMesh:
    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or MAX_EVALS)
    box, b, dim = Box(problem), problem.size, problem.event[0]
    with torch.no_grad():
        proper = (problem.lower < problem.upper).all(dim=1)
        every = torch.arange(b, device=proper.device)
        status = torch.zeros_like(every)
        outcome = _products(box, every if bool(proper.all()) else every[proper], dim, goal)
        parts = [(whole(one.elem, dim, code_of(one.orders)), one.sums) for one in outcome.done]
        spent = torch.zeros_like(every)
        for elem, count in outcome.spent:
            spent[elem] += count
        if len(outcome.left):
            cells, sums, spent, status = regions(box, outcome.left, dim, goal, spent, status)
            parts.append((cells, sums))
        if not parts:
            parts = [_nothing(box, every[:0], dim)]
        cells, sums = Cells.joined([c for c, _ in parts]), Sums.joined([s for _, s in parts])
        total = sums.grouped(cells.elem, b)
    return BoxMesh(total, status, spent, cells, sums.value, box.shape)


def _nothing(box: Box, none: Tensor, dim: int) -> tuple[Cells, Sums]:
    """Boxes of no width only: the integrand is asked for the shape of its values."""
    middle = torch.full((1, 0, dim), 0.5, dtype=torch.float64, device=none.device)
    value = box.at(middle, none)[0]
    size = value.abs()
    return whole(none, dim, 0), Sums(value, size, size, size)


def _products(box: Box, elem: Tensor, dim: int, goal: Goal) -> Outcome:
    """Products of Gauss rules, where they converge."""
    weights = box.weights or (LEGENDRE,) * dim
    return products(partial(_finite_at, box), weights, elem, goal, box.rounding)


def _finite_at(box: Box, points: Float[Tensor, "n d"], elem: Int[Tensor, " k"]) -> Tensor:
    """Values at points of the measure, stepped off where they are not finite."""
    z = points[:, None].expand(-1, len(elem), -1)
    f = box.measured(z, elem)
    good = f.isfinite()
    if bool(good.all()):
        return f
    middle = 0.5 if box.weights is None else 0.0
    return torch.where(
        good, f, box.measured(torch.lerp(z, torch.full_like(z, middle), NUDGE), elem)
    )


def _on_the_line(problem: Problem, tolerance: Tolerance) -> Solved:
    """Boxes of one dimension are intervals."""
    fn = problem.fn

    def flat(x: Tensor, *args: Any) -> Tensor:
        return fn(x[..., None], *args)

    intervals = replace(problem, fn=flat, lower=problem.lower[:, 0], upper=problem.upper[:, 0])
    return GaussKronrod().solve(intervals, tolerance)


def _face(problem: Problem, limit: Tensor, axis: int) -> Inexact[Tensor, "b o"]:
    """Zero, with the integral over the face at this limit as its derivative in it.

    Two Gauss points in the empty layer between the limit and itself, as in one dimension.
    """
    here = limit[:, axis].detach()
    finite = here.isfinite()
    step = torch.where(finite, limit[:, axis] - here, 0.0)
    place = torch.where(finite, here, 0.0)

    def sides(limits: Tensor) -> Tensor:
        # a mixed second derivative comes from one of its two faces
        return torch.cat([limits[:, :axis], limits[:, axis + 1 :].detach()], dim=1)

    values = []
    for node in (0.5 - 12**-0.5, 0.5 + 12**-0.5):
        face = _faced(problem, place + step * node, axis)
        face = replace(face, lower=sides(problem.lower), upper=sides(problem.upper))
        solved = Cubature().solve(face, Tolerance())
        values.append(solved.value.reshape(problem.size, -1))
    layer = step[:, None] * torch.stack(values).mean(dim=0)
    return torch.where(finite[:, None], layer, 0.0)


def _faced(problem: Problem, coordinate: Float[Tensor, " b"], axis: int) -> Problem:
    """The problem with one coordinate held."""
    fn, gathered = problem.fn, bool(problem.tensors) or not problem.batch
    shaped = coordinate.reshape(problem.batch)

    def held(y: Tensor, *args: Any) -> Tensor:
        own, rest = (args[-1], args[:-1]) if gathered else (shaped, args)
        column = own.to(y.dtype).expand(y.shape[:-1])[..., None]
        return fn(torch.cat([y[..., :axis], column, y[..., axis:]], dim=-1), *rest)

    if gathered:
        own = shaped if not problem.batch else coordinate
        return replace(problem, fn=held, args=(*problem.args, own))
    return replace(problem, fn=held)

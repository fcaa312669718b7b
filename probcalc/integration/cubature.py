"""Integrals over boxes: a product of Gauss rules while that converges, else adaptive cubature.

Smooth integrands in few dimensions end after a few products of Gauss–Legendre rules whose order
grows. The others are integrated by Genz and Malik's rule over regions that are halved, along the
axis of the largest fourth difference, breadth first: Genz & Malik (1980); Arumugam, Sakiotis &
Paterno (2021), PAGANI.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from probcalc.integration.adaptive import Goal
from probcalc.integration.box_rules import BoxRule, tensor_gauss
from probcalc.integration.cells import POINTS, Box, Cells, applied_to, rule_of, whole
from probcalc.integration.measure import FAINT, Sums, grouped
from probcalc.integration.problem import DEFAULT_RTOL, Problem, Solved, Tolerance
from probcalc.integration.quadrature import GaussKronrod
from probcalc.integration.regions import regions
from probcalc.integration.replay import differentiable
from probcalc.status import Status

_MAX_EVALS = 2**20
_EPS = torch.finfo(torch.float64).eps
# points an axis of the products, by dimension; more dimensions go straight to Genz and Malik
_ORDERS = {
    1: (10, 15, 22, 33, 50),
    2: (8, 11, 15, 21, 30, 44),
    3: (7, 9, 12, 16, 22),
    4: (6, 8, 10, 13, 17, 22),
    5: (5, 7, 9, 12, 14),
    6: (4, 6),
}
_CONVERGING = 0.03  # of the change before the last one, as an error
_FAR_BELOW = 1e-3  # of the tolerance: a change this small needs no second one
_STRIDES = 2


@dataclass(frozen=True)
class Cubature:
    """Adaptive cubature of boxes in up to about ten dimensions."""

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
        return Solved(signed, error.reshape(shape), status, mesh.spent, "adaptive cubature")


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
            rule = rule_of(order, self.cells.centre)
            parts += mine.split(max(1, POINTS // len(rule.points)))
        return tuple(parts)

    def values(self, problem: Problem, index: Int[Tensor, " k"]) -> Inexact[Tensor, "k o"]:
        """The rule on some cells, the integrand evaluated anew."""
        cells = self.cells[index]
        rule = rule_of(int(cells.order[0]), cells.centre)
        p = rule.weights.shape[1]
        only = replace(rule, points=rule.points[:p])
        f = Box(problem).on(cells, only)[0]
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
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or _MAX_EVALS)
    box, b, dim = Box(problem), problem.size, problem.event[0]
    with torch.no_grad():
        proper = (problem.lower < problem.upper).all(dim=1)
        left = torch.arange(b, device=proper.device)
        done, left, spent = _products(box, left, dim, goal, proper)
        parts = [done] if len(done[0].elem) else []
        status = torch.zeros(b, dtype=torch.long, device=proper.device)
        if len(left):
            cells, sums, spent, status = regions(box, left, dim, goal, spent, status)
            parts.append((cells, sums))
        cells = Cells.joined([c for c, _ in parts])
        sums = Sums.joined([s for _, s in parts])
        total = sums.grouped(cells.elem, b)
    return BoxMesh(total, status, spent, cells, sums.value, box.shape)


def _products(
    box: Box, left: Tensor, dim: int, goal: Goal, proper: Bool[Tensor, " b"]
) -> tuple[tuple[Cells, Sums], Tensor, Tensor]:
    """Products of Gauss rules of growing order: those that converged, and who is left."""
    spent = torch.zeros_like(proper, dtype=torch.long)
    finished: list[tuple[Cells, Sums]] = []
    before = last = None
    for order in _ORDERS.get(dim, ()):
        rule = tensor_gauss(order, dim, left.device)
        cells = whole(left, dim, order)
        value, size, bad = _product(box, cells, rule)
        spent[left] += len(rule.points)
        if before is None:
            before, last = value, size
            continue
        change = (value - before).abs()
        noise = box.rounding * size
        allowed = goal.tolerance(Sums(value, change, size, noise))
        # one small change may be luck, unless it is far too small for that
        lucky = change > _FAR_BELOW * allowed
        error = torch.where(lucky, change.maximum(_CONVERGING * last), change)
        sums = Sums(value, torch.where(bad, math.inf, error), size, noise)
        met = (error <= allowed) & (size > FAINT) & ~bad
        met = met.all(dim=1) | ~proper[left]
        finished.append((cells[met], sums[met]))
        left, before, last = left[~met], value[~met], change[~met]
        if not len(left) or bool((spent[left] * _STRIDES > goal.max_evals).all()):
            break
    joined = [Cells.joined([c for c, _ in finished]), Sums.joined([s for _, s in finished])]
    return tuple(joined) if finished else _none(left, dim), left, spent


def _none(left: Tensor, dim: int) -> tuple[Cells, Sums]:
    nothing = torch.zeros(0, 1, dtype=torch.float64, device=left.device)
    return whole(left[:0], dim, 0), Sums(nothing, nothing, nothing, nothing)


def _product(box: Box, cells: Cells, rule: BoxRule) -> tuple[Tensor, Tensor, Tensor]:
    parts = []
    every = torch.arange(len(cells.elem), device=cells.elem.device)
    for index in every.split(max(1, POINTS // len(rule.points))):
        f, num_bad = box.on(cells[index], rule)
        w = rule.weights[0]
        parts.append((applied_to(w, f), applied_to(w, f.abs()), num_bad > 0))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


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

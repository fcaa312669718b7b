"""Adaptive Gauss–Kronrod quadrature in one dimension, as a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor

from probcalc.integration.adaptive import Swept, adaptive
from probcalc.integration.density import as_integral, beyond
from probcalc.integration.expectation import Expectation
from probcalc.integration.goal import Goal
from probcalc.integration.measure import Measure
from probcalc.integration.panels import ends_of
from probcalc.integration.problem import DEFAULT_RTOL, Problem, Solved, Tolerance
from probcalc.integration.quick import METHOD
from probcalc.integration.replay import differentiable
from probcalc.integration.rules import gauss_kronrod
from probcalc.status import Status

_MAX_EVALS = 2**17
_STEP_INSIDE = 1e-7  # from a limit at which the integrand is not finite
_POINTS = 2**16  # evaluated together: fits a core's cache
_POINTS_OF_FULL_BATCHES = 2**22  # where every call sees the whole batch


@dataclass(frozen=True)
class GaussKronrod:
    """Adaptive 7–15-point Gauss–Kronrod rule with extrapolation at the ends of intervals.

    Singular ends (algebraic, logarithmic, at infinity) are extrapolated by Levin's
    u-transformation. Singularities inside converge linearly: name them in `breaks`.
    """

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Integrate the function times the density.

        Raises:
            ValueError: If draws are not numbers, or the distribution has no density.
        """
        problem = as_integral(posed, over_logarithm=True)
        solved = self.solve(problem, tolerance)
        added = beyond(posed, problem)
        return solved if added is None else replace(solved, error=solved.error + 2 * added)

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate a batch of intervals."""

        def find(args: tuple[Any, ...]) -> PanelMesh:
            return _mesh(replace(problem, args=args), tolerance)

        value, mesh = differentiable(problem, find)
        swept = mesh.swept
        empty = (swept.sums.size == 0).all(dim=1) & (problem.lower < problem.upper)
        status = swept.status | torch.where(empty, Status.UNRESOLVED_MASS, Status.OK)
        error = torch.where((status != 0)[:, None], math.inf, swept.sums.error + swept.sums.noise)
        return Solved(
            (value * problem.sign[:, None]).reshape(problem.size, *mesh.shape),
            error.reshape(problem.size, *mesh.shape),
            status,
            swept.num_evals,
            METHOD,
        )


@dataclass(frozen=True, eq=False)
class PanelMesh:
    """Where an integral was evaluated, and what came of it.

    Args:
        swept: Panels and sums.
        shape: Of one value of the integrand.
        together: Points that are evaluated together.
    """

    swept: Swept
    shape: tuple[int, ...]
    together: int

    @property
    def found(self) -> Inexact[Tensor, "k o"]:
        """The rule's values on the panels."""
        return self.swept.work.sums.value

    def assembled(self, found: Inexact[Tensor, "k o"]) -> Inexact[Tensor, "b o"]:
        """Integrals from values on the panels, differentiably."""
        return self.swept.sums.value if found is self.found else self.swept.assembled(found)

    def chunks(self) -> tuple[Int[Tensor, " k"], ...]:
        """Panels in groups that are evaluated together, without those where all is zero."""
        alive = (self.swept.work.sums.size != 0).any(dim=1).nonzero()[:, 0]
        rule = gauss_kronrod(alive.device, 1)
        return alive.split(max(1, self.together // rule.weights.shape[1]))

    def values(self, problem: Problem, index: Int[Tensor, " k"]) -> Inexact[Tensor, "k o"]:
        """The rule on some of the panels, the integrand evaluated anew."""
        panels, ends = self.swept.work.panels[index], self.swept.ends
        rule = gauss_kronrod(panels.lo.device, 1)
        weights = rule.weights[0]
        width = panels.hi - panels.lo
        u = torch.addcmul(panels.lo, width, rule.nodes[: len(weights), None])
        x, slope = ends.points(u, panels.end)
        integrand, elem = problem.integrand(), ends.elem[panels.end]
        f = integrand(x, elem)
        bad = ~f.detach().isfinite()
        if bool(bad.any()):
            near = ends.points_beside(u, panels.end)
            f = integrand(torch.where(bad.reshape([*x.shape, -1]).any(dim=2), near, x), elem)
        f = f.reshape(*f.shape[:2], math.prod(self.shape)) * (slope * width)[..., None]
        return torch.einsum("n,nko->ko", weights.to(f.dtype), f)

    def beyond(self, problem: Problem) -> Inexact[Tensor, "b o"] | None:
        """Zero, with the derivatives in the limits: Leibniz's rule."""
        terms = []
        if problem.upper.requires_grad:
            terms.append(_beyond(problem, problem.upper, problem.lower, self.shape))
        if problem.lower.requires_grad:
            terms.append(-_beyond(problem, problem.lower, problem.upper, self.shape))
        return sum(terms[1:], terms[0]) if terms else None


def _mesh(problem: Problem, tolerance: Tolerance) -> PanelMesh:
    integrand = problem.integrand()
    shape: list[tuple[int, ...]] = [()]

    def values(x: Tensor, elem: Tensor) -> Tensor:
        f = integrand(x, elem)
        shape[0] = tuple(f.shape[2:])
        return f.reshape(*f.shape[:2], math.prod(shape[0]))

    together = _POINTS_OF_FULL_BATCHES if problem.padded else _POINTS
    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or _MAX_EVALS)
    with torch.no_grad():
        measure = Measure(values, ends_of(_edges(problem)), problem.rounding, together)
        swept = adaptive(measure, problem.size, goal)
    return PanelMesh(swept, shape[0], together)


def _edges(problem: Problem) -> Float[Tensor, "b s"]:
    """Limits, breaks, and zero where an interval is infinite, ascending."""
    lower, upper = problem.lower.detach()[:, None], problem.upper.detach()[:, None]
    inner, infinite = problem.breaks, lower.isinf() | upper.isinf()
    if bool(infinite.any()):
        inner = torch.cat([inner, torch.where(infinite, 0.0, lower)], dim=1)
    if not inner.shape[1]:
        return torch.cat([lower, upper], dim=1)
    inner = inner.clamp(lower, upper).sort(dim=1).values
    return torch.cat([lower, inner, upper], dim=1)


def _beyond(
    problem: Problem, limit: Tensor, other: Tensor, shape: tuple[int, ...]
) -> Inexact[Tensor, "b o"]:
    """Zero, with the derivatives of the integral from where the limit is to where it may go.

    Two Gauss points in that empty interval give all derivatives to the fourth order, mixed ones
    with the arguments included.
    """
    every, o = problem.integrand(), math.prod(shape)
    finite = limit.detach().isfinite()
    elem = finite.nonzero()[:, 0]  # an infinite limit has nowhere to go
    here, other = limit[elem].detach(), other[elem].detach()
    step = limit[elem] - here
    nodes = limit.new_tensor([[0.5 - 12**-0.5], [0.5 + 12**-0.5]])
    with torch.no_grad():
        at_limit = every(here[None], elem)[0].reshape(len(elem), o)
        # infinite, or on the far side of a support that is open there
        bad = (~at_limit.isfinite() | (at_limit == 0)).all(dim=1)
        inwards = (other - here).clamp(-1.0, 1.0)
        here = torch.where(bad, here + _STEP_INSIDE * inwards, here)
    f = every(here + step * nodes, elem).reshape(2, len(elem), o)
    nothing = torch.zeros(len(limit), o, dtype=f.dtype, device=limit.device)
    return nothing.index_copy(0, elem, step[:, None] * f.mean(dim=0))

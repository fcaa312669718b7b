"""Which method an expectation gets when the caller names none, and why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

from probcalc.distributions.support import support_of
from probcalc.integration.closed_form import ClosedForm, Moment
from probcalc.integration.cubature import MOST_AXES, Cubature
from probcalc.integration.enumeration import Enumeration
from probcalc.integration.expectation import Expectation
from probcalc.integration.monte_carlo import MonteCarlo
from probcalc.integration.problem import Problem, Solved, Tolerance
from probcalc.integration.quadrature import GaussKronrod
from probcalc.integration.sparse_grid import SparseGrid
from probcalc.integration.vegas import Vegas

_GOOD_ENOUGH = 1e-4  # relative error that the next method need not try to undercut


@runtime_checkable
class ExpectationMethod(Protocol):
    """What `expect` asks of a method."""

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation of every element of the batch."""
        ...


@runtime_checkable
class IntegrationMethod(Protocol):
    """What `integrate` asks of a method."""

    def solve(self, problem: Problem, tolerance: Tolerance) -> Solved:
        """Integrate every element of the problem."""
        ...


Method = TypeVar("Method")


@dataclass(frozen=True, eq=False)
class Rung(Generic[Method]):
    """A method with the reason to try it.

    Args:
        method: The method.
        reason: For the result's diagnostics.
        rough: Whether the next may do better where its bar is wide.
    """

    method: Method
    reason: str
    rough: bool = False


def climbed(
    rungs: list[Rung[Method]], solve: Callable[[Method], Solved], tolerance: Tolerance
) -> Solved:
    """The first method that knows the problem and is sharp; of rough ones the smaller bars."""
    best: Solved | None = None
    for rung in rungs:
        try:
            solved = replace(solve(rung.method), reason=rung.reason)
        except NotImplementedError:  # a problem that it does not know
            continue
        best = solved if best is None else _sharper(best, solved, tolerance.confidence)
        if not rung.rough or _sharp(best, tolerance):
            return best
    if best is None:
        raise NotImplementedError("no method knows this problem.")
    return best


def _sharp(solved: Solved, tolerance: Tolerance) -> bool:
    """Whether every element stands, with the bar asked for or one that is hard to undercut."""
    size = solved.value.detach().abs()
    small = solved.error <= _GOOD_ENOUGH * size
    if tolerance.asked:
        small = small | ~tolerance.missed(size, solved.error)
    return bool(((solved.status == 0) & small.reshape(len(small), -1).all(dim=1)).all())


def _sharper(a: Solved, b: Solved, confidence: float) -> Solved:
    """Element by element the one whose bars are smaller where neither is flagged."""
    bars = [s.error.reshape(len(s.error), -1).sum(dim=1) for s in (a, b)]
    mine, other = (t.where(s.status == 0, math.inf) for t, s in zip(bars, (a, b), strict=True))
    return a.or_better(b, other < mine, confidence)


def ladder(posed: Expectation) -> list[Rung[ExpectationMethod]]:
    """Methods that may know the answer, the surest first; the next is for a family unknown."""
    name = type(posed.dist).__name__
    rungs: list[Rung[ExpectationMethod]] = []
    if isinstance(posed.fn, Moment):
        rungs.append(Rung(ClosedForm(), f"the function is declared and {name} has a formula"))
    if posed.dist.has_enumerate_support or _is_discrete(posed):
        rungs.append(Rung(Enumeration(), f"{name} is discrete"))
    elif not posed.event:
        rungs.append(Rung(GaussKronrod(), f"{name} has a density on the line"))
    else:
        few, many = f"{name} is an image of few", f"{name} is an image of"
        rungs.append(Rung(Cubature(), f"{few} independent coordinates", rough=True))
        rungs.append(Rung(SparseGrid(), f"{many} independent coordinates", rough=True))
        rungs.append(Rung(Vegas(), f"{name} is an image of uniform numbers"))
    return [*rungs, Rung(MonteCarlo(), f"no deterministic rule suits {name} and the function")]


def box_ladder(posed: Problem) -> list[Rung[IntegrationMethod]]:
    """Methods for intervals, and for boxes of few or of many dimensions."""
    if not posed.event:
        return [Rung(GaussKronrod(), "an interval")]
    moving = posed.lower.requires_grad or posed.upper.requires_grad
    if posed.event[0] <= MOST_AXES or moving:
        return [Rung(Cubature(), "a box of few dimensions")]
    reason = f"a box of {posed.event[0]} dimensions"
    return [Rung(SparseGrid(), reason, rough=True), Rung(Vegas(), reason)]


def _is_discrete(posed: Expectation) -> bool:
    if hasattr(posed.dist, "v") and hasattr(posed.dist, "log_density"):
        return True  # a point mass
    try:
        return not posed.event and support_of(posed.dist).discrete
    except NotImplementedError:
        return False

"""Which method an expectation gets when the caller names none, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from probcalc.distributions.support import support_of
from probcalc.integration.closed_form import ClosedForm, Moment
from probcalc.integration.cubature import Cubature
from probcalc.integration.enumeration import Enumeration
from probcalc.integration.expectation import Expectation
from probcalc.integration.monte_carlo import MonteCarlo
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.quadrature import GaussKronrod
from probcalc.integration.quasi_monte_carlo import QuasiMonteCarlo
from probcalc.integration.sparse_grid import SparseGrid


@runtime_checkable
class ExpectationMethod(Protocol):
    """What `expect` asks of a method."""

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation of every element of the batch."""
        ...


@dataclass(frozen=True, eq=False)
class Rung:
    """A method with the reason to try it."""

    method: ExpectationMethod
    reason: str


def ladder(posed: Expectation) -> list[Rung]:
    """Methods that may know the answer, the surest first; the next is for a family unknown."""
    name = type(posed.dist).__name__
    rungs: list[Rung] = []
    if isinstance(posed.fn, Moment):
        rungs.append(Rung(ClosedForm(), f"the function is declared and {name} has a formula"))
    if posed.dist.has_enumerate_support or _is_discrete(posed):
        rungs.append(Rung(Enumeration(), f"{name} is discrete"))
    elif not posed.event:
        rungs.append(Rung(GaussKronrod(), f"{name} has a density on the line"))
    else:
        rungs.append(Rung(Cubature(), f"{name} is an image of few independent coordinates"))
        rungs.append(Rung(SparseGrid(), f"{name} is an image of independent coordinates"))
        rungs.append(Rung(QuasiMonteCarlo(), f"{name} is an image of uniform numbers"))
    return [*rungs, Rung(MonteCarlo(), f"no deterministic rule suits {name} and the function")]


def _is_discrete(posed: Expectation) -> bool:
    if hasattr(posed.dist, "v") and hasattr(posed.dist, "log_density"):
        return True  # a point mass
    try:
        return not posed.event and support_of(posed.dist).discrete
    except NotImplementedError:
        return False

"""Which method an expectation gets when the caller names none, and why."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from probcalc.distributions.support import support_of
from probcalc.integration.closed_form import ClosedForm, Moment
from probcalc.integration.enumeration import Enumeration
from probcalc.integration.expectation import Expectation
from probcalc.integration.monte_carlo import MonteCarlo
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.quadrature import GaussKronrod


@runtime_checkable
class ExpectationMethod(Protocol):
    """What `expect` asks of a method."""

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Expectation of every element of the batch."""
        ...


def ladder(posed: Expectation) -> list[ExpectationMethod]:
    """Methods that may know the answer, the surest first; the next is for a family unknown."""
    rungs: list[ExpectationMethod] = []
    if isinstance(posed.fn, Moment):
        rungs.append(ClosedForm())
    if posed.dist.has_enumerate_support:
        rungs.append(Enumeration())
    elif not posed.event:
        rungs.append(Enumeration() if _is_discrete(posed) else GaussKronrod())
    return [*rungs, MonteCarlo()]


def _is_discrete(posed: Expectation) -> bool:
    try:
        return support_of(posed.dist).discrete
    except NotImplementedError:
        return False

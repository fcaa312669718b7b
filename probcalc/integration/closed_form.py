"""Integrands that are declared, so that their expectations need no integration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probcalc.distributions.moments import raw_moment
from probcalc.distributions.rebuild import in_double
from probcalc.integration.expectation import Expectation
from probcalc.integration.problem import Solved, Tolerance
from probcalc.status import Status

_ROUNDING = 16.0  # units in the last place


@dataclass(frozen=True)
class Moment:
    """The function x^k, declared: its expectation is known in closed form for most families.

    Args:
        order: k, at least 0.
    """

    order: int

    def __post_init__(self) -> None:
        """Check the order."""
        if self.order < 0:
            raise ValueError(f"`order` must be at least 0, got {self.order}.")

    def __call__(self, x: Tensor) -> Tensor:
        """x^k."""
        return x**self.order


@dataclass(frozen=True)
class ClosedForm:
    """Expectation of a declared function from the family's formula."""

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """The moments of every element.

        Raises:
            NotImplementedError: If the family has no formula.
            ValueError: If the function is not declared.
        """
        if not isinstance(posed.fn, Moment):
            raise ValueError("a closed form needs a declared function, such as `Moment(2)`.")
        value = raw_moment(in_double(posed.dist), posed.fn.order).expand(posed.batch).reshape(-1)
        rounding = _ROUNDING * torch.finfo(torch.float64).eps * value.detach().abs()
        infinite, undefined = value.isinf(), value.isnan()
        error = torch.where(infinite, 0.0, torch.where(undefined, math.inf, rounding))
        status = torch.where(undefined, Status.DIVERGENT, Status.OK)
        return Solved(value, error, status, torch.zeros_like(status), "closed form")

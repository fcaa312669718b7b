"""Gradient estimators side by side: variance, time, and what each would get wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import draw_seed
from probcalc.integration.gradient_estimators import (
    GradientEstimator,
    MeasureValued,
    Pathwise,
    ScoreFunction,
)
from probcalc.integration.gradient_problem import GradientProblem, Params

_PILOT = 2**12  # draws of an estimator that is tried
_FAR = 6.0  # standard errors by which estimators may differ
CANDIDATES: tuple[GradientEstimator, ...] = (Pathwise(), ScoreFunction(), MeasureValued())


@dataclass(frozen=True, eq=False)
class GradientRow:
    """What a gradient estimator did on a few draws.

    Args:
        estimator: The estimator.
        value: Mean gradient, the parameters one after the other; empty where it was refused.
        std_error: Its standard errors.
        seconds: Time for all draws.
        refused: Why it would be wrong here, or empty.
    """

    estimator: GradientEstimator
    value: Float[Tensor, " p"]
    std_error: Float[Tensor, " p"]
    seconds: float
    refused: str = ""

    @property
    def cost(self) -> float:
        """Variance, added up over the parameters, times time."""
        return float(self.std_error.square().sum()) * self.seconds

    def __repr__(self) -> str:
        """One line."""
        name = type(self.estimator).__name__
        if self.refused:
            return f"{name}: refused, {self.refused}"
        size = float(self.std_error.norm())
        return f"{name}: standard error {size:.2g} in {self.seconds:.2g} s, cost {self.cost:.2g}"


def compare_gradient_estimators(
    fn: Callable[..., Tensor],
    dist_fn: Callable[[Params], Distribution],
    params: Params,
    *,
    args: tuple[Any, ...] = (),
    estimators: Sequence[GradientEstimator] = CANDIDATES,
    num_draws: int = _PILOT,
    generator: torch.Generator | None = None,
) -> list[GradientRow]:
    """Variance and time of gradient estimators, the best first, the refused ones last.

    Arguments are those of `expect_grad`.

    Raises:
        TypeError: If an argument is not what it should be.
        ValueError: If a parameter has no part in the distribution, or this has a batch.
    """
    posed = GradientProblem.checked(fn, dist_fn, params, args)
    rows = compared(posed, estimators, draw_seed(generator), num_draws)
    return sorted(rows, key=lambda row: (bool(row.refused), row.cost))


def compared(
    posed: GradientProblem, estimators: Sequence[GradientEstimator], seed: int, num: int = _PILOT
) -> list[GradientRow]:
    """A path whose gradient differs from that of the score has missed a jump."""
    none = torch.zeros(0)
    rows = []
    for i, estimator in enumerate(estimators):
        reason = posed.refused(estimator)
        if reason:
            rows.append(GradientRow(estimator, none, none, math.inf, reason))
            continue
        posed.averaged(estimator, 16, seed)  # whatever is done once
        start = time.perf_counter()
        terms = posed.averaged(estimator, num, seed + i)[0]
        seconds = time.perf_counter() - start
        rows.append(GradientRow(estimator, terms.mean[0], terms.std_error[0], seconds))
    sure = [r for r in rows if not r.refused and not isinstance(r.estimator, Pathwise)]
    for i, row in enumerate(rows):
        if isinstance(row.estimator, Pathwise) and not row.refused and sure:
            apart = (row.value - sure[0].value).abs()
            if bool((apart > _FAR * (row.std_error + sure[0].std_error)).any()):
                reason = "the function has jumps, which the path does not see."
                rows[i] = replace(row, refused=reason)
    return rows

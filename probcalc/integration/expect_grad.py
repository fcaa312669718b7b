"""Gradients of expectations, each with its error bar.

    ∂/∂θ E_{p(x; θ)}[f] = E[f(x) ∂ log p/∂θ]

An integral or a sum where draws are numbers, for functions with jumps too; elsewhere the mean over
draws, by the estimator that does best on a few. Mohamed, Rosca, Figurnov & Mnih (2020), Monte
Carlo gradient estimation in machine learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import draw_seed
from probcalc.integration.compare_gradients import CANDIDATES, compared
from probcalc.integration.gradient_estimators import GradientEstimator
from probcalc.integration.gradient_problem import GradientProblem, Params
from probcalc.integration.monte_carlo import MonteCarlo
from probcalc.integration.problem import Tolerance
from probcalc.result import Estimate

_MAX_EVALS = 2**17


def expect_grad(
    fn: Callable[..., Tensor],
    dist_fn: Callable[[Params], Distribution],
    params: Params,
    *,
    args: tuple[Any, ...] = (),
    method: Any = None,
    gradient: GradientEstimator | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> dict[str, Estimate]:
    """Gradient of E[fn(x)], x drawn from ``dist_fn(params)``, with error bars.

    Args:
        fn: ``fn(x, *args)``: draws ``(n, *event)`` to ``(n)``.
        dist_fn: From the parameters to a distribution with an empty batch.
        params: Floating-point tensors by name.
        args: Further arguments of the function.
        method: `MonteCarlo(n)` for draws; default the integral or the sum of f times the score,
            where draws are numbers, else 131,072 draws.
        gradient: `Pathwise()`, `ScoreFunction()` or `MeasureValued()`, for draws; default the one
            with the smallest variance times time on a few.
        rtol: Relative tolerance of every component.
        atol: Absolute tolerance; of the two the looser holds.
        max_evals: Evaluations, or draws.
        confidence: Level of the bar of draws.
        generator: Of the draws.

    Returns:
        One estimate a parameter, of its shape.

    Raises:
        TypeError: If an argument is not what it should be.
        ValueError: If the gradient that was asked for would be wrong, a parameter has no part in
            the distribution, or the distribution has a batch.

    >>> at = {"rate": torch.tensor(2.0, dtype=torch.float64)}
    >>> poisson = lambda p: torch.distributions.Poisson(p["rate"])
    >>> round(float(expect_grad(lambda x: x**2, poisson, at)["rate"].value), 9)
    5.0
    """
    posed = GradientProblem.checked(fn, dist_fn, params, args)
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)
    if method is not None and not isinstance(method, MonteCarlo):
        raise TypeError(f"`method` must be `MonteCarlo(n)` or None, got {type(method).__name__}.")
    if method is None and gradient is None and posed.integrable():
        found = posed.integrated(tolerance)
        if found is not None:
            return found
    num = (method.num_draws if method else None) or max_evals or _MAX_EVALS
    seed = draw_seed(generator)
    if gradient is None:
        rows = compared(posed, CANDIDATES, seed + 1)
        good = [row for row in rows if not row.refused]
        if not good:
            raise ValueError("no estimator suits: " + " ".join(row.refused for row in rows))
        gradient = min(good, key=lambda row: row.cost).estimator
    else:
        reason = posed.refused(gradient)
        if reason:
            raise ValueError(f"{type(gradient).__name__} would be wrong here: {reason}")
    return posed.drawn(gradient, num, seed, tolerance)

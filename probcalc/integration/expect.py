"""Expectations of any distribution, each with its error bar, by the best rule known for it.

E_p[f] = ∫ f(x) p(x) dx   or   Σ f(k) p(k)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import forked
from probcalc.integration.choose import ExpectationMethod, climbed, ladder
from probcalc.integration.expectation import Expectation, expectation
from probcalc.integration.gauss_quadrature import GaussQuadrature
from probcalc.integration.gradient_estimators import GradientEstimator, Pathwise, ScoreFunction
from probcalc.integration.problem import Solved, Tolerance, refuse_transforms
from probcalc.result import Estimate


def expect(
    fn: Callable[..., Tensor],
    dist: Distribution,
    *,
    args: tuple[Any, ...] = (),
    breaks: Tensor | Sequence[float] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    method: ExpectationMethod | None = None,
    gradient: GradientEstimator | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Expectation of a function under a distribution, or under a batch of them.

    Discrete distributions are summed; declared functions (`Moment`) use the family's formula;
    distributions on the line are integrated by adaptive quadrature between their quantiles, so
    that narrow or distant mass is found; vectors that are images of up to seven independent
    coordinates (normal, Dirichlet, independent ones, ...) by cubature over these, of up to a
    hundred by draws of what a sparse interpolant misses; the rest is averaged over draws, with a
    bar that is refused where the terms have no variance. The result names the method, and in its
    diagnostics the reason for it.

    Args:
        fn: ``fn(x, *args)`` takes draws ``(n, *batch, *event)`` and returns ``(n, *batch,
            *out)``. With tensors in `args` it is called on some elements of the batch at a time,
            as ``(n, k, *event)``; without, it may close over tensors of the batch shape.
        dist: Any torch distribution.
        args: Tensors ``(*batch, ...)``, and anything else, which is handed on as it is.
        breaks: Points ``(s)`` or ``(*batch, s)`` where `fn` is rough.
        rtol: Relative tolerance; deterministic methods try for 1e-8 where none is given.
        atol: Absolute tolerance; of the two the looser holds.
        method: Such as `GaussKronrod()` or `MonteCarlo(10_000)`; default the best that applies.
        gradient: `Pathwise()` or `ScoreFunction()`, how random methods differentiate in the
            distribution's parameters; default the first where draws are reparametrised. For the
            gradient with its error bar, and by other estimators, see `expect_grad`.
        max_evals: Points that each element may spend.
        confidence: Level of a random method's bar.
        dtype: Precision in which `fn` is evaluated; default that of the parameters.
        generator: For random methods.

    Returns:
        Estimate of shape ``(*batch, *out)``, differentiable in `args`, in the distribution's
        parameters and in what `fn` closes over.

    Raises:
        TypeError: If `fn` or `dist` is not what it should be; inside `vmap` or a compiled graph,
            but with `GaussQuadrature`.
        ValueError: If shapes or devices do not fit, or the gradient asked for would be wrong.

    >>> expect(lambda x: x.exp(), torch.distributions.Normal(0.0, 1.0), dtype=torch.float64).value
    tensor(1.6487, dtype=torch.float64)
    """
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)
    if not isinstance(method, GaussQuadrature):
        refuse_transforms()
    posed = expectation(fn, dist, args=args, breaks=breaks, dtype=dtype)
    if gradient is not None:
        posed = replace(posed, gradient=_allowed(gradient, posed))
    solved = method.expect(posed, tolerance) if method else best(posed, tolerance)
    reads = not isinstance(method, GaussQuadrature)
    return solved.estimate(posed.batch, posed.dtype, tolerance, stacklevel=2, reads=reads)


def _allowed(gradient: GradientEstimator, posed: Expectation) -> GradientEstimator:
    if not isinstance(gradient, (Pathwise, ScoreFunction)):
        raise TypeError(
            "`gradient` must be `Pathwise()` or `ScoreFunction()`, got "
            f"{type(gradient).__name__}: others are for `expect_grad`."
        )
    with forked(0, posed.device):
        reason = gradient.refused(posed.values, posed.dist)
    if reason:
        raise ValueError(f"{type(gradient).__name__} would be wrong here: {reason}")
    return gradient


def best(posed: Expectation, tolerance: Tolerance) -> Solved:
    """What the ladder of methods comes to."""
    return climbed(ladder(posed), lambda method: method.expect(posed, tolerance), tolerance)

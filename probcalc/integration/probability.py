"""Probabilities of intervals, accurate in both tails.

    P(a < X ≤ b) = ∫_a^b p(x) dx   or   Σ_{a < k ≤ b} p(k)

The density is integrated between the limits to a relative tolerance, so that a tail of 1e-200 has
as many digits as one half; derivatives in the limits are densities.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from probcalc.distributions.support import device_of, support_of
from probcalc.integration.density import as_integral
from probcalc.integration.enumeration import Enumeration
from probcalc.integration.expectation import expectation
from probcalc.integration.problem import Limit, Solved, Tolerance, as_double
from probcalc.integration.quadrature import GaussKronrod
from probcalc.result import Estimate


def probability(
    dist: Distribution,
    lower: Limit | None = None,
    upper: Limit | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_evals: int | None = None,
) -> Estimate:
    """P(lower < X ≤ upper); for `Independent`, of all coordinates together.

    Args:
        dist: A distribution on the line, or independent ones.
        lower: Lower limit, broadcast with the batch (and the event of `Independent`); None: −∞.
        upper: Upper limit; None: ∞.
        rtol: Relative tolerance; 1e-8 is tried for where none is given.
        atol: Absolute tolerance; of the two the looser holds.
        max_evals: Points that each element may spend.

    Returns:
        Estimate of the batch's shape, differentiable in limits and parameters.

    Raises:
        NotImplementedError: If draws are not numbers.
        ValueError: If a limit is NaN.

    >>> normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    >>> probability(normal, lower=30.0).value
    tensor(4.9067e-198, dtype=torch.float64)
    """
    tolerance = Tolerance(rtol, atol, max_evals)
    independent = isinstance(dist, Independent)
    base = dist.base_dist if independent else dist
    device = device_of(base) or torch.device("cpu")
    low, high = (
        as_double(end if given is None else given, device)
        for given, end in ((lower, -torch.inf), (upper, torch.inf))
    )
    if bool((low.isnan() | high.isnan()).any()):
        raise ValueError("limits of a probability must not be NaN.")
    batch = torch.broadcast_shapes(base.batch_shape, low.shape, high.shape)
    base = base if batch == base.batch_shape else base.expand(batch)
    discrete = support_of(base).discrete
    between = _summed if discrete else _integrated
    solved, dtype = between(base, low, high, tolerance)
    result = solved.estimate(tuple(batch), dtype, tolerance, stacklevel=2)
    return _joint(result, dist.reinterpreted_batch_ndims) if independent else result


def _summed(
    dist: Distribution, low: Tensor, high: Tensor, tolerance: Tolerance
) -> tuple[Solved, torch.dtype]:
    def inside(k: Tensor) -> Tensor:
        return ((k > low) & (k <= high)).double()

    posed = expectation(inside, dist, args=(), breaks=None, dtype=None)
    return Enumeration().expect(posed, tolerance), posed.dtype


def _integrated(
    dist: Distribution, low: Tensor, high: Tensor, tolerance: Tolerance
) -> tuple[Solved, torch.dtype]:
    posed = expectation(torch.ones_like, dist, args=(), breaks=None, dtype=None)
    problem = as_integral(posed)
    b = problem.size
    low, high = (t.expand(posed.batch).reshape(b) for t in (low, high))
    lower = torch.maximum(problem.lower, low)
    upper = torch.maximum(lower, torch.minimum(problem.upper, high))
    return GaussKronrod().solve(replace(problem, lower=lower, upper=upper), tolerance), posed.dtype


def _joint(each: Estimate, ndims: int) -> Estimate:
    """Product over the last axes: relative errors add."""
    value, error = each.value.flatten(-ndims), each.error.flatten(-ndims)
    product = value.prod(dim=-1)
    highest = (value.detach() + error).prod(dim=-1)
    status, count = (t.flatten(-ndims) for t in (each.status, each.num_evals))
    return replace(
        each,
        value=product,
        error=highest - product.detach(),
        status=_joined(status),
        num_evals=count.sum(dim=-1),
    )


def _joined(status: Tensor) -> Tensor:
    joined = status[..., 0]
    for i in range(1, status.shape[-1]):
        joined = joined | status[..., i]
    return joined

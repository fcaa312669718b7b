"""Expectations under discrete distributions: the sum over the support, with a bound on its tail.

    E_p[f] = Σ_k f(k) p(k)

A finite support is summed whole. A countable one is summed upwards until the terms decay
geometrically and what they promise beyond is below the tolerance; terms that do not decay (as in
the St Petersburg game) are called divergent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import copied, in_double
from probcalc.distributions.support import support_of
from probcalc.integration.expectation import Expectation, alive
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.replay import rerun
from probcalc.status import Status

_BLOCK = 2**12  # terms at a time
_MOST = 2**20  # terms of an element
_RTOL = 1e-13
_RUN = 16  # terms over which the decay is measured
_SLOW = 0.9995  # ratio of neighbouring terms above which they do not decay
_NO_MASS = -745.0  # log of the smallest positive float
_START = 1e-18  # lower quantile below which nothing is summed, where that is far from the end
_NEAR = 2**14  # how far is far
_ROUNDING = 4.0  # units in the last place of the sum of |f p|


@dataclass(frozen=True)
class Enumeration:
    """Sum over the support of a discrete distribution."""

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Sum the terms of every element.

        Raises:
            ValueError: If the support cannot be enumerated.
        """
        dist = in_double(posed.dist)
        points = _all_points(dist)
        if points is not None:
            return _finite(posed, dist, points)
        support = support_of(dist)
        if not support.discrete or dist.event_shape:
            raise ValueError(f"the support of {type(posed.dist).__name__} cannot be enumerated.")
        return _countable(posed, dist, support.lower, support.upper, tolerance)


def _all_points(dist: Distribution) -> Tensor | None:
    try:
        return dist.enumerate_support(expand=False)
    except NotImplementedError:  # infinite, or of different lengths in one batch
        return None


def _finite(posed: Expectation, dist: Distribution, points: Tensor) -> Solved:
    points = points.expand(len(points), *posed.batch, *posed.event)
    parts = [_block(posed, dist, x) for x in points.split(_BLOCK)]
    value, size = (sum(column) for column in zip(*parts, strict=True))
    bad = ~value.isfinite()
    count = torch.full((math.prod(posed.batch),), len(points), device=value.device)
    return _solved(posed, value, size, torch.zeros_like(size), bad, count, "enumeration")


def _block(posed: Expectation, dist: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of f p and |f p| over some points."""
    return rerun(_sums, posed, dist, x)


def _sums(posed: Expectation, dist: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    terms = _terms(posed, dist, x)[0]
    return terms.sum(dim=0), terms.detach().abs().sum(dim=0)


def _terms(posed: Expectation, dist: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values f p at the points, and log p."""
    log_p = copied(dist).log_prob(x)
    place = x if posed.shift is not None else alive(x, log_p)
    return posed.weighted(posed.values(place), log_p, posed.shift), log_p


def _countable(
    posed: Expectation,
    dist: Distribution,
    lower: Float[Tensor, " *batch"],
    upper: Float[Tensor, " *batch"],
    tolerance: Tolerance,
) -> Solved:
    with torch.no_grad():
        first, last, count, rest, slow = _extent(posed, dist, lower, upper, tolerance)
    total: Tensor | float = 0.0
    size: Tensor | float = 0.0
    for start in range(0, int(count.max()), _BLOCK):
        x = first + _steps(start, first)
        inside = (x <= last) & (x < first + count)
        part, part_size = _block_inside(posed, dist, torch.where(inside, x, first), inside)
        total, size = total + part, size + part_size
    flagged = slow.reshape(-1)
    solved = _solved(posed, total, size, rest, ~total.isfinite(), count.reshape(-1), "enumeration")
    status = solved.status | torch.where(flagged, Status.DIVERGENT, Status.OK)
    wide = flagged.reshape([-1, *[1] * (solved.error.ndim - 1)])
    error = torch.where(wide, math.inf, solved.error)
    return Solved(solved.value, error, status, solved.num_evals, solved.method)


def _steps(start: int, like: Tensor) -> Tensor:
    steps = torch.arange(start, start + _BLOCK, dtype=like.dtype, device=like.device)
    return steps.reshape([-1, *[1] * like.ndim])


def _block_inside(
    posed: Expectation, dist: Distribution, x: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    def sums(x: Tensor) -> tuple[Tensor, Tensor]:
        terms = _terms(posed, dist, x)[0]
        kept = inside.reshape([*inside.shape, *[1] * (terms.ndim - inside.ndim)])
        terms = torch.where(kept, terms, 0.0)
        return terms.sum(dim=0), terms.detach().abs().sum(dim=0)

    return rerun(sums, x)


def _extent(
    posed: Expectation, dist: Distribution, lower: Tensor, upper: Tensor, tolerance: Tolerance
) -> tuple[Tensor, Tensor, Int[Tensor, " *batch"], Tensor, Tensor]:
    """First and last point, number of terms, bound of the rest, and what does not decay."""
    lower, upper = (t.double().expand(posed.batch) for t in (lower, upper))
    rare = torch.full(posed.batch, _START, dtype=torch.float64, device=lower.device)
    early, late = quantile(dist, rare), quantile(dist, rare, upper=True)
    first = torch.where(early - lower > _NEAR, early, lower)
    rtol = _RTOL if tolerance.rtol is None else tolerance.rtol
    count, total = torch.ones_like(first), torch.zeros_like(first)
    rest, slow = torch.zeros_like(first), torch.zeros_like(first, dtype=torch.bool)
    going = torch.ones_like(slow)
    for start in range(0, min(_MOST, tolerance.max_evals or _MOST), _BLOCK):
        x = first + _steps(start, first)
        inside = x <= upper
        terms, log_p = _terms(posed, dist, torch.where(inside, x, first))
        sizes = torch.where(inside, _largest(terms, x.ndim), 0.0)
        total = total + torch.where(going, sizes.sum(dim=0), 0.0)
        count = torch.where(going, inside.sum(dim=0) + start, count)
        beyond, decays = _beyond(sizes)
        rest = torch.where(going, beyond, rest)
        slow = torch.where(going, ~decays, slow)
        over = (x[-1] >= upper) | (log_p[-1] < _NO_MASS) & (total == 0)
        enough = (x[-1] >= late) & (total > 0) & (beyond <= rtol * total)
        rest, slow = torch.where(over, 0.0, rest), slow & ~over
        going = going & ~(over | enough)
        if not bool(going.any()):
            break
    return first, upper, count.long(), rest, slow & going


def _largest(terms: Tensor, batch_dims: int) -> Tensor:
    return terms.abs().reshape([*terms.shape[:batch_dims], -1]).amax(dim=-1)


def _beyond(sizes: Float[Tensor, " n *batch"]) -> tuple[Tensor, Tensor]:
    """Sum of what follows, if it goes on decaying as the last terms did; whether they did."""
    last, before = sizes[-_RUN:].amax(dim=0), sizes[-2 * _RUN : -_RUN].amax(dim=0)
    ratio = (last / before.clamp(min=torch.finfo(sizes.dtype).tiny)) ** (1 / _RUN)
    decays = (last == 0) | (ratio < _SLOW)
    rest = last * ratio / (1 - ratio.clamp(max=_SLOW))
    return torch.where(decays, rest, math.inf), decays


def _solved(
    posed: Expectation,
    value: Tensor,
    size: Tensor,
    rest: Tensor,
    bad: Tensor,
    count: Int[Tensor, " b"],
    method: str,
) -> Solved:
    b, out = math.prod(posed.batch), value.shape[len(posed.batch) :]
    rounding = _ROUNDING * torch.finfo(posed.dtype).eps * size
    error = rounding + rest.reshape([*rest.shape, *[1] * (rounding.ndim - rest.ndim)])
    error = torch.where(bad, math.inf, error).reshape([b, *out])
    undefined = bad.reshape(b, -1).any(dim=1)
    status = torch.where(undefined, Status.NON_FINITE, Status.OK)
    return Solved(value.reshape([b, *out]), error, status, count, method)

"""Expectations under discrete distributions: the sum over the support, with a bound on its tail.

    E_p[f] = Σ_k f(k) p(k)

A small support is summed whole. Of others, all between the outermost quantiles is summed, and
beyond them, wherever the function may take them, the terms that add something (see `windows`).
Terms that do not vanish towards infinity (as in the St Petersburg game) are called divergent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc.distributions.families import is_point_mass
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import Support, support_of
from probcalc.integration.expectation import Expectation
from probcalc.integration.overflow import Overflow, overflow_of
from probcalc.integration.problem import Solved, Tolerance
from probcalc.integration.summation import METHOD, Block, Summand, solved
from probcalc.integration.windows import Look, Span, Windows, explored, windows
from probcalc.status import Status

_MOST = 2**20  # terms of an element, and of a batch that is summed whole
_BLOCK, _ELEMENTS = 2**14, 2**20  # terms at a time, of an element and in all
_RARE, _RAREST = 1e-18, 1e-300  # levels of the outermost quantiles, and of those that may be near
_NEAR = 2**13  # terms that are near
_ROUNDING = 4.0  # units in the last place of a single value


@dataclass(frozen=True)
class Enumeration:
    """Sum over the support of a discrete distribution.

    Args:
        growth: Where |f(k)| ≤ C (1 + |k|)^growth is known, the function is not looked at far out;
            C is the largest ratio met where it is summed. Default: not known.
    """

    growth: float | None = None

    def __post_init__(self) -> None:
        """Check the power."""
        if self.growth is not None and not 0 <= self.growth < math.inf:
            raise ValueError(f"`growth` must be a finite power ≥ 0, got {self.growth}.")

    def expect(self, posed: Expectation, tolerance: Tolerance) -> Solved:
        """Sum the terms of every element.

        Raises:
            ValueError: If the support cannot be enumerated.
        """
        if is_point_mass(posed.dist):
            return _at_the_point(posed)
        summand = Summand(posed, in_double(posed.dist), self.growth)
        support = _integers(summand.dist)
        if support is None or _small(support, posed):
            points = _all_points(summand.dist)
            if points is not None:
                return _whole(summand, points)
        if support is None:
            raise ValueError(f"the support of {type(posed.dist).__name__} cannot be enumerated.")
        return _windowed(summand, support, tolerance.max_evals or _MOST)


def largest_exponent(posed: Expectation) -> Float[Tensor, " *batch"] | None:
    """Of log f + log p over a support of integers, f given by its logarithm; None for others."""
    dist = in_double(posed.dist)
    support = _integers(dist)
    if support is None or is_point_mass(dist):
        return None
    zero = torch.zeros(posed.batch, dtype=torch.float64, device=posed.device)
    summand = Summand(replace(posed, shift=zero), dist)
    look = _finite(_looking(summand))
    return explored(look, _span(summand, support)).top.amax(dim=-1).reshape(posed.batch)


def _at_the_point(posed: Expectation) -> Solved:
    """All mass is in one point, whatever its log density says."""
    point = posed.dist.v[None]
    f = posed.values(point.double() if point.is_floating_point() else point)
    batch, out = posed.batch, f.shape[1 + len(posed.batch) :]
    if posed.shift is not None:
        f = (f - posed.shift.reshape([*batch, *[1] * len(out)])).exp()
    f = f[0].reshape([math.prod(batch), *out])
    error = _ROUNDING * torch.finfo(posed.dtype).eps * f.detach().abs()
    bad = ~f.detach().isfinite()
    status = torch.where(bad.reshape(len(f), -1).any(dim=1), int(Status.NON_FINITE), 0)
    return Solved(f, torch.where(bad, math.inf, error), status, torch.ones_like(status), METHOD)


def _integers(dist: Distribution) -> Support | None:
    """A support of consecutive integers."""
    try:
        support = support_of(dist)
    except NotImplementedError:
        return None
    return support if support.discrete else None


def _small(support: Support, posed: Expectation) -> bool:
    if not support.upper.numel():
        return True
    most = float((support.upper - support.lower).max()) + 1
    return most <= _NEAR or most * math.prod(posed.batch) <= _MOST


def _all_points(dist: Distribution) -> Tensor | None:
    try:
        return dist.enumerate_support(expand=False)
    except NotImplementedError:  # infinite, or of different lengths in one batch
        return None


def _rows(summand: Summand) -> int:
    return max(2, min(_BLOCK, _ELEMENTS // max(1, math.prod(summand.posed.batch))))


def _whole(summand: Summand, points: Tensor) -> Solved:
    posed = summand.posed
    points = points.expand(len(points), *posed.batch, *posed.event)
    blocks = points.split(_rows(summand))
    sums = summand.over(partial(_every, x) for x in blocks)
    count = torch.full((math.prod(posed.batch),), len(points), device=sums.size.device)
    rest, status = torch.zeros_like(sums.size), torch.zeros_like(count)
    return solved(posed, sums, rest, status, count, len(blocks))


def _windowed(summand: Summand, support: Support, most: int) -> Solved:
    with torch.no_grad():
        found, status, beyond = _found(summand, _span(summand, support), most)
    n, rows = max(1, int(found.count.max())), _rows(summand)
    sums = summand.over(_blocks(summand, found, n, rows))
    rest = found.rest + beyond
    if summand.growth is not None:
        rest = rest * sums.ratio.reshape(len(rest), -1)
    return solved(summand.posed, sums, rest, status, found.count, -(-n // rows))


def _found(summand: Summand, span: Span, most: int) -> tuple[Windows, Tensor, Tensor]:
    """What to sum, flags, and a bound on what follows where the function overflows."""
    look = _looking(summand)
    over = _no_overflow(span)
    if summand.growth is not None:
        look = _declared(summand, summand.growth)
    else:
        precision = torch.finfo(summand.posed.dtype)
        largest = math.inf if summand.posed.shift is not None else math.log(precision.max)
        over = overflow_of(look, span, precision.eps, largest)
    span = _widened(summand, span, over, most)
    grid = explored(_finite(look), span, torch.stack([over.reach, over.reach + 1]))
    found = windows(grid, span, most)
    flags = {
        Status.UNRESOLVED_MASS: found.missing,
        Status.DIVERGENT: found.endless | over.rising & over.infinite,
        Status.NON_FINITE: over.infinite,
    }
    status = torch.zeros_like(found.count)
    for flag, where in flags.items():
        status = status | torch.where(where, int(flag), 0)
    return found, status, over.rest


def _blocks(summand: Summand, found: Windows, n: int, rows: int) -> Iterator[Block]:
    batch = summand.posed.batch
    for start in range(0, n, rows):
        yield partial(_numbered, found, start, min(n, start + rows), batch)


def _numbered(
    found: Windows, start: int, stop: int, batch: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    x, inside = found.points(start, stop)
    return x.reshape(-1, *batch), inside.reshape(-1, *batch)


def _every(x: Tensor) -> tuple[Tensor, None]:
    return x, None


def _span(summand: Summand, support: Support) -> Span:
    """The support, and the quantiles of 1e-18."""
    lower, upper = (
        t.detach().double().expand(summand.posed.batch).reshape(-1)
        for t in (support.lower, support.upper)
    )
    first, last = _quantiles(summand, _RARE)
    return Span(lower, upper, torch.maximum(first, lower), torch.minimum(last, upper))


def _quantiles(summand: Summand, level: float) -> list[Tensor]:
    p = torch.full(summand.posed.batch, level, dtype=torch.float64, device=summand.posed.device)
    with torch.no_grad():
        return [quantile(summand.dist, p, upper=side).reshape(-1) for side in (False, True)]


def _widened(summand: Summand, span: Span, over: Overflow, most: int) -> Span:
    """Out to the quantiles of 1e-300 where these are near and the function does not overflow."""
    first, last = _quantiles(summand, _RAREST)
    near = (0.5 * (most - 1 - span.last + span.first)).clamp(max=_NEAR)
    first = torch.where(span.first - first <= near, torch.maximum(first, span.lower), span.first)
    last = torch.minimum(torch.minimum(last, span.upper), over.reach)
    last = torch.where((last - span.last <= near) & (last >= span.last), last, span.last)
    return replace(span, first=torch.minimum(first, span.first), last=last)


def _no_overflow(span: Span) -> Overflow:
    never = torch.zeros_like(span.last, dtype=torch.bool)
    return Overflow(
        torch.full_like(span.last, math.inf), span.last.new_zeros(len(never), 1), never, never
    )


def _looking(summand: Summand) -> Look:
    """Log|f|, which may be infinite or NaN, and log p."""

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_f = summand.logs(x.reshape(-1, *summand.posed.batch))
        return log_f.reshape(*x.shape, -1), log_p.reshape(x.shape)

    return look


def _finite(look: Look) -> Look:
    """Log|f| with −∞ where it is infinite or NaN."""

    def finite(x: Tensor) -> tuple[Tensor, Tensor]:
        log_f, log_p = look(x)
        return torch.where(log_f < math.inf, log_f, -math.inf), log_p

    return finite


def _declared(summand: Summand, growth: float) -> Look:
    """Log of (1 + |k|)^growth."""

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p = summand.dist.log_prob(x.reshape(-1, *summand.posed.batch)).reshape(x.shape)
        log_f = growth * x.abs().log1p()
        return torch.where(log_p.isneginf(), -math.inf, log_f)[..., None], log_p

    return look

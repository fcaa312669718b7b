"""Quantiles of distributions on the line, from either tail, with derivatives.

Closed forms where there are some, SciPy's inverses of the incomplete gamma and beta functions
elsewhere; transformed distributions carry them through, mixtures are solved between those of
their components, counts are searched.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf, falls, on_sides
from probcalc.distributions.counts import first_beyond
from probcalc.distributions.elementary import logistic_level, normal_level
from probcalc.distributions.families import (
    HasTails,
    counted,
    is_point_mass,
    is_standard_logistic,
    known_families,
    law_of,
)
from probcalc.distributions.inverses import implied
from probcalc.distributions.log_density import log_density
from probcalc.distributions.rebuild import in_double, taken_apart
from probcalc.distributions.roots import root_of_tail
from probcalc.distributions.special import asked, tracked
from probcalc.distributions.support import support_of


def quantile(
    dist: td.Distribution, p: Float[Tensor, "*p"], *, upper: bool = False
) -> Float[Tensor, "*out"]:
    """Smallest x with P(X ≤ x) ≥ p, or with P(X > x) ≤ p from the upper tail.

    Args:
        dist: A distribution whose draws are numbers; `Independent` is taken elementwise.
        p: Probabilities, broadcast with the batch; outside [0, 1] quantiles are NaN.
        upper: Count from the upper tail, which keeps its precision down to 1e-300.

    Returns:
        Quantiles in float64; those of continuous distributions are differentiable in p and the
        parameters, those of counts are numbers. Second derivatives of heavy-tailed families
        overflow where p is below about 1e-130.

    Raises:
        NotImplementedError: If the family is unknown, or a transform is not monotone.
    """
    p = p.double()
    if isinstance(dist, td.Independent):
        return quantile(dist.base_dist, p, upper=upper)
    if isinstance(dist, td.MixtureSameFamily):
        return _of_mixture(dist, p, upper)
    if isinstance(dist, HasTails):
        return dist.level(p, upper)
    if is_point_mass(dist):
        point = dist.v.double()
        return torch.where((p >= 0) & (p <= 1), point, math.nan)
    law = law_of(dist)
    if law is not None:
        return _within(dist, p, upper, law.level)
    if counted(dist) is not None:
        return _of_counts(dist, p, upper)
    if isinstance(dist, td.TransformedDistribution):
        return _through(dist, p, upper)
    raise NotImplementedError(f"no quantiles of {type(dist).__name__}; known: {known_families()}.")


def tail_probability(dist: td.Distribution, x: Tensor, upper: bool) -> Float[Tensor, "*out"]:
    """P(X > x), or P(X ≤ x), without gradients."""
    with torch.no_grad():
        return cdf(dist, x, upper=upper)


def _within(dist: td.Distribution, p: Tensor, upper: bool, level: object) -> Tensor:
    """The inverse tail for 0 < p < 1, and the ends of the support at 0 and 1."""
    inside = (p > 0) & (p < 1)
    if asked(torch.all, inside):
        return level(dist, p, upper)
    support = support_of(dist)
    first, last = (t.detach().to(p.device) for t in (support.lower, support.upper))
    first, last = (last, first) if upper else (first, last)
    ends = torch.where(p == 0, first, torch.where(p == 1, last, math.nan))
    return torch.where(inside, level(dist, torch.where(inside, p, 0.5), upper), ends)


def _of_counts(dist: td.Distribution, p: Tensor, upper: bool) -> Tensor:
    with torch.no_grad():
        support = support_of(dist)
        start = _guess(dist, support.lower, p.detach(), upper)
        shape = torch.broadcast_shapes(p.shape, dist.batch_shape)
        lower, last, start = (t.expand(shape) for t in (support.lower, support.upper, start))
        return searched(dist, p.detach(), upper, lower, last, start)


def _guess(dist: td.Distribution, lower: Tensor, p: Tensor, upper: bool) -> Tensor:
    """The quantile of a normal distribution of the same mean and variance."""
    if isinstance(dist, td.Categorical):
        return lower
    guess = dist.mean.double() + dist.stddev.double() * normal_level(p, upper)
    return guess.nan_to_num(0.0, 0.0, 0.0)


def searched(
    dist: td.Distribution, p: Tensor, upper: bool, lower: Tensor, last: Tensor, start: Tensor
) -> Tensor:
    """Quantiles of counts between `lower` and `last`, looked for from `start` on."""

    def beyond(k: Tensor) -> Tensor:
        tail = cdf(dist, k, upper=upper)
        return tail <= p if upper else tail >= p

    known = (p > 0) & (p < 1)
    found = first_beyond(lambda k: beyond(k) | ~known, lower, last, start)
    first = torch.where(p == (1 if upper else 0), lower, last)
    outside = (p < 0) | (p > 1) | p.isnan()
    return torch.where(known, found, torch.where(outside, math.nan, first))


def _through(dist: td.TransformedDistribution, p: Tensor, upper: bool) -> Tensor:
    falling = falls(dist)
    if is_standard_logistic(dist):
        x = on_sides(falling, upper, lambda side: logistic_level(p, side))
    else:
        x = on_sides(falling, upper, lambda side: quantile(dist.base_dist, p, upper=side))
        x = dist.transforms[0](x)
    for transform in dist.transforms[1:]:
        x = transform(x)
    return x


def _of_mixture(dist: td.MixtureSameFamily, p: Tensor, upper: bool) -> Tensor:
    """Between the smallest and the largest of the components' quantiles."""
    double = in_double(dist)
    with torch.no_grad():
        levels = p.detach()
        x = quantile(dist.component_distribution, levels[..., None], upper=upper)
        low, high = x.amin(dim=-1), x.amax(dim=-1)
        levels = levels.expand(low.shape)
        if support_of(dist).discrete:
            return searched(dist, levels, upper, low, high, low)
        root = root_of_tail(
            lambda t: cdf(double, t, upper=upper),
            lambda t: log_density(double, t).exp(),
            levels,
            low,
            high,
            upper,
        )
    if not tracked(p, *taken_apart(dist)[0]):
        return root
    return implied(
        root,
        p,
        lambda t: cdf(double, t, upper=upper),
        lambda t: log_density(in_double(dist), t),
        upper,
    )

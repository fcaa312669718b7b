r"""Distribution functions on the line, from either tail, with derivatives of every order.

    P(X ≤ x)   or   P(X > x)

Closed forms where there are some, incomplete gamma and beta functions elsewhere; transformed
distributions carry the argument back, mixtures add up those of their components.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.counts import probabilities
from probcalc.distributions.elementary import logistic_tail
from probcalc.distributions.families import (
    HasTails,
    counted,
    is_point_mass,
    is_standard_logistic,
    known_families,
    law_of,
)
from probcalc.distributions.support import device_of, some_point, support_of


def cdf(
    dist: td.Distribution, x: Real[Tensor, "*x"] | float | int, *, upper: bool = False
) -> Float[Tensor, "*out"]:
    """P(X ≤ x), or P(X > x) with all its digits, for a distribution on the line.

    Both tails are accurate to about 1e-12 of themselves, down to the smallest numbers. For
    counts, P(X ≤ x) is that of the integer below x.

    Args:
        dist: A distribution whose draws are numbers; `Independent` is taken elementwise.
        x: Where, broadcast with the batch.
        upper: Give P(X > x).

    Returns:
        Probabilities in float64, differentiable in x and the parameters; the ends of the support
        have derivative zero.

    Raises:
        NotImplementedError: If the family is unknown, or a transform is not monotone.

    >>> normal = td.Normal(torch.tensor(0.0), torch.tensor(1.0))
    >>> cdf(normal, 30.0, upper=True)
    tensor(4.9067e-198, dtype=torch.float64)
    """
    if isinstance(dist, td.Independent):
        return cdf(dist.base_dist, x, upper=upper)
    x = torch.as_tensor(
        x, dtype=torch.float64, device=x.device if torch.is_tensor(x) else device_of(dist)
    )
    if isinstance(dist, td.MixtureSameFamily):
        parts = cdf(dist.component_distribution, x[..., None], upper=upper)
        return (probabilities(dist.mixture_distribution) * parts).sum(dim=-1)
    if isinstance(dist, HasTails):
        return dist.tail(x, upper)
    if is_point_mass(dist):
        return ((x < dist.v) if upper else (x >= dist.v)).double()
    return _inside_support(dist, x, upper, _tail_of(dist))


def _tail_of(dist: td.Distribution) -> Callable[[td.Distribution, Tensor, bool], Tensor]:
    law, of_counts = law_of(dist), counted(dist)
    if of_counts is not None:
        return lambda d, x, upper: of_counts(d, x.detach().floor(), upper)
    if law is not None:
        return law.tail
    if isinstance(dist, td.TransformedDistribution):
        return _through
    raise NotImplementedError(
        f"no distribution function of {type(dist).__name__}; known: {known_families()}."
    )


def _inside_support(
    dist: td.Distribution,
    x: Tensor,
    upper: bool,
    tail: Callable[[td.Distribution, Tensor, bool], Tensor],
) -> Tensor:
    """The tail inside the support, and 0 or 1 outside, where formulas may not hold."""
    support = support_of(dist)
    lower, higher = (t.detach().to(x.device) for t in (support.lower, support.upper))
    under = (x < lower) if support.discrete else (x <= lower)
    inside = ~under & (x < higher) & x.isfinite()
    place = lower if support.discrete else some_point(lower, higher)
    value = tail(dist, torch.where(inside, x, place), upper)
    outside = torch.where(under if upper else x >= higher, 1.0, 0.0)
    return torch.where(inside, value, torch.where(x.isnan(), math.nan, outside))


def _through(dist: td.TransformedDistribution, x: Tensor, upper: bool) -> Tensor:
    falling = falls(dist)
    for transform in reversed(dist.transforms[1:]):
        x = transform.inv(x)
    if is_standard_logistic(dist):
        return on_sides(falling, upper, lambda side: logistic_tail(x, side))
    x = dist.transforms[0].inv(x)
    return on_sides(falling, upper, lambda side: cdf(dist.base_dist, x, upper=side))


def falls(dist: td.TransformedDistribution) -> Tensor | bool:
    """Whether the transforms together are decreasing, elementwise where they differ.

    Raises:
        NotImplementedError: If a transform is not monotone.
    """
    falling: Tensor | bool = False
    for transform in dist.transforms:
        if not transform.bijective or transform.sign is NotImplemented:
            raise NotImplementedError(f"{transform} is not monotone.")
        negative = torch.as_tensor(transform.sign) < 0
        falling = falling ^ (bool(negative) if negative.ndim == 0 else negative)
    return falling


def on_sides(falling: Tensor | bool, upper: bool, tail: Callable[[bool], Tensor]) -> Tensor:
    """The tail of the side that the other becomes where the transform is decreasing."""
    if not torch.is_tensor(falling):
        return tail(upper ^ falling)
    if bool((falling == falling.flatten()[0]).all()):
        return tail(upper ^ bool(falling.flatten()[0]))
    return torch.where(falling, tail(not upper), tail(upper))

"""Tails and quantiles that are elementary, in torch's own operations, family by family.

Each tail is written so that the smaller one keeps its digits: no tail is one minus the other.
Johnson, Kotz & Balakrishnan (1994, 1995), Continuous univariate distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROOT_HALF, _ROOT_TWO = 0.5**0.5, 2**0.5


@dataclass(frozen=True)
class Law:
    """Tails of a family and their inverses.

    Args:
        tail: ``tail(dist, x, upper)``, for x inside the support: P(X > x) or P(X ≤ x).
        level: ``level(dist, p, upper)``, for 0 < p < 1: the x with that tail.
    """

    tail: Callable[[Any, Tensor, bool], Tensor]
    level: Callable[[Any, Tensor, bool], Tensor]


def located(
    tail: Callable[[Tensor, bool], Tensor], level: Callable[[Tensor, bool], Tensor]
) -> Law:
    """A family with location and scale, of its standard member."""

    def moved_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
        return tail((x - d.loc.double()) / d.scale.double(), upper)

    def moved_level(d: Any, p: Tensor, upper: bool) -> Tensor:
        return d.loc.double() + d.scale.double() * level(p, upper)

    return Law(moved_tail, moved_level)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − e^x), x < 0 (Mächler, 2012, Accurately computing log(1 − exp(−|a|)))."""
    near = x > -math.log(2)
    small, large = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def normal_tail(z: Tensor, upper: bool) -> Tensor:
    """Of N(0, 1), by erfc: torch.special.ndtr loses the lower tail."""
    return 0.5 * torch.erfc(z * (_ROOT_HALF if upper else -_ROOT_HALF))


def normal_level(p: Tensor, upper: bool) -> Tensor:
    """Of N(0, 1)."""
    z = torch.special.ndtri(p)
    return -z if upper else z


def _laplace_tail(z: Tensor, upper: bool) -> Tensor:
    z = z if upper else -z
    far = 0.5 * (-z.abs()).exp()
    return torch.where(z >= 0, far, 1 - far)


def _laplace_level(p: Tensor, upper: bool) -> Tensor:
    below = p <= 0.5
    z = torch.where(below, -torch.log(2 * p), torch.log(2 * (1 - p)))
    return z if upper else -z


def _cauchy_tail(z: Tensor, upper: bool) -> Tensor:
    return torch.atan2(torch.ones_like(z), z if upper else -z) / math.pi


def _cauchy_level(p: Tensor, upper: bool) -> Tensor:
    below = p <= 0.5
    z = 1 / torch.tan(math.pi * torch.where(below, p, 1 - p))
    return torch.where(below, z, -z) if upper else torch.where(below, -z, z)


def _gumbel_tail(z: Tensor, upper: bool) -> Tensor:
    rate = (-z).exp()
    return -torch.expm1(-rate) if upper else (-rate).exp()


def _gumbel_level(p: Tensor, upper: bool) -> Tensor:
    return -(-(torch.log1p(-p) if upper else p.log())).log()


def logistic_tail(z: Tensor, upper: bool) -> Tensor:
    """Of the standard logistic distribution."""
    return torch.sigmoid(-z if upper else z)


def logistic_level(p: Tensor, upper: bool) -> Tensor:
    """Of the standard logistic distribution."""
    z = p.log() - torch.log1p(-p)
    return -z if upper else z


def _exponential_tail(t: Tensor, upper: bool) -> Tensor:
    return (-t).exp() if upper else -torch.expm1(-t)


def _exponential_level(p: Tensor, upper: bool) -> Tensor:
    return -p.log() if upper else -torch.log1p(-p)


def _half_normal_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    z = x / d.scale.double() * _ROOT_HALF
    return torch.erfc(z) if upper else torch.erf(z)


def _half_normal_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    z = -torch.special.ndtri(0.5 * p) if upper else _ROOT_TWO * torch.erfinv(p)
    return d.scale.double() * z


def _half_cauchy_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    scale = d.scale.double()
    return 2 / math.pi * (torch.atan2(scale, x) if upper else torch.atan2(x, scale))


def _half_cauchy_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    below = p <= 0.5
    small = torch.tan(0.5 * math.pi * torch.where(below, p, 1 - p))
    return d.scale.double() * torch.where(below == upper, 1 / small, small)


def _weibull_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    return _exponential_tail((x / d.scale.double()) ** d.concentration.double(), upper)


def _weibull_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    return d.scale.double() * _exponential_level(p, upper) ** (1 / d.concentration.double())


def _log_normal_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    return normal_tail((x.log() - d.loc.double()) / d.scale.double(), upper)


def _uniform_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    low, high = d.low.double(), d.high.double()
    return (high - x if upper else x - low) / (high - low)


def _uniform_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    low, high = d.low.double(), d.high.double()
    return high - p * (high - low) if upper else low + p * (high - low)


def _pareto_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    scale = d.scale.double()
    near = x.detach() < 2 * scale.detach()
    excess = torch.where(near, (x - scale) / scale, 1.0)
    return _exponential_tail(
        d.alpha.double() * torch.where(near, torch.log1p(excess), x.log() - scale.log()), upper
    )


def _kumaraswamy_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    a, b = d.concentration1.double(), d.concentration0.double()
    return _exponential_tail(-b * log1mexp(a * x.log()), upper)


def _kumaraswamy_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    a, b = d.concentration1.double(), d.concentration0.double()
    return (-torch.expm1(-_exponential_level(p, upper) / b)) ** (1 / a)


def _generalized_pareto_tail(d: Any, x: Tensor, upper: bool) -> Tensor:
    """As an exponential one of ln(1 + ξ z)/ξ."""
    z = (x - d.loc.double()) / d.scale.double()
    return _exponential_tail(generalized_pareto_hazard(z, d.concentration.double()), upper)


def generalized_pareto_hazard(z: Tensor, shape: Tensor) -> Tensor:
    """ln(1 + ξ z)/ξ, which is z where ξ is zero."""
    curved = shape != 0
    safe = torch.where(curved, shape, 1.0)
    return torch.where(curved, torch.log1p(safe * z) / safe, z)


def _generalized_pareto_level(d: Any, p: Tensor, upper: bool) -> Tensor:
    shape, hazard = d.concentration.double(), _exponential_level(p, upper)
    curved = shape != 0
    safe = torch.where(curved, shape, 1.0)
    z = torch.where(curved, torch.expm1(safe * hazard) / safe, hazard)
    return d.loc.double() + d.scale.double() * z


NORMAL = located(normal_tail, normal_level)
LAPLACE = located(_laplace_tail, _laplace_level)
CAUCHY = located(_cauchy_tail, _cauchy_level)
GUMBEL = located(_gumbel_tail, _gumbel_level)
EXPONENTIAL = Law(
    lambda d, x, upper: _exponential_tail(d.rate.double() * x, upper),
    lambda d, p, upper: _exponential_level(p, upper) / d.rate.double(),
)
HALF_NORMAL = Law(_half_normal_tail, _half_normal_level)
HALF_CAUCHY = Law(_half_cauchy_tail, _half_cauchy_level)
WEIBULL = Law(_weibull_tail, _weibull_level)
LOG_NORMAL = Law(_log_normal_tail, lambda d, p, upper: NORMAL.level(d, p, upper).exp())
UNIFORM = Law(_uniform_tail, _uniform_level)
PARETO = Law(
    _pareto_tail,
    lambda d, p, upper: d.scale.double() * (_exponential_level(p, upper) / d.alpha.double()).exp(),
)
GENERALIZED_PARETO = Law(_generalized_pareto_tail, _generalized_pareto_level)
KUMARASWAMY = Law(_kumaraswamy_tail, _kumaraswamy_level)

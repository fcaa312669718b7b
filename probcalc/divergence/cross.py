r"""KL(p‖q) of different families on the line, from moments of the first.

    KL(p‖q) = E_p[ln p(X)] − E_p[ln q(X)]

where ln q is a sum of few functions of x: its logarithm and the square of that, and powers. What
moments exist decides whether the divergence is finite. Johnson, Kotz & Balakrishnan (1994, 1995),
Continuous univariate distributions, for the moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.rebuild import in_double
from probcalc.divergence.gamma_functions import trigamma
from probcalc.divergence.kumaraswamy import kumaraswamy_terms
from probcalc.divergence.line import as_gamma, as_weibull

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of a positive variable.

    Args:
        mean_log: E ln X.
        var_log: Variance of ln X.
        power: E X^t, from t; infinite where it is.
    """

    mean_log: Tensor
    var_log: Tensor
    power: Callable[[Tensor | float], Tensor]


def cross_terms(p: td.Distribution, q: td.Distribution) -> list[Tensor] | None:
    """Terms whose sum is KL(p‖q), given that q covers p; None where they are not known."""
    p, q = in_double(p), in_double(q)
    if isinstance(q, td.Normal):
        return _to_normal(p, q)
    if isinstance(p, td.Kumaraswamy):
        return kumaraswamy_terms(p, q)
    moments = next((_MOMENTS[f] for f in type(p).__mro__ if f in _MOMENTS), None)
    costs = [next((_COSTS[f] for f in type(d).__mro__ if f in _COSTS), None) for d in (p, q)]
    if moments is None or None in costs:
        return None
    known = moments(p)
    mine, other = (cost(d, known) for cost, d in zip(costs, (p, q), strict=True))
    return [*other, *(-term for term in mine)]


def _to_normal(p: td.Distribution, q: td.Normal) -> list[Tensor] | None:
    """From mean, variance and entropy."""
    if p.event_shape or type(p) is td.TransformedDistribution:
        return None
    try:
        mean, variance, entropy = p.mean, p.variance, p.entropy()
    except (NotImplementedError, AttributeError):
        return None
    finite = mean.isfinite() & variance.isfinite()
    apart = torch.where(finite, mean, q.loc) - q.loc
    spread = torch.where(finite, variance, 0.0) + apart.square()
    spread = torch.where(finite, 0.5 * spread / q.scale.square(), math.inf)
    return [-entropy, _HALF_LOG_TWO_PI + q.scale.log(), spread]


def _of_gamma(d: Any) -> Moments:
    a, b = as_gamma(d)
    return Moments(torch.digamma(a) - b.log(), trigamma(a), lambda t: _gamma_power(a, t) * b**-t)


def _gamma_power(a: Tensor, t: Tensor | float) -> Tensor:
    """Γ(a + t)/Γ(a)."""
    return _where(a + t > 0, a + t, lambda c: (torch.lgamma(c) - torch.lgamma(a)).exp())


def _of_inverse_gamma(d: Any) -> Moments:
    a, b = d.concentration, d.rate
    power = lambda t: _gamma_power(a, -t) * b**t  # noqa: E731
    return Moments(b.log() - torch.digamma(a), trigamma(a), power)


def _of_weibull(d: Any) -> Moments:
    s, k = as_weibull(d)
    power = lambda t: s**t * _gamma_power(torch.ones_like(k), t / k)  # noqa: E731
    return Moments(s.log() - np.euler_gamma / k, math.pi**2 / 6 / k.square(), power)


def _of_log_normal(d: Any) -> Moments:
    m, s = d.loc, d.scale
    return Moments(m, s.square(), lambda t: (t * m + 0.5 * (t * s).square()).exp())


def _of_pareto(d: Any) -> Moments:
    x0, a = d.scale, d.alpha
    power = lambda t: _where(a - t > 0, a - t, lambda c: a / c) * x0**t  # noqa: E731
    return Moments(x0.log() + 1 / a, a.square().reciprocal(), power)


def _of_half_normal(d: Any) -> Moments:
    s = math.sqrt(2) * d.scale
    half = torch.full_like(s, 0.5)
    power = lambda t: _gamma_power(half, 0.5 * t) * s**t  # noqa: E731
    log = s.log() - 0.5 * (np.euler_gamma + 2 * math.log(2))
    return Moments(log, torch.full_like(s, math.pi**2 / 8), power)


def _of_beta(d: Any) -> Moments:
    a, n = d.concentration1, d.concentration1 + d.concentration0

    def power(t: Tensor | float) -> Tensor:
        value = lambda c: (  # noqa: E731
            torch.lgamma(c) - torch.lgamma(a) + torch.lgamma(n) - torch.lgamma(c - a + n)
        ).exp()
        return _where(a + t > 0, a + t, value)

    return Moments(torch.digamma(a) - torch.digamma(n), trigamma(a) - trigamma(n), power)


def _where(exists: Tensor, argument: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The value where it exists, else infinity, with safe gradients."""
    return torch.where(exists, value(torch.where(exists, argument, 1.0)), math.inf)


def _gamma_cost(d: Any, x: Moments) -> list[Tensor]:
    a, b = as_gamma(d)
    return [torch.lgamma(a), -a * b.log(), (1 - a) * x.mean_log, b * x.power(1.0)]


def _inverse_gamma_cost(d: Any, x: Moments) -> list[Tensor]:
    a, b = d.concentration, d.rate
    return [torch.lgamma(a), -a * b.log(), (a + 1) * x.mean_log, b * x.power(-1.0)]


def _weibull_cost(d: Any, x: Moments) -> list[Tensor]:
    s, k = as_weibull(d)
    return [-k.log(), k * s.log(), (1 - k) * x.mean_log, s**-k * x.power(k)]


def _log_normal_cost(d: Any, x: Moments) -> list[Tensor]:
    spread = (x.var_log + (x.mean_log - d.loc).square()) / (2 * d.scale.square())
    return [_HALF_LOG_TWO_PI + d.scale.log(), x.mean_log, spread]


def _pareto_cost(d: Any, x: Moments) -> list[Tensor]:
    return [-d.alpha.log(), -d.alpha * d.scale.log(), (d.alpha + 1) * x.mean_log]


def _half_normal_cost(d: Any, x: Moments) -> list[Tensor]:
    scale = math.log(math.pi / 2) / 2 + d.scale.log()
    return [scale, x.power(2.0) / (2 * d.scale.square())]


def _beta_cost(d: Any, x: Moments) -> list[Tensor]:
    """Of itself: what ln(1 − x) is, no other family says."""
    a, b = d.concentration1, d.concentration0
    log = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return [log, (1 - a) * x.mean_log, (1 - b) * (torch.digamma(b) - torch.digamma(a + b))]


_MOMENTS: dict[type, Callable[[Any], Moments]] = {
    td.Gamma: _of_gamma,
    td.Exponential: _of_gamma,
    td.InverseGamma: _of_inverse_gamma,
    td.Weibull: _of_weibull,
    td.LogNormal: _of_log_normal,
    td.Pareto: _of_pareto,
    td.HalfNormal: _of_half_normal,
    td.Beta: _of_beta,
}
_COSTS: dict[type, Callable[[Any, Moments], list[Tensor]]] = {
    td.Gamma: _gamma_cost,
    td.Exponential: _gamma_cost,
    td.InverseGamma: _inverse_gamma_cost,
    td.Weibull: _weibull_cost,
    td.LogNormal: _log_normal_cost,
    td.Pareto: _pareto_cost,
    td.HalfNormal: _half_normal_cost,
    td.Beta: _beta_cost,
}

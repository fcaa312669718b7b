r"""KL(p‖q) in closed form of different families on the line, term by term from parameters.

    KL(p‖q) = E_p[−ln q(X)] − H(p)

by the mean, the variance and E ln X of p, and its moment-generating function; the entropy H is
that of Johnson, Kotz & Balakrishnan (1994, 1995), Continuous univariate distributions. These are
the pairs that `cross` finds from moments too, written for large batches. As lists: what terms
cancel shows in the bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import any_below
from probcalc.divergence.formula import Formula, Parameters
from probcalc.divergence.gamma_functions import digamma_excess, lgamma_excess
from probcalc.divergence.line import as_gamma, loc_scale

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Known:
    """Of a distribution on the line.

    Args:
        mean: E X.
        variance: Of X, where it is asked for.
        width: The entropy is its logarithm,
        entropy: and these terms.
        mean_log: E ln X, of positive variables.
    """

    mean: Tensor
    variance: Callable[[], Tensor]
    width: Tensor
    entropy: tuple[Tensor, ...] = ()
    mean_log: Callable[[], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Cost:
    """E_p[−ln q].

    Args:
        width: It is its logarithm,
        terms: and these.
    """

    width: Tensor
    terms: tuple[Tensor, ...]


def _laplace(m: Tensor, b: Tensor) -> Known:
    return Known(m, lambda: 2 * b.square(), 2 * math.e * b)


def _normal(m: Tensor, s: Tensor) -> Known:
    return Known(m, s.square, math.sqrt(2 * math.pi * math.e) * s)


def _gumbel(m: Tensor, b: Tensor) -> Known:
    variance = lambda: (math.pi**2 / 6) * b.square()  # noqa: E731
    return Known(m + np.euler_gamma * b, variance, math.exp(1 + np.euler_gamma) * b)


def _exponential(r: Tensor) -> Known:
    mean = 1 / r
    return Known(mean, mean.square, math.e * mean, (), lambda: -np.euler_gamma - r.log())


def _gamma(a: Tensor, b: Tensor) -> Known:
    mean, digamma = a / b, digamma_excess(a)
    # ln Γ(a) + (1 − a) ψ(a) + a − ln b, in which a ln a cancels
    entropy = lgamma_excess(a) + (1 - a) * digamma
    mean_log = lambda: digamma + mean.log()  # noqa: E731
    return Known(mean, lambda: mean / b, mean, (entropy,), mean_log)


def _beta(a: Tensor, b: Tensor) -> Known:
    n = a + b
    digammas, lgammas = zip(*map(_gammas, (a, b, n)), strict=True)
    entropy = (
        lgammas[0] + lgammas[1] - lgammas[2],
        (1 - a) * (digammas[0] - digammas[2]),
        (1 - b) * (digammas[1] - digammas[2]),
    )
    mean = a / n
    variance = lambda: mean * (b / n) / (n + 1)  # noqa: E731
    return Known(mean, variance, torch.ones_like(mean), entropy, lambda: digammas[0] - digammas[2])


def _gammas(a: Tensor) -> tuple[Tensor, Tensor]:
    """ψ(a) and ln Γ(a)."""
    log = a.log()
    return digamma_excess(a) + log, lgamma_excess(a) + a * (log - 1)


def _pareto(x0: Tensor, a: Tensor) -> Known:
    inverse = 1 / a
    # what does not exist is infinite
    first = (a - 1).clamp(min=0.0)
    mean = a * x0 / first
    variance = lambda: mean * x0 / (first * (a - 2).clamp(min=0.0))  # noqa: E731
    return Known(mean, variance, x0 * inverse, (inverse + 1,), lambda: x0.log() + inverse)


def _to_normal(p: Known, m: Tensor, s: Tensor) -> Cost:
    terms = (0.5 * p.variance() / s.square(), 0.5 * ((p.mean - m) / s).square())
    return Cost(math.sqrt(2 * math.pi) * s, terms)


def _to_gamma(p: Known, a: Tensor, b: Tensor) -> Cost:
    assert p.mean_log is not None
    scale = a * ((a / b).log() - 1)  # ln Γ(a) = its excess + a ln a − a
    terms = (lgamma_excess(a), scale, (1 - a) * p.mean_log(), b * p.mean)
    return Cost(torch.ones_like(a), terms)


def _to_exponential(p: Known, r: Tensor) -> Cost:
    return Cost(1 / r, (r * p.mean,))


_sum_of = partial(Formula, cancels=True)


def _formula(
    known: Callable[..., Known],
    parameters: Parameters,
    cost: Callable[..., Cost],
    of_q: Parameters,
    count: int,
) -> Formula:
    """From what is known of p, and the cost of it under q; p has so many parameters."""

    def terms(*given: Tensor) -> list[Tensor]:
        p = known(*given[:count])
        its = cost(p, *given[count:])
        return [(its.width / p.width).log(), *its.terms, *(-t for t in p.entropy)]

    return _sum_of(terms, parameters, of_q)


def normal_to_laplace(m1: Tensor, s1: Tensor, m2: Tensor, b2: Tensor) -> list[Tensor]:
    """By E|X − m₂|."""
    apart, ratio = m1 - m2, s1 / b2
    z = apart / (math.sqrt(2) * s1)
    distance = math.sqrt(2 / math.pi) * (-z.square()).exp() + math.sqrt(2) * z * torch.erf(z)
    return [(math.sqrt(0.5 * math.pi * math.e) * ratio).log().neg(), ratio * distance]


def normal_to_gumbel(m1: Tensor, s1: Tensor, m2: Tensor, b2: Tensor) -> list[Tensor]:
    """By the moment-generating function."""
    z, ratio = (m1 - m2) / b2, s1 / b2
    width = math.sqrt(2 * math.pi * math.e) * ratio
    return [z, (0.5 * ratio.square() - z).exp(), -width.log()]


def gamma_to_gumbel(a: Tensor, b: Tensor, m: Tensor, s: Tensor) -> list[Tensor]:
    """By the moment-generating function, at −1/s."""
    p = _gamma(a, b)
    raised = (m / s - a * torch.log1p(1 / (b * s))).exp()
    return [(s / p.width).log(), (p.mean - m) / s, raised, *(-t for t in p.entropy)]


def exponential_to_gumbel(r: Tensor, m: Tensor, s: Tensor) -> list[Tensor]:
    """By the moment-generating function, at −1/s."""
    scaled, place = r * s, m / s
    raised = place.exp() * scaled / (scaled + 1)
    return [(scaled / math.e).log(), 1 / scaled, -place, raised]


def bernoulli_to_poisson(p: Tensor, r: Tensor) -> list[Tensor]:
    """Of which two counts only are met."""
    failure = 1 - p
    return [_weighted_log(p, p / r), _weighted_log(failure, failure), r]


def _weighted_log(p: Tensor, ratio: Tensor) -> Tensor:
    """The value p ln(ratio), zero where p is."""
    possible = not any_below(p, torch.finfo(p.dtype).tiny)
    return p * ratio.log() if possible else torch.special.xlogy(p, ratio)


_PARAMETERS: dict[type, tuple[Callable[..., Known], Parameters, int]] = {
    td.Normal: (_normal, loc_scale, 2),
    td.Laplace: (_laplace, loc_scale, 2),
    td.Gumbel: (_gumbel, loc_scale, 2),
    td.Exponential: (_exponential, lambda d: (d.rate,), 1),
    td.Gamma: (_gamma, as_gamma, 2),
    td.Beta: (_beta, lambda d: (d.concentration1, d.concentration0), 2),
    td.Pareto: (_pareto, lambda d: (d.scale, d.alpha), 2),
}
_COSTS: dict[type, tuple[Callable[..., Cost], Parameters, tuple[type, ...]]] = {
    td.Normal: (
        _to_normal,
        loc_scale,
        (td.Laplace, td.Gumbel, td.Exponential, td.Gamma, td.Beta, td.Pareto),
    ),
    td.Gamma: (_to_gamma, as_gamma, (td.Beta, td.Pareto)),
    td.Exponential: (_to_exponential, lambda d: (d.rate,), (td.Beta, td.Pareto)),
}


def _probs(d: Any) -> tuple[Tensor]:
    return (d.probs,)


FORMULAS = {
    **{
        (p, q): _formula(*_PARAMETERS[p][:2], cost, of_q, _PARAMETERS[p][2])
        for q, (cost, of_q, families) in _COSTS.items()
        for p in families
    },
    (td.Normal, td.Laplace): _sum_of(normal_to_laplace, loc_scale),
    (td.Normal, td.Gumbel): _sum_of(normal_to_gumbel, loc_scale),
    (td.Gamma, td.Gumbel): _sum_of(gamma_to_gumbel, as_gamma, loc_scale),
    (td.Exponential, td.Gumbel): _sum_of(exponential_to_gumbel, lambda d: (d.rate,), loc_scale),
    (td.Bernoulli, td.Poisson): _sum_of(
        bernoulli_to_poisson, _probs, lambda d: (d.rate,), applies=lambda p, q: "probs" in vars(p)
    ),
}

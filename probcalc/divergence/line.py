r"""KL(p‖q) in closed form of continuous families on the line and on the circle.

Written as sums of terms that are never negative and vanish one by one at p = q: see `remainders`.
Formulas: Gil, Alajaji & Linder (2013), Rényi divergence measures for commonly used univariate
continuous distributions, Information Sciences 249, table 3, rearranged; for the families that
are not there, the Bregman form of exponential families.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import any_below, computed_where
from probcalc.divergence.formula import Formula
from probcalc.divergence.remainders import (
    exp_gap,
    lgamma_gap_at_one,
    near_gap,
    ratio_gap,
    shape_gap,
)

_NEAR_CIRCLE, _NEAR_LOGIT = 0.1, 0.5


def normal(m1: Tensor, s1: Tensor, m2: Tensor, s2: Tensor) -> Tensor:
    """½ (t² − 1 − ln t²) + ½ z²."""
    return 0.5 * (ratio_gap((s1 / s2).square()) + ((m1 - m2) / s2).square())


def laplace(m1: Tensor, b1: Tensor, m2: Tensor, b2: Tensor) -> Tensor:
    """Scales, then places."""
    ratio, apart = b1 / b2, (m1 - m2).abs() / b1
    return ratio_gap(ratio) + ratio * exp_gap(-apart)


def cauchy(m1: Tensor, g1: Tensor, m2: Tensor, g2: Tensor) -> Tensor:
    """Chyzak & Nielsen (2019)."""
    distance = ((g1 - g2).square() + (m1 - m2).square()) / (4 * g1 * g2)
    return torch.log1p(distance)


def half_cauchy(g1: Tensor, g2: Tensor) -> Tensor:
    """As the Cauchy distributions of which they are the absolute values."""
    return torch.log1p((g1 - g2).square() / (4 * g1 * g2))


def half_normal(s1: Tensor, s2: Tensor) -> Tensor:
    """As the normal distributions of which they are the absolute values."""
    return 0.5 * ratio_gap((s1 / s2).square())


def gamma(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """What the means differ by, then what the shapes do."""
    return a2 * ratio_gap((a1 / a2) * (b2 / b1)) + shape_gap(a1, a2)


def _extreme(shift: Tensor, ratio: Tensor) -> Tensor:
    """Weibull and Gumbel: places in units of the second scale, and the first scale in it."""
    log_gamma = torch.lgamma(ratio)
    return exp_gap(shift + (log_gamma + ratio.log())) + lgamma_gap_at_one(ratio, log_gamma)


def weibull(s1: Tensor, k1: Tensor, s2: Tensor, k2: Tensor) -> Tensor:
    """Bauckhage (2013), arXiv:1310.3713, rearranged."""
    return _extreme(k2 * (s1 / s2).log(), k2 / k1)


def gumbel(m1: Tensor, b1: Tensor, m2: Tensor, b2: Tensor) -> Tensor:
    """Negative logarithms of Weibull variables."""
    return _extreme((m2 - m1) / b2, b1 / b2)


def pareto(x1: Tensor, a1: Tensor, x2: Tensor, a2: Tensor) -> Tensor:
    """Infinite where the first begins before the second."""
    started = a2 * (x1 / x2).log()
    return _inside(started, lambda room: ratio_gap(a2 / a1) + room)


def uniform(low1: Tensor, high1: Tensor, low2: Tensor, high2: Tensor) -> Tensor:
    """Infinite where the first is not inside the second."""
    below, above = low1 - low2, high2 - high1
    value = torch.log1p((below + above).clamp(min=0.0) / (high1 - low1))
    if not any_below(below, 0.0) and not any_below(above, 0.0):
        return value
    return torch.where((below >= 0) & (above >= 0), value, math.inf)


def _inside(room: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """From what room there is, where there is any; infinite elsewhere."""
    if not any_below(room, 0.0):
        return value(room)
    return torch.where(room >= 0, value(room.clamp(min=0.0)), math.inf)


def beta(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """As the Dirichlet distribution of two parts."""
    n1, n2 = a1 + b1, a2 + b2
    scale = n2 / n1
    means = a2 * ratio_gap(scale * a1 / a2) + b2 * ratio_gap(scale * b1 / b2)
    rest = shape_gap(a1, a2) + shape_gap(b1, b2) - shape_gap(n1, n2)
    return means + rest.clamp(min=0.0)


def dirichlet(a1: Tensor, a2: Tensor) -> Tensor:
    """Along the first axis: what the mean shares differ by, then what the concentrations do."""
    n1, n2 = a1.sum(dim=0), a2.sum(dim=0)
    means = (a2 * ratio_gap((n2 / n1) * a1 / a2)).sum(dim=0)
    rest = shape_gap(a1, a2).sum(dim=0) - shape_gap(n1, n2)
    return means + rest.clamp(min=0.0)


def von_mises(m1: Tensor, k1: Tensor, m2: Tensor, k2: Tensor) -> Tensor:
    """Concentrations, then directions; Mardia & Jupp (2000), section 3.5."""
    turn = torch.sin(0.5 * (m1 - m2)).square()
    return _bessel_gap(k1, k2) + 2 * _mean_resultant(k1) * k2 * turn


def _mean_resultant(k: Tensor) -> Tensor:
    return torch.special.i1e(k) / torch.special.i0e(k)


def _bessel_gap(a: Tensor, b: Tensor) -> Tensor:
    """Of ln I_0."""

    def curvature(k: Tensor) -> Tensor:
        mean = _mean_resultant(k)
        slope = torch.where(k > 1e-4, mean / torch.where(k > 1e-4, k, 1.0), 0.5)
        return 1 - slope - mean.square()

    def apart(a: Tensor, b: Tensor) -> Tensor:
        logs = (torch.special.i0e(b) / torch.special.i0e(a)).log()
        return (logs + (1 - _mean_resultant(a)) * (b - a)).clamp(min=0.0)

    a, b = torch.broadcast_tensors(a, b)
    near = (b - a).abs() <= _NEAR_CIRCLE * (1 + torch.minimum(a, b))
    return computed_where(near, lambda a, b: near_gap(a, b, curvature), apart(a, b), a, b)


def log_partition(x: Tensor) -> Tensor:
    """ln((e^x − 1)/x)."""
    # ln(2 sinh(x/2)/x) + x/2, even but for the last
    half = 0.5 * x.abs()
    safe = torch.where(half > 1e-3, half, 1.0)
    large = safe + torch.log1p(-torch.exp(-2 * safe)) - (2 * safe).log()
    small = half.square() / 6 - half**4 / 180
    return torch.where(half > 1e-3, large, small) + 0.5 * x


def continuous_bernoulli(l1: Tensor, l2: Tensor) -> Tensor:
    """Bregman divergence of ln((e^η − 1)/η), from logits."""

    def mean(x: Tensor) -> Tensor:
        half = 0.5 * x
        safe = torch.where(half.abs() > 1e-3, half, 1.0)
        large = 0.5 / torch.tanh(safe) - 0.5 / safe
        small = half / 6 - half**3 / 90
        return 0.5 + torch.where(half.abs() > 1e-3, large, small)

    def curvature(x: Tensor) -> Tensor:
        half = 0.5 * x
        safe = torch.where(half.abs() > 0.05, half, 1.0)
        large = 0.25 / safe.square() - 0.25 / torch.sinh(safe).square()
        square = half.square()
        small = 1 / 12 - square / 60 + square**2 / 378 - square**3 / 2700
        return torch.where(half.abs() > 0.05, large, small)

    a, b = torch.broadcast_tensors(l1, l2)
    apart = (log_partition(b) - log_partition(a) - mean(a) * (b - a)).clamp(min=0.0)
    near = (b - a).abs() <= _NEAR_LOGIT
    return computed_where(near, lambda a, b: near_gap(a, b, curvature), apart, a, b)


def loc_scale(d: Any) -> tuple[Tensor, ...]:
    """Of a family of places and scales."""
    return d.loc, d.scale


def as_gamma(d: Any) -> tuple[Tensor, ...]:
    """Shape and rate."""
    return (torch.ones_like(d.rate), d.rate) if isinstance(d, td.Exponential) else _shape_rate(d)


def as_weibull(d: Any) -> tuple[Tensor, ...]:
    """Scale and shape."""
    if isinstance(d, td.Exponential):
        return d.rate.reciprocal(), torch.ones_like(d.rate)
    return d.scale, d.concentration


def _shape_rate(d: Any) -> tuple[Tensor, ...]:
    return d.concentration, d.rate


def as_logit(d: Any) -> tuple[Tensor]:
    """Of a family of two outcomes, without loss where that is what it was given."""
    if "probs" not in vars(d):
        return (d.logits,)
    probs = d.probs.double()
    return (probs.log() - torch.log1p(-probs),)


_MEMORYLESS = td.Exponential
FORMULAS = {
    (td.Normal, td.Normal): Formula(normal, loc_scale),
    (td.LogNormal, td.LogNormal): Formula(normal, loc_scale),
    (td.Laplace, td.Laplace): Formula(laplace, loc_scale),
    (td.Cauchy, td.Cauchy): Formula(cauchy, loc_scale),
    (td.HalfCauchy, td.HalfCauchy): Formula(half_cauchy, lambda d: (d.scale,)),
    (td.HalfNormal, td.HalfNormal): Formula(half_normal, lambda d: (d.scale,)),
    (_MEMORYLESS, _MEMORYLESS): Formula(lambda r1, r2: ratio_gap(r2 / r1), lambda d: (d.rate,)),
    (_MEMORYLESS, td.Gamma): Formula(gamma, as_gamma),
    (td.Gamma, _MEMORYLESS): Formula(gamma, as_gamma),
    (td.Gamma, td.Gamma): Formula(gamma, as_gamma),
    (td.InverseGamma, td.InverseGamma): Formula(gamma, _shape_rate),
    (td.Weibull, td.Weibull): Formula(weibull, as_weibull),
    (_MEMORYLESS, td.Weibull): Formula(weibull, as_weibull),
    (td.Weibull, _MEMORYLESS): Formula(weibull, as_weibull),
    (td.Gumbel, td.Gumbel): Formula(gumbel, loc_scale),
    (td.Pareto, td.Pareto): Formula(pareto, lambda d: (d.scale, d.alpha)),
    (td.Uniform, td.Uniform): Formula(uniform, lambda d: (d.low, d.high)),
    (td.Beta, td.Beta): Formula(beta, lambda d: (d.concentration1, d.concentration0)),
    (td.VonMises, td.VonMises): Formula(von_mises, lambda d: (d.loc, d.concentration)),
    (td.ContinuousBernoulli, td.ContinuousBernoulli): Formula(continuous_bernoulli, as_logit),
}

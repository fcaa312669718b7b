"""Raw moments E[X^k] in closed form, with rules for when they exist.

Johnson, Kotz & Balakrishnan (1994, 1995), Continuous univariate distributions, and Johnson, Kemp
& Kotz (2005), Univariate discrete distributions, family by family.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import zeta
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.families import is_point_mass


def raw_moment(dist: td.Distribution, order: int) -> Float[Tensor, "*batch"]:
    """E[X^k]: a number, ±inf where the integral is infinite, NaN where it has no value.

    Args:
        dist: A distribution whose draws are numbers.
        order: k, at least 0.

    Returns:
        Moments of the batch's shape, differentiable in the parameters.

    Raises:
        NotImplementedError: If no formula is known for the family.
        ValueError: If the order is negative.
    """
    if order < 0:
        raise ValueError(f"`order` must be at least 0, got {order}.")
    if is_point_mass(dist):
        return dist.v**order
    if type(dist) is td.TransformedDistribution:
        return _affine(dist, order)
    for family in type(dist).__mro__:
        if family in _MOMENTS:
            return _MOMENTS[family](dist, order)
    known = ", ".join(sorted(f.__name__ for f in _MOMENTS))
    raise NotImplementedError(f"no moments of {type(dist).__name__}; known: {known}.")


def _shifted(
    loc: Tensor, scale: Tensor, standard: Callable[[int], Tensor | float], order: int
) -> Tensor:
    """E[(μ + σZ)^k] from the moments of Z."""
    terms = [
        math.comb(order, j) * loc ** (order - j) * scale**j * standard(j)
        for j in range(order + 1)
        if j == 0 or not _is_zero(standard(j))
    ]
    total = torch.stack(torch.broadcast_tensors(*terms)).sum(dim=0)
    # an infinite highest moment outweighs lower ones, also those that are undefined
    highest = scale**order * standard(order)
    return torch.where(highest.isinf(), highest, total)


def _affine(dist: td.TransformedDistribution, order: int) -> Tensor:
    """Of μ + σZ, for any Z whose moments are known."""
    if not all(isinstance(t, td.AffineTransform) for t in dist.transforms):
        raise NotImplementedError(f"no moments under {dist.transforms}; known: affine transforms.")
    base = [raw_moment(dist.base_dist, j) for j in range(order + 1)]
    loc, scale = torch.zeros_like(base[0]), torch.ones_like(base[0])
    for t in dist.transforms:
        loc, scale = t.loc + t.scale * loc, t.scale * scale
    return _shifted(loc, scale, lambda j: base[j], order)


def _mixture(dist: td.MixtureSameFamily, order: int) -> Tensor:
    weights = dist.mixture_distribution.probs
    return (weights * raw_moment(dist.component_distribution, order)).sum(dim=-1)


def _gumbel(j: int) -> float:
    """From the cumulants γ and (n − 1)! ζ(n)."""
    moments = [1.0]
    for n in range(1, j + 1):
        moments.append(
            sum(
                math.comb(n - 1, i) * _gumbel_cumulant(i + 1) * moments[n - 1 - i]
                for i in range(n)
            )
        )
    return moments[j]


def _gumbel_cumulant(n: int) -> float:
    return np.euler_gamma if n == 1 else math.factorial(n - 1) * float(zeta(n))


def _f(d: td.FisherSnedecor, k: int) -> Tensor:
    a = 0.5 * d.df1

    def value(b: Tensor) -> Tensor:
        logs = torch.lgamma(a + k) - torch.lgamma(a) + torch.lgamma(b - k) - torch.lgamma(b)
        return logs.exp() * (b / a) ** k

    return _where_above(0.5 * d.df2, k, value)


def _kumaraswamy(d: td.Kumaraswamy, k: int) -> Tensor:
    a, b = d.concentration1, d.concentration0
    return (torch.lgamma(1 + k / a) + torch.lgamma(b + 1) - torch.lgamma(1 + k / a + b)).exp()


def _is_zero(moment: Tensor | float) -> bool:
    return not torch.is_tensor(moment) and moment == 0


def _normal(j: int) -> float:
    return 0.0 if j % 2 else float(math.prod(range(1, j, 2)))


def _student_t(df: Tensor) -> Callable[[int], Tensor | float]:
    def moment(j: int) -> Tensor | float:
        if j == 0:
            return 1.0
        if j % 2:  # zero while E|Z|^j is finite
            return torch.where(df > j, 0.0, math.nan)
        half = df.clamp(min=j + 1e-9)
        log = (
            0.5 * j * df.log()
            + math.lgamma((j + 1) / 2)
            + torch.lgamma((half - j) / 2)
            - 0.5 * math.log(math.pi)
            - torch.lgamma(half / 2)
        )
        return torch.where(df > j, log.exp(), math.inf)

    return moment


def _where_above(bound: Tensor, order: int, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The value where the parameter is above the order, else infinity, with safe gradients."""
    exists = bound > order
    return torch.where(exists, value(torch.where(exists, bound, order + 1.0)), math.inf)


def _gamma(d: td.Gamma, k: int) -> Tensor:
    return (torch.lgamma(d.concentration + k) - torch.lgamma(d.concentration)).exp() / d.rate**k


def _inverse_gamma(d: td.InverseGamma, k: int) -> Tensor:
    def value(a: Tensor) -> Tensor:
        return (torch.lgamma(a - k) - torch.lgamma(a)).exp() * d.rate**k

    return _where_above(d.concentration, k, value)


def _beta(d: td.Beta, k: int) -> Tensor:
    a, total = d.concentration1, d.concentration1 + d.concentration0
    terms = [(a + j) / (total + j) for j in range(k)]
    return torch.stack(terms).prod(dim=0) if terms else torch.ones_like(a)


def _uniform(d: td.Uniform, k: int) -> Tensor:
    # Σ a^j b^(k−j) / (k + 1): no difference of powers to cancel
    return torch.stack([d.low**j * d.high ** (k - j) for j in range(k + 1)]).mean(dim=0)


def _factorial_moments(factorial: Callable[[int], Tensor], k: int) -> Tensor:
    """Raw moment from factorial ones, by Stirling numbers of the second kind."""
    row = [1]
    for _ in range(k):
        row = _next_stirling(row)
    return torch.stack([s * factorial(j) for j, s in enumerate(row)]).sum(dim=0)


def _next_stirling(row: list[int]) -> list[int]:
    padded = [*row, 0]
    return [j * padded[j] + (padded[j - 1] if j else 0) for j in range(len(padded))]


def _falling(n: Tensor, j: int) -> Tensor:
    return torch.stack([n - i for i in range(j)]).prod(dim=0) if j else torch.ones_like(n)


def _rising(n: Tensor, j: int) -> Tensor:
    return torch.stack([n + i for i in range(j)]).prod(dim=0) if j else torch.ones_like(n)


_MOMENTS: dict[type[td.Distribution], Callable[..., Tensor]] = {
    td.Normal: lambda d, k: _shifted(d.loc, d.scale, _normal, k),
    td.LogNormal: lambda d, k: (k * d.loc + 0.5 * (k * d.scale).square()).exp(),
    td.HalfNormal: lambda d, k: (
        d.scale**k * 2 ** (k / 2) * math.gamma((k + 1) / 2) / math.sqrt(math.pi)
    ),
    td.Gamma: _gamma,
    td.InverseGamma: _inverse_gamma,
    td.Exponential: lambda d, k: math.factorial(k) / d.rate**k,
    td.Weibull: lambda d, k: d.scale**k * torch.lgamma(1 + k / d.concentration).exp(),
    td.Beta: _beta,
    td.StudentT: lambda d, k: _shifted(d.loc, d.scale, _student_t(d.df), k),
    td.FisherSnedecor: _f,
    td.Gumbel: lambda d, k: _shifted(d.loc, d.scale, _gumbel, k),
    td.Kumaraswamy: _kumaraswamy,
    td.MixtureSameFamily: _mixture,
    td.Cauchy: lambda d, k: torch.full_like(
        d.loc, 1.0 if k == 0 else math.nan if k % 2 else math.inf
    ),
    td.HalfCauchy: lambda d, k: torch.full_like(d.scale, math.inf if k else 1.0),
    td.Laplace: lambda d, k: _shifted(
        d.loc, d.scale, lambda j: 0.0 if j % 2 else float(math.factorial(j)), k
    ),
    td.Uniform: _uniform,
    td.Pareto: lambda d, k: _where_above(d.alpha, k, lambda a: a / (a - k)) * d.scale**k,
    td.Bernoulli: lambda d, k: d.probs if k else torch.ones_like(d.probs),
    td.Poisson: lambda d, k: _factorial_moments(lambda j: d.rate**j, k),
    td.Binomial: lambda d, k: _factorial_moments(
        lambda j: _falling(d.total_count, j) * d.probs**j, k
    ),
    td.NegativeBinomial: lambda d, k: _factorial_moments(
        lambda j: _rising(d.total_count, j) * d.logits.exp() ** j, k
    ),
    td.Geometric: lambda d, k: _factorial_moments(
        lambda j: math.factorial(j) * ((1 - d.probs) / d.probs) ** j, k
    ),
}

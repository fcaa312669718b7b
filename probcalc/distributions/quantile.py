"""Quantiles of distributions on the line, from either tail.

Numbers come from SciPy's distributions, which are accurate in both tails; transformed
distributions carry them through, mixtures bisect between those of their components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats as st
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.support import support_of

_BISECTIONS = 200  # halvings of the bracket of a mixture; float64 has fewer numbers


def _n(t: Tensor) -> np.ndarray:
    while torch._C._functorch.is_gradtrackingtensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    with torch._C._DisableFuncTorch():  # which would wrap the result again
        return t.detach().double().cpu().numpy()


@dataclass(frozen=True)
class _Beta:
    """Straight to the special functions: SciPy's distribution warns where its search gives up."""

    a: np.ndarray
    b: np.ndarray

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return special.betainc(self.a, self.b, np.clip(x, 0, 1))

    def sf(self, x: np.ndarray) -> np.ndarray:
        return special.betaincc(self.a, self.b, np.clip(x, 0, 1))

    def ppf(self, p: np.ndarray) -> np.ndarray:
        return special.betaincinv(self.a, self.b, p)

    def isf(self, p: np.ndarray) -> np.ndarray:
        return special.betainccinv(self.a, self.b, p)


@dataclass(frozen=True)
class _F:
    """Through the beta distribution of whichever tail is small; SciPy's loses it."""

    d1: np.ndarray
    d2: np.ndarray

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return st.f(self.d1, self.d2).cdf(x)

    def sf(self, x: np.ndarray) -> np.ndarray:
        return st.f(self.d1, self.d2).sf(x)

    def ppf(self, p: np.ndarray) -> np.ndarray:
        y = special.betaincinv(self.d1 / 2, self.d2 / 2, p)
        return self.d2 / self.d1 * y / (1 - y)

    def isf(self, p: np.ndarray) -> np.ndarray:
        w = special.betaincinv(self.d2 / 2, self.d1 / 2, p)
        return self.d2 / self.d1 * (1 - w) / w


@dataclass(frozen=True)
class _HalfNormal:
    """erf and its inverse keep the lower tail."""

    scale: np.ndarray

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return special.erf(np.maximum(x, 0) / (self.scale * 2**0.5))

    def sf(self, x: np.ndarray) -> np.ndarray:
        return special.erfc(np.maximum(x, 0) / (self.scale * 2**0.5))

    def ppf(self, p: np.ndarray) -> np.ndarray:
        return self.scale * 2**0.5 * special.erfinv(p)

    def isf(self, p: np.ndarray) -> np.ndarray:
        return -self.scale * special.ndtri(0.5 * p)


@dataclass(frozen=True)
class _Kumaraswamy:
    """F = 1 − (1 − x^a)^b."""

    a: np.ndarray
    b: np.ndarray

    def cdf(self, x: np.ndarray) -> np.ndarray:
        return -np.expm1(self.b * np.log1p(-(np.clip(x, 0, 1) ** self.a)))

    def sf(self, x: np.ndarray) -> np.ndarray:
        return (1 - np.clip(x, 0, 1) ** self.a) ** self.b

    def ppf(self, p: np.ndarray) -> np.ndarray:
        return (-np.expm1(np.log1p(-p) / self.b)) ** (1 / self.a)

    def isf(self, p: np.ndarray) -> np.ndarray:
        return (1 - p ** (1 / self.b)) ** (1 / self.a)


# family -> distribution and survival function and their inverses, SciPy's where it keeps tails
FROZEN: dict[type[td.Distribution], Callable[[td.Distribution], Any]] = {
    td.Normal: lambda d: st.norm(_n(d.loc), _n(d.scale)),
    td.HalfNormal: lambda d: _HalfNormal(_n(d.scale)),
    td.Gamma: lambda d: st.gamma(_n(d.concentration), scale=1 / _n(d.rate)),
    td.InverseGamma: lambda d: st.invgamma(_n(d.concentration), scale=_n(d.rate)),
    td.Exponential: lambda d: st.expon(scale=1 / _n(d.rate)),
    td.Weibull: lambda d: st.weibull_min(_n(d.concentration), scale=_n(d.scale)),
    td.Beta: lambda d: _Beta(_n(d.concentration1), _n(d.concentration0)),
    td.StudentT: lambda d: st.t(_n(d.df), _n(d.loc), _n(d.scale)),
    td.FisherSnedecor: lambda d: _F(_n(d.df1), _n(d.df2)),
    td.Kumaraswamy: lambda d: _Kumaraswamy(_n(d.concentration1), _n(d.concentration0)),
    td.Cauchy: lambda d: st.cauchy(_n(d.loc), _n(d.scale)),
    td.HalfCauchy: lambda d: st.halfcauchy(0, _n(d.scale)),
    td.Laplace: lambda d: st.laplace(_n(d.loc), _n(d.scale)),
    td.Gumbel: lambda d: st.gumbel_r(_n(d.loc), _n(d.scale)),
    td.Uniform: lambda d: st.uniform(_n(d.low), _n(d.high - d.low)),
    td.Pareto: lambda d: st.pareto(_n(d.alpha), scale=_n(d.scale)),
    td.Bernoulli: lambda d: st.bernoulli(_n(d.probs)),
    td.Binomial: lambda d: st.binom(_n(d.total_count), _n(d.probs)),
    td.Geometric: lambda d: st.geom(_n(d.probs), loc=-1),
    td.NegativeBinomial: lambda d: st.nbinom(_n(d.total_count), _n(1 - d.probs)),
    td.Poisson: lambda d: st.poisson(_n(d.rate)),
}


def quantile(
    dist: td.Distribution, p: Float[Tensor, "*p"], *, upper: bool = False
) -> Float[Tensor, "*out"]:
    """Smallest x with P(X ≤ x) ≥ p, or with P(X > x) ≤ p from the upper tail.

    Args:
        dist: A distribution whose draws are numbers.
        p: Probabilities, broadcast with the batch.
        upper: Count from the upper tail, which keeps its precision down to 1e-300.

    Returns:
        Quantiles in float64, without gradients.

    Raises:
        NotImplementedError: If the family is unknown.
    """
    with torch.no_grad():
        p = p.detach().double()
        if isinstance(dist, td.MixtureSameFamily):
            return _of_mixture(dist, p, upper)
        if isinstance(dist, td.TransformedDistribution) and type(dist) not in FROZEN:
            return _through(dist, p, upper)
        frozen, levels = _frozen(dist), _n(p)
        if upper and isinstance(getattr(frozen, "dist", None), st.rv_discrete):
            found = _integer_above(frozen, levels)
        else:
            found = frozen.isf(levels) if upper else frozen.ppf(levels)
        return torch.as_tensor(found, dtype=torch.float64, device=p.device)


def _integer_above(frozen: Any, p: np.ndarray) -> np.ndarray:
    """Smallest integer k with P(X > k) ≤ p: SciPy's own counts from the other tail."""
    lowest = frozen.support()[0]
    step = np.ones(np.broadcast(p, frozen.mean()).shape)
    while (frozen.sf(lowest + step) > p).any():
        step = np.where(frozen.sf(lowest + step) > p, 2 * step, step)
    lo, hi = np.broadcast_to(lowest - 1, step.shape), lowest + step
    while (hi - lo > 1).any():
        middle = np.floor(0.5 * (lo + hi))
        beyond = frozen.sf(middle) <= p
        lo, hi = np.where(beyond, lo, middle), np.where(beyond, middle, hi)
    return hi


def _frozen(dist: td.Distribution) -> Any:
    for family in type(dist).__mro__:
        if family in FROZEN:
            return FROZEN[family](dist)
    known = ", ".join(sorted(f.__name__ for f in FROZEN))
    raise NotImplementedError(f"no quantiles of {type(dist).__name__}; known: {known}.")


def _through(dist: td.TransformedDistribution, p: Tensor, upper: bool) -> Tensor:
    for transform in dist.transforms:
        if not transform.bijective or transform.sign is NotImplemented:
            raise NotImplementedError(f"{transform} is not monotone.")
        falling = torch.as_tensor(transform.sign) < 0
        if bool(falling.any()) and not bool(falling.all()):
            raise NotImplementedError("a transform rises for some elements and falls for others.")
        upper ^= bool(falling.all())
    x = quantile(dist.base_dist, p, upper=upper)
    for transform in dist.transforms:
        x = transform(x)
    return x


def _of_mixture(dist: td.MixtureSameFamily, p: Tensor, upper: bool) -> Tensor:
    """Bisection between the smallest and the largest of the components' quantiles."""
    parts = dist.component_distribution
    weights = dist.mixture_distribution.probs.double()
    x = quantile(parts, p[..., None], upper=upper)
    lo, hi = x.amin(dim=-1), x.amax(dim=-1)
    discrete = support_of(dist).discrete
    for _ in range(_BISECTIONS):
        middle = 0.5 * (lo + hi)
        middle = middle.floor() if discrete else middle
        tail = (weights * tail_probability(parts, middle[..., None], upper)).sum(dim=-1)
        beyond = tail <= p if upper else tail >= p
        lo = torch.where(beyond, lo, middle + 1 if discrete else middle)
        hi = torch.where(beyond, middle, hi)
        if bool((lo >= hi).all()):
            break
    return hi


def tail_probability(dist: td.Distribution, x: Tensor, upper: bool) -> Float[Tensor, "*out"]:
    """P(X > x), or P(X ≤ x), without gradients."""
    if isinstance(dist, td.TransformedDistribution) and type(dist) not in FROZEN:
        for transform in reversed(dist.transforms):
            upper ^= bool((torch.as_tensor(transform.sign) < 0).all())
            x = transform.inv(x)
        return tail_probability(dist.base_dist, x, upper)
    frozen = _frozen(dist)
    found = frozen.sf(_n(x)) if upper else frozen.cdf(_n(x))
    return torch.as_tensor(found, dtype=torch.float64, device=x.device)

"""Targets of one to three dimensions on which error bars are counted, with their exact moments.

The truth of the ELBO of a guide is a quadrature over the unconstrained space, in coordinates that
are whitened and then stretched by a hyperbolic sine, so that tails of any weight are covered:

    E_q[f] = ∫ f(z) q(z) dz,     z = m + L sinh(u),     trapezoids in u

Trefethen & Weideman (2014), The exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pyro.distributions as dist
import torch
from problems.hard_targets import (
    Hard,
    banana,
    distribution,
    flat,
    laplace_prior,
    modes,
    no_success,
    poisson_rate,
    row,
    separated_with_prior,
    student_t,
)
from torch import Tensor
from torch.distributions import Beta, Gamma, Independent, LogNormal

from probcalc import Posterior, Target

_REACH, _POINTS = 7.0, {1: 2001, 2: 161}  # of u, and trapezoids along every axis


def grid(centre: Tensor, root: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(n, d)`` and log weights of the rule over the whole space."""
    d = len(centre)
    u = torch.linspace(-_REACH, _REACH, points, dtype=torch.float64)
    log_step = math.log(float(u[1] - u[0])) + torch.cosh(u).log()
    nodes = torch.cartesian_prod(*[u.sinh()] * d).reshape(-1, d)
    log_weights = sum(torch.meshgrid(*[log_step] * d, indexing="ij")).flatten()
    return centre + nodes @ root.mT, log_weights + root.diagonal().log().sum()


def exact_elbo(posterior: Posterior) -> float:
    """ELBO of a posterior's own guide; nan above two dimensions, or where it is another's."""
    guide, params, target = posterior.guide, posterior.params, posterior.target
    if target.dim not in _POINTS or posterior.elbo_terms is not None:
        return math.nan
    loc, cov = guide.moments(params)
    z, log_w = grid(loc, torch.linalg.cholesky(cov), _POINTS[target.dim])
    log_q = guide.log_prob(params, z)
    ratio = target.log_density(z) - log_q
    mass = (log_q + log_w).exp()
    assert abs(float(mass.sum()) - 1) < 1e-6, "the rule misses a part of the guide"
    return float(torch.where(mass > 0, mass * ratio, 0.0).sum())


def unequal_modes() -> Hard:
    return modes([-4.0, 3.0], [0.4, 0.6], [1.0, 0.7])


def two_coefficients() -> Hard:
    """Logistic regression of twelve points, N(0, 2²) coefficients: a skew posterior."""
    x = np.linspace(-1.5, 2.0, 12)
    X = torch.as_tensor(np.stack([np.ones(12), x], axis=1))
    sign = torch.as_tensor(np.where(x + 0.4 * np.sin(7 * x) > 0.2, 1.0, -1.0))

    def log_prob(b: Tensor) -> Tensor:
        prior = dist.Normal(0.0, 2.0).log_prob(b).sum(dim=-1)
        return prior + torch.nn.functional.logsigmoid(sign * (b @ X.mT)).sum(dim=-1)

    z, log_w = grid(row(0.0, 0.0), torch.eye(2, dtype=torch.float64), 801)
    terms = log_prob(z) + log_w
    w = terms.softmax(dim=0)
    mean = w @ z
    std = (w @ (z - mean).square()).sqrt()
    return Hard(flat(log_prob, 2), {"x": mean}, {"x": std}, float(terms.logsumexp(dim=0)))


def gammas() -> Hard:
    """Three independent rates of different skewness."""
    shape, rate = row(3.0, 8.0, 20.0), row(1.0, 2.0, 10.0)
    return distribution(Independent(Gamma(shape, rate), 1))


def proportions() -> Hard:
    """A point of the simplex, Dirichlet."""
    return distribution(torch.distributions.Dirichlet(row(11.0, 5.0, 8.0)))


def probability() -> Hard:
    return distribution(Beta(row(10.0)[0], row(2.0)[0]))


def log_normal() -> Hard:
    return distribution(LogNormal(row(0.3)[0], row(0.4)[0]))


@cache
def built(name: str) -> tuple[Hard, Target]:
    """A case and its traced target."""
    case = CASES[name]()
    return case, case.target()


CASES: dict[str, Callable[[], Hard]] = {
    "Poisson rate": poisson_rate,
    "probability": probability,
    "no success": no_success,
    "log-normal": log_normal,
    "Laplace prior": laplace_prior,
    "slope": separated_with_prior,
    "two modes": unequal_modes,
    "Student t(5)": lambda: student_t(5.0),
    "proportions": proportions,
    "two coefficients": two_coefficients,
    "banana": lambda: banana(0.3, 1.0),
    "gammas": gammas,
}

"""Targets whose posterior is known exactly: means, sds and log evidence in closed form.

Each case is a function of no arguments, so that targets are only traced by tests that use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from scipy.special import betaln, gammaln
from torch import Tensor
from torch.distributions import constraints

from probcalc import Target


@dataclass(frozen=True)
class Problem:
    """A target with its exact posterior; `gaussian` where the approximation can be exact."""

    target: Callable[[], Target]
    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    log_evidence: float
    gaussian: bool = False


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def far_observation() -> Problem:
    """x ~ N(0, 1), 10 observed from N(x, 0.5): the prior and the datum are far apart."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=scalar(10.0))

    log_z = -0.5 * math.log(2 * math.pi * 1.25) - 0.5 * 100 / 1.25
    return Problem(
        lambda: Target.from_pyro(model), {"x": scalar(8.0)}, {"x": scalar(0.2**0.5)}, log_z, True
    )


def gaussian_mean() -> Problem:
    """Mean of 20 observations with known noise."""
    y = torch.linspace(-1.0, 2.5, 20, dtype=torch.float64)
    precision = 1 / 3.0**2 + len(y) / 0.7**2
    cov = 0.7**2 * torch.eye(20, dtype=torch.float64) + 3.0**2
    log_z = torch.distributions.MultivariateNormal(torch.zeros(20).double(), cov).log_prob(y)
    target = lambda: Target.from_function(
        lambda v: dist.Normal(0.0, 3.0).log_prob(v["m"]),
        {"m": ()},
        log_likelihood=lambda v, row: dist.Normal(v["m"], 0.7).log_prob(row),
        data=y,
    )
    mean = y.sum() / 0.7**2 / precision
    return Problem(
        target, {"m": mean}, {"m": scalar(precision**-0.5)}, float(log_z), gaussian=True
    )


def linear_regression() -> Problem:
    """Correlated Gaussian posterior of coefficients, known noise."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    X[:, 2] = X[:, 1] + 0.1 * X[:, 2]  # nearly collinear
    y = X @ tensor(1.0, -2.0, 0.5) + 0.3 * torch.randn(30, generator=generator).double()

    def model(X, y):
        beta = pyro.sample("beta", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(X @ beta, 0.3), obs=y)

    precision = torch.eye(3).double() / 4 + X.T @ X / 0.09
    cov = torch.linalg.inv(precision)
    marginal = 0.09 * torch.eye(30).double() + 4 * X @ X.T
    log_z = torch.distributions.MultivariateNormal(torch.zeros(30).double(), marginal).log_prob(y)
    return Problem(
        lambda: Target.from_pyro(model, X, y),
        {"beta": cov @ X.T @ y / 0.09},
        {"beta": cov.diagonal().sqrt()},
        float(log_z),
        gaussian=True,
    )


def correlated_gaussian() -> Problem:
    """A torch distribution as the target, correlation 0.95."""
    cov = torch.tensor([[1.0, 0.95, 0.2], [0.95, 1.0, 0.1], [0.2, 0.1, 4.0]]).double()
    normal = torch.distributions.MultivariateNormal(tensor(1.0, -2.0, 30.0), cov)
    return Problem(
        lambda: Target.from_distribution(normal),
        {"x": normal.mean},
        {"x": normal.stddev},
        0.0,
        gaussian=True,
    )


def poisson_rate() -> Problem:
    """Gamma prior, Poisson counts: a skewed posterior on the positive half-line."""
    y = tensor(3.0, 1.0, 4.0, 1.0, 5.0)
    a, b = 2.0 + float(y.sum()), 1.0 + len(y)

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    log_z = gammaln(a) - gammaln(2.0) - a * math.log(b) - gammaln(y.numpy() + 1).sum()
    return Problem(
        lambda: Target.from_pyro(model, y),
        {"rate": scalar(a / b)},
        {"rate": scalar(a**0.5 / b)},
        float(log_z),
    )


def success_probability() -> Problem:
    """Beta prior, Bernoulli data: a posterior on the unit interval, near its edge."""
    y = tensor(*[1.0] * 9, 0.0)
    a, b = 1.0 + 9, 1.0 + 1
    target = lambda: Target.from_function(
        lambda v: dist.Beta(1.0, 1.0).log_prob(v["p"]),
        {"p": ()},
        {"p": constraints.unit_interval},
        log_likelihood=lambda v, row: dist.Bernoulli(v["p"]).log_prob(row),
        data=y,
    )
    exact = torch.distributions.Beta(scalar(a), scalar(b))
    log_z = float(betaln(a, b) - betaln(1.0, 1.0))
    return Problem(target, {"p": exact.mean}, {"p": exact.stddev}, log_z)


def proportions() -> Problem:
    """Dirichlet prior, multinomial counts: a posterior on the simplex."""
    counts, prior = tensor(10.0, 3.0, 7.0), tensor(1.0, 2.0, 1.0)

    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(prior))
        pyro.sample("counts", dist.Multinomial(20, p), obs=counts)

    exact = torch.distributions.Dirichlet(prior + counts)
    log_z = (
        gammaln(21.0)
        - gammaln(counts.numpy() + 1).sum()
        + gammaln(4.0)
        - gammaln(24.0)
        + (gammaln((prior + counts).numpy()) - gammaln(prior.numpy())).sum()
    )
    return Problem(
        lambda: Target.from_pyro(model, counts),
        {"p": exact.mean},
        {"p": exact.variance.sqrt()},
        float(log_z),
    )


def log_normal() -> Problem:
    """Gaussian on the unconstrained scale, skewed on the constrained one."""
    exact = torch.distributions.LogNormal(scalar(0.3), scalar(0.4))
    return Problem(
        lambda: Target.from_distribution(exact), {"x": exact.mean}, {"x": exact.stddev}, 0.0
    )


def two_modes() -> Problem:
    """Two equal, well separated modes: a second one must be looked for."""

    def log_prob(x):
        return torch.logsumexp(torch.stack([-0.5 * (x - 4.0) ** 2, -0.5 * (x + 4.0) ** 2]), 0)[0]

    return Problem(
        lambda: Target.from_log_density(log_prob, 1),
        {"x": tensor(0.0)},
        {"x": tensor(17.0**0.5)},
        math.log(2 * math.sqrt(2 * math.pi)),
    )


PROBLEMS = {
    case.__name__: case
    for case in (
        far_observation,
        gaussian_mean,
        linear_regression,
        correlated_gaussian,
        poisson_rate,
        success_probability,
        proportions,
        log_normal,
        two_modes,
    )
}
GAUSSIAN = ("far_observation", "gaussian_mean", "linear_regression", "correlated_gaussian")

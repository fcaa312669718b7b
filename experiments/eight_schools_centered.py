"""Eight schools in centred form: its funnel defeats a Gaussian guide, which is seen and flagged.

The data and the posterior of mu, tau and theta are those of `eight_schools`; only the coordinates
differ. Betancourt & Girolami (2015), Hamiltonian Monte Carlo for hierarchical models, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import probcalc as pc
from probcalc.experiment import load, require_positive

SCHOOLS = load("eight_schools").module

PAIR = SCHOOLS.PAIR
REFERENCE = SCHOOLS.REFERENCE


@dataclass(frozen=True)
class Config:
    """The prior.

    Args:
        mu_scale: Standard deviation of the mean effect's normal prior, in points.
        tau_scale: Scale of the half-Cauchy prior of the spread between schools, in points.
    """

    mu_scale: float = 5.0
    tau_scale: float = 5.0

    def __post_init__(self) -> None:
        """Check the scales."""
        require_positive(self, "mu_scale", "tau_scale")


def model(config: Config, effect: torch.Tensor, std_error: torch.Tensor) -> None:
    """A school's effect is theta ~ N(mu, tau), and is seen with its standard error."""
    mu = pyro.sample("mu", dist.Normal(0.0, config.mu_scale))
    tau = pyro.sample("tau", dist.HalfCauchy(config.tau_scale))
    with pyro.plate("school", len(effect)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, std_error), obs=effect)


def target(config: Config) -> pc.Target:
    """The posterior of mu, tau and the schools' effects."""
    return pc.Target.from_pyro(model, config, SCHOOLS.EFFECT, SCHOOLS.STD_ERROR)


def run(config: Config, *, dtype: torch.dtype = torch.float64, **settings: Any) -> pc.Posterior:
    """Fit it."""
    return pc.fit(target(config).to(dtype=dtype), **settings)

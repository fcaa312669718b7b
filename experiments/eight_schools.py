"""Eight schools in non-centred form: a posterior that the fit gets right, and knows it.

Effects of coaching on test scores in eight schools, with their standard errors: Rubin (1981),
Estimation in parallel randomized experiments, Journal of Educational Statistics 6, table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import probcalc as pc
from probcalc.experiment import Reference, Row, require_positive

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STD_ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

PAIR = ("theta[0]", "tau")
REFERENCE = Reference(
    "posteriordb eight_schools-eight_schools_noncentered, 10,000 draws",
    {
        "mu": Row(4.4105, 0.0331, 3.3093, 0.0238),
        "tau": Row(3.6021, 0.0319, 3.1985, 0.0457),
        "theta[0]": Row(6.1505, 0.0558, 5.6159, 0.0624),
        "theta[1]": Row(4.9396, 0.0463, 4.6456, 0.0413),
        "theta[2]": Row(3.9059, 0.0543, 5.2807, 0.0565),
        "theta[3]": Row(4.7960, 0.0475, 4.7709, 0.0437),
        "theta[4]": Row(3.6144, 0.0462, 4.6147, 0.0413),
        "theta[5]": Row(4.0511, 0.0486, 4.7962, 0.0453),
        "theta[6]": Row(6.3172, 0.0499, 5.0029, 0.0463),
        "theta[7]": Row(4.8840, 0.0543, 5.3177, 0.0640),
    },
)


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
    """A school's effect is theta = mu + tau raw, and is seen with its standard error."""
    mu = pyro.sample("mu", dist.Normal(0.0, config.mu_scale))
    tau = pyro.sample("tau", dist.HalfCauchy(config.tau_scale))
    with pyro.plate("school", len(effect)):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
        pyro.sample("effect", dist.Normal(theta, std_error), obs=effect)


def target(config: Config) -> pc.Target:
    """The posterior of mu, tau and the schools' raw effects."""
    return pc.Target.from_pyro(model, config, EFFECT, STD_ERROR)


def run(config: Config, *, dtype: torch.dtype = torch.float64, **settings: Any) -> pc.Posterior:
    """Fit it."""
    return pc.fit(target(config).to(dtype=dtype), **settings)

"""Investment of eleven firms, 1935-1954: intercepts and slopes that vary by firm, pooled.

log investment = a[firm] + b log value + c[firm] log capital + noise, predictors centred within
each firm. Twenty years tell more of a firm's a and c than its rivals do, so both are written in
centred form. Data: Grunfeld (1958), The determinants of corporate investment, as corrected by
Kleiber & Zeileis (2010), The Grunfeld data at 50.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from statsmodels.datasets import grunfeld

import probcalc as pc
from probcalc.experiment import Reference, Row, require_positive

NUM_FIRMS = 11

PAIR = ("mean_c", "spread_c")
REFERENCE = Reference(
    "Pyro's NUTS, 9 chains of 2500, at least 10,239 effective draws",
    {
        "mean_a": Row(0.00130, 0.00269, 0.41604, 0.00292),
        "mean_c": Row(0.40969, 0.00080, 0.11614, 0.00100),
        "spread_a": Row(1.51182, 0.00191, 0.30048, 0.00223),
        "spread_c": Row(0.34768, 0.00080, 0.10719, 0.00106),
        "b": Row(0.65891, 0.00047, 0.08280, 0.00055),
        "noise": Row(0.26369, 0.00008, 0.01341, 0.00009),
        "a[0]": Row(2.39794, 0.00034, 0.05909, 0.00038),
        "a[1]": Row(2.05601, 0.00034, 0.05905, 0.00038),
        "a[2]": Row(0.59611, 0.00035, 0.05921, 0.00038),
        "a[3]": Row(0.44412, 0.00033, 0.05877, 0.00038),
        "a[4]": Row(0.18367, 0.00035, 0.05899, 0.00039),
        "a[5]": Row(-0.06521, 0.00035, 0.05907, 0.00040),
        "a[6]": Row(-0.11711, 0.00035, 0.05993, 0.00039),
        "a[7]": Row(-0.25074, 0.00035, 0.05951, 0.00040),
        "a[8]": Row(-0.23756, 0.00035, 0.05875, 0.00038),
        "a[9]": Row(-2.92792, 0.00034, 0.05844, 0.00039),
        "a[10]": Row(-2.07897, 0.00035, 0.05921, 0.00039),
        "c[0]": Row(0.17956, 0.00024, 0.04046, 0.00027),
        "c[1]": Row(0.20577, 0.00052, 0.08875, 0.00058),
        "c[2]": Row(0.58466, 0.00050, 0.08297, 0.00053),
        "c[3]": Row(0.30231, 0.00035, 0.06184, 0.00041),
        "c[4]": Row(0.07739, 0.00083, 0.13579, 0.00088),
        "c[5]": Row(0.25064, 0.00043, 0.07531, 0.00052),
        "c[6]": Row(0.68156, 0.00071, 0.12018, 0.00080),
        "c[7]": Row(0.12153, 0.00025, 0.04149, 0.00027),
        "c[8]": Row(0.59691, 0.00100, 0.16590, 0.00113),
        "c[9]": Row(0.92725, 0.00082, 0.13199, 0.00086),
        "c[10]": Row(0.64443, 0.00179, 0.28885, 0.00207),
    },
)


@dataclass(frozen=True)
class Config:
    """The priors, on the scale of log dollars.

    Args:
        mean_scale: Standard deviation of the normal prior of the means over firms and of b.
        spread_scale: Scale of the half-normal prior of the spreads between firms.
        noise_scale: Scale of the half-normal prior of the noise.
    """

    mean_scale: float = 1.0
    spread_scale: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the scales."""
        require_positive(self, "mean_scale", "spread_scale", "noise_scale")


def model(
    config: Config,
    firm: torch.Tensor,
    value: torch.Tensor,
    capital: torch.Tensor,
    investment: torch.Tensor,
) -> None:
    """Means and spreads over firms; the firms' a and c; the observations."""
    mean_a = pyro.sample("mean_a", dist.Normal(0.0, config.mean_scale))
    mean_c = pyro.sample("mean_c", dist.Normal(0.0, config.mean_scale))
    spread_a = pyro.sample("spread_a", dist.HalfNormal(config.spread_scale))
    spread_c = pyro.sample("spread_c", dist.HalfNormal(config.spread_scale))
    b = pyro.sample("b", dist.Normal(0.0, config.mean_scale))
    noise = pyro.sample("noise", dist.HalfNormal(config.noise_scale))
    with pyro.plate("firms", NUM_FIRMS):
        a = pyro.sample("a", dist.Normal(mean_a, spread_a))
        c = pyro.sample("c", dist.Normal(mean_c, spread_c))
    with pyro.plate("firm_years", len(investment)):
        mean = a[firm] + b * value + c[firm] * capital
        pyro.sample("investment", dist.Normal(mean, noise), obs=investment)


def target(config: Config) -> pc.Target:
    """The posterior of the coefficients; investment is centred over all firms."""
    table = grunfeld.load_pandas().data
    logs = table[["value", "capital", "invest"]].map(math.log)
    within = logs - logs.groupby(table["firm"]).transform("mean")
    firm = torch.tensor(table["firm"].factorize()[0])
    investment = logs["invest"] - logs["invest"].mean()
    columns = (within["value"], within["capital"], investment)
    return pc.Target.from_pyro(
        model, config, firm, *(torch.tensor(list(c), dtype=torch.float64) for c in columns)
    )


def run(config: Config, *, dtype: torch.dtype = torch.float64, **settings: Any) -> pc.Posterior:
    """Fit it."""
    return pc.fit(target(config).to(dtype=dtype), **settings)

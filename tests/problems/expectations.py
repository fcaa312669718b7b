"""Expectations with exact values: function, distribution, value."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributions as td


def number(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


NORMAL = td.Normal(number(0.0), number(1.0))


def mixture(weights: tuple, locs: tuple, scales: tuple) -> td.Distribution:
    parts = td.Normal(number(*locs), number(*scales))
    return td.MixtureSameFamily(td.Categorical(number(*weights)), parts)


CONTINUOUS = {
    "Z²": (lambda x: x**2, NORMAL, 1.0),
    "e^Z": (lambda x: x.exp(), NORMAL, math.exp(0.5)),
    "e^3Z": (lambda x: (3 * x).exp(), NORMAL, math.exp(4.5)),
    "e^5Z": (lambda x: (5 * x).exp(), NORMAL, math.exp(12.5)),
    "Z²⁰": (lambda x: x**20, NORMAL, 654729075.0),
    "P(Z > 6)": (lambda x: (x > 6).double(), NORMAL, 9.865876450376981e-10),
    "P(Z > 30)": (lambda x: (x > 30).double(), NORMAL, 4.906713927148187e-198),
    "|Z − 0.123|": (
        lambda x: (x - 0.123).abs(),
        NORMAL,
        0.123 * math.erf(0.123 / math.sqrt(2))
        + math.sqrt(2 / math.pi) * math.exp(-(0.123**2) / 2),
    ),
    "Pareto(1.1)": (lambda x: x, td.Pareto(number(1.0), number(1.1)), 11.0),
    "1/x, Gamma(1.5)": (lambda x: 1 / x, td.Gamma(number(1.5), number(1.0)), 2.0),
    "log x, Gamma(0.5)": (
        lambda x: x.log(),
        td.Gamma(number(0.5), number(1.0)),
        -1.9635100260214235,
    ),
    "t(2.1)²": (lambda x: x**2, td.StudentT(number(2.1)), 21.0),
    "Weibull(0.2)": (lambda x: x, td.Weibull(number(1.0), number(0.2)), 120.0),
    "uniform": (lambda x: x.sin(), td.Uniform(number(0.0), number(3.0)), (1 - math.cos(3)) / 3),
    "Beta(½, 2)": (lambda x: x, td.Beta(number(0.5), number(2.0)), 0.2),
    "von Mises": (lambda x: x.cos(), td.VonMises(number(0.0), number(2.0)), 0.6977746579640079),
    "log(1 + |C|)": (
        lambda x: x.log1p(),
        td.HalfCauchy(number(1.0)),
        2 / math.pi * (0.9159655941772190 + math.pi * math.log(2) / 4),
    ),
    "logistic²": (
        lambda x: x**2,
        td.TransformedDistribution(
            td.Uniform(number(0.0), number(1.0)), [td.SigmoidTransform().inv]
        ),
        math.pi**2 / 3,
    ),
    "2 − 3E": (
        lambda x: x,
        td.TransformedDistribution(
            td.Exponential(number(1.0)), [td.AffineTransform(number(2.0), number(-3.0))]
        ),
        -1.0,
    ),
}
NARROW = {
    "N(36, 1)": (lambda x: x, td.Normal(number(36.0), number(1.0)), 36.0),
    "N(1e3, 1)": (lambda x: x, td.Normal(number(1e3), number(1.0)), 1e3),
    "N(1e6, 1)": (lambda x: x, td.Normal(number(1e6), number(1.0)), 1e6),
    "N(1, 1e-6)": (lambda x: x, td.Normal(number(1.0), number(1e-6)), 1.0),
    "Gamma(148)": (lambda x: x, td.Gamma(number(148.0), number(1.0)), 148.0),
    "lognormal": (
        lambda x: x,
        td.LogNormal(number(math.log(0.066)), number(0.194)),
        0.066 * math.exp(0.194**2 / 2),
    ),
    "N(116, 3.81)": (lambda x: x, td.Normal(number(116.0), number(3.81)), 116.0),
    "a millionth elsewhere": (
        lambda x: (x > 50).double(),
        mixture((1 - 1e-6, 1e-6), (0.0, 100.0), (1.0, 1e-3)),
        1e-6,
    ),
    "two needles": (
        lambda x: x**2,
        mixture((0.3, 0.7), (-10.0, 1e4), (0.1, 1.0)),
        0.3 * 100.01 + 0.7 * (1e8 + 1),
    ),
}
DISCRETE = {
    "Poisson": (lambda k: k, td.Poisson(number(2.5)), 2.5),
    "Poisson(1e6)": (lambda k: k, td.Poisson(number(1e6)), 1e6),
    "e^k, Poisson": (lambda k: k.exp(), td.Poisson(number(4.0)), math.exp(4 * (math.e - 1))),
    "binomial": (lambda k: k**2, td.Binomial(10, number(0.3)), 11.1),
    "Bernoulli": (lambda k: k, td.Bernoulli(number(0.3)), 0.3),
    "categorical": (lambda k: k.double(), td.Categorical(number(0.2, 0.3, 0.5)), 1.3),
    "one-hot": (
        lambda k: (k * number(1.0, 2.0, 4.0)).sum(-1),
        td.OneHotCategorical(number(0.2, 0.3, 0.5)),
        2.8,
    ),
    "geometric": (lambda k: k, td.Geometric(number(0.01)), 99.0),
    "negative binomial": (lambda k: k, td.NegativeBinomial(number(5.0), number(0.3)), 15 / 7),
    "rare": (lambda k: (k >= 40).double(), td.Poisson(number(2.0)), 1.917158341594288e-37),
}
GOOD = {**CONTINUOUS, **NARROW, **DISCRETE}

# infinite, undefined, or out of reach: flagged
FLAGGED = {
    "Pareto(0.9)": (lambda x: x, td.Pareto(number(1.0), number(0.9))),
    "Cauchy": (lambda x: x, td.Cauchy(number(0.0), number(1.0))),
    "t(2)²": (lambda x: x**2, td.StudentT(number(2.0))),
    "St Petersburg": (lambda k: 2.0**k, td.Geometric(number(0.5))),
    "e^Z²": (lambda x: (x * x).exp(), NORMAL),
    "1/Z": (lambda x: 1 / x, NORMAL),
    "log Z": (lambda x: x.log(), NORMAL),
}

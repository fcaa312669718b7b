"""Distributions of every family of torch's, and divergences whose values are known."""

from __future__ import annotations

import math

import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

INF = math.inf


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def normals(weights: tuple[float, ...], means: tuple[float, ...], sds: tuple[float, ...]):
    return td.MixtureSameFamily(
        td.Categorical(number(*weights)), td.Normal(number(*means), number(*sds))
    )


def logistic(loc: float, scale: float) -> td.Distribution:
    unit = td.Uniform(number(0.0), number(1.0))
    return td.TransformedDistribution(
        unit, [td.SigmoidTransform().inv, td.AffineTransform(number(loc), number(scale))]
    )


# one of every family of `torch.distributions`; draws are numbers, vectors of three, or matrices
FAMILIES: dict[str, td.Distribution] = {
    "Bernoulli": td.Bernoulli(number(0.3)),
    "Beta": td.Beta(number(2.0), number(3.0)),
    "Binomial": td.Binomial(5, number(0.4)),
    "Categorical": td.Categorical(number(0.2, 0.5, 0.3)),
    "Cauchy": td.Cauchy(number(0.3), number(1.2)),
    "Chi2": td.Chi2(number(3.0)),
    "ContinuousBernoulli": td.ContinuousBernoulli(number(0.3)),
    "Exponential": td.Exponential(number(1.3)),
    "FisherSnedecor": td.FisherSnedecor(number(5.0), number(7.0)),
    "Gamma": td.Gamma(number(2.0), number(1.5)),
    "GeneralizedPareto": td.GeneralizedPareto(number(0.0), number(1.0), number(0.2)),
    "Geometric": td.Geometric(number(0.4)),
    "Gumbel": td.Gumbel(number(0.2), number(1.1)),
    "HalfCauchy": td.HalfCauchy(number(1.2)),
    "HalfNormal": td.HalfNormal(number(1.3)),
    "InverseGamma": td.InverseGamma(number(3.0), number(2.0)),
    "Kumaraswamy": td.Kumaraswamy(number(2.0), number(3.0)),
    "Laplace": td.Laplace(number(0.1), number(1.2)),
    "LogNormal": td.LogNormal(number(0.1), number(0.8)),
    "MixtureSameFamily": normals((0.4, 0.6), (-1.0, 1.0), (0.5, 0.7)),
    "NegativeBinomial": td.NegativeBinomial(number(4.0), number(0.4)),
    "Normal": td.Normal(number(0.2), number(1.1)),
    "Pareto": td.Pareto(number(1.0), number(3.0)),
    "Poisson": td.Poisson(number(2.5)),
    "RelaxedBernoulli": td.RelaxedBernoulli(number(0.7), number(0.4)),
    "StudentT": td.StudentT(number(4.0), number(0.1), number(1.2)),
    "TransformedDistribution": logistic(0.5, 1.5),
    "Uniform": td.Uniform(number(0.1), number(0.9)),
    "VonMises": td.VonMises(number(0.3), number(1.5)),
    "Weibull": td.Weibull(number(1.2), number(1.7)),
    "Dirichlet": td.Dirichlet(number(2.0, 3.0, 1.5)),
    "Independent": td.Independent(td.Laplace(number(0.0, 0.1, 0.2), number(1.0, 1.0, 1.0)), 1),
    "LogisticNormal": td.LogisticNormal(number(0.0, 0.3), number(1.0, 0.8)),
    "LowRankMultivariateNormal": td.LowRankMultivariateNormal(
        number(0.0, 0.1, 0.2), matrix((1.0,), (0.5,), (0.2,)), number(1.0, 1.0, 1.0)
    ),
    "Multinomial": td.Multinomial(4, number(0.2, 0.5, 0.3)),
    "MultivariateNormal": td.MultivariateNormal(
        number(0.0, 0.1, 0.2), matrix((1.3, 0.3, 0.3), (0.3, 1.3, 0.3), (0.3, 0.3, 1.3))
    ),
    "OneHotCategorical": td.OneHotCategorical(number(0.2, 0.5, 0.3)),
    "RelaxedOneHotCategorical": td.RelaxedOneHotCategorical(number(0.7), number(0.2, 0.5, 0.3)),
    "LKJCholesky": td.LKJCholesky(3, number(1.5)),
    "Wishart": td.Wishart(number(5.0), matrix((1.2, 0.2, 0.2), (0.2, 1.2, 0.2), (0.2, 0.2, 1.2))),
}
ONE, ZERO = number(1.0), number(0.0)

# p, q, KL(p‖q); by mpmath
KNOWN: dict[str, tuple[td.Distribution, td.Distribution, float]] = {
    "normal, Student": (td.Normal(ZERO, ONE), td.StudentT(number(3.0)), 0.06915159848517623),
    "Student, normal": (td.StudentT(number(5.0)), td.Normal(ZERO, ONE), 0.1247691941236101),
    "Student of 3, normal": (td.StudentT(number(3.0)), td.Normal(ZERO, ONE), 0.6454609613413794),
    "Student of 2, normal": (td.StudentT(number(2.0)), td.Normal(ZERO, ONE), INF),
    "Cauchy, normal": (td.Cauchy(ZERO, ONE), td.Normal(ZERO, ONE), INF),
    "Weibull": (
        td.Weibull(number(1.2), number(1.7)),
        td.Weibull(ONE, number(1.4)),
        0.04759432453296253,
    ),
    "gamma, Weibull": (
        td.Gamma(number(2.0), number(1.5)),
        td.Weibull(ONE, number(1.4)),
        0.1747622794235051,
    ),
    "gamma, log-normal": (
        td.Gamma(number(2.0), number(1.5)),
        td.LogNormal(number(0.3), number(1.1)),
        0.1593390717503891,
    ),
    "log-normal, gamma": (
        td.LogNormal(number(0.1), number(0.8)),
        td.Gamma(number(2.0), number(1.5)),
        0.07621713532115894,
    ),
    "von Mises": (
        td.VonMises(number(0.3), number(1.5)),
        td.VonMises(ZERO, ONE),
        0.06181901360233684,
    ),
    "von Mises, far": (
        td.VonMises(ZERO, number(50.0)),
        td.VonMises(ZERO, number(0.1)),
        2.2733764095491095,
    ),
    "negative binomial": (
        td.NegativeBinomial(number(4.0), number(0.4)),
        td.NegativeBinomial(number(4.0), number(0.5)),
        0.1342367570045925,
    ),
    "Laplace, Cauchy": (td.Laplace(ZERO, ONE), td.Cauchy(ZERO, ONE), 0.1383386284023089),
    "Laplace, normal": (td.Laplace(ZERO, ONE), td.Normal(ZERO, ONE), 0.22579135264472744),
    "mixture, normal": (
        normals((0.4, 0.6), (-1.0, 1.0), (0.5, 0.7)),
        td.Normal(ZERO, ONE),
        0.1378533458122298,
    ),
    "LKJ": (
        td.LKJCholesky(3, number(1.5)),
        td.LKJCholesky(3, number(2.0)),
        0.06205597404083344,
    ),
    # the last two digits of 0.02938623, which is often quoted, are not right
    "continuous Bernoulli, uniform": (
        td.ContinuousBernoulli(number(0.3)),
        td.Uniform(ZERO, ONE),
        0.029386202232129083,
    ),
    "uniform": (td.Uniform(ZERO, ONE), td.Uniform(ZERO, number(2.0)), math.log(2)),
    "normal, exponential": (td.Normal(ZERO, ONE), td.Exponential(ONE), INF),
    "exponential, normal": (
        td.Exponential(ONE),
        td.Normal(ZERO, ONE),
        0.5 * math.log(2 * math.pi),
    ),
    "gamma of a million": (
        td.Gamma(number(1e6), ONE),
        td.Gamma(number(1e6 + 1), ONE),
        5.0000008333333333e-07,
    ),
    "gamma of a thousandth": (
        td.Gamma(number(1e-3), ONE),
        td.Gamma(ONE, ONE),
        992.66781747449462,
    ),
    "Poisson of nothing": (td.Poisson(ZERO), td.Poisson(ONE), 1.0),
    "a normal needle": (td.Normal(ZERO, ONE), td.Normal(ZERO, number(1e-25)), 5e49),
    "Dirichlet of corners": (
        td.Dirichlet(number(1e-3, 1e-3, 1e-3)),
        td.Dirichlet(number(1.0, 1.0, 1.0)),
        1982.4025658963837,
    ),
    "normal between two": (
        td.Normal(ZERO, ONE),
        normals((0.5, 0.5), (-3.0, 3.0), (1.0, 1.0)),
        2.6933519765968402,
    ),
    "two, normal around": (
        normals((0.5, 0.5), (-3.0, 3.0), (1.0, 1.0)),
        td.Normal(ZERO, number(10.0).sqrt()),
        0.46199461346794508,
    ),
}

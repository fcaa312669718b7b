"""Supports, quantiles, moments and copies of distributions, family by family."""

from __future__ import annotations

import math

import mpmath as mp
import pyro.distributions as pyro_dist
import pytest
import scipy.stats as st
import torch
from problems.expectations import mixture, number
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.log_density import log_density
from probcalc.distributions.moments import raw_moment
from probcalc.distributions.quantile import quantile, tail_probability
from probcalc.distributions.rebuild import copied, in_double, taken_apart
from probcalc.distributions.support import support_of

INF = math.inf
# name -> (distribution, lower end, upper end, discrete)
LINE = {
    "normal": (td.Normal(number(1.0, -2.0), number(0.5, 3.0)), -INF, INF, False),
    "lognormal": (td.LogNormal(number(0.3), number(1.2)), 0.0, INF, False),
    "half-normal": (td.HalfNormal(number(2.0)), 0.0, INF, False),
    "gamma": (td.Gamma(number(0.3, 20.0), number(2.0, 0.1)), 0.0, INF, False),
    "chi-squared": (td.Chi2(number(3.0)), 0.0, INF, False),
    "inverse gamma": (td.InverseGamma(number(2.5), number(1.5)), 0.0, INF, False),
    "exponential": (td.Exponential(number(0.2)), 0.0, INF, False),
    "Weibull": (td.Weibull(number(2.0), number(0.7)), 0.0, INF, False),
    "beta": (td.Beta(number(0.5, 30.0), number(2.0, 7.0)), 0.0, 1.0, False),
    "Student": (td.StudentT(number(3.3), number(1.0), number(2.0)), -INF, INF, False),
    "F": (td.FisherSnedecor(number(3.0), number(7.0)), 0.0, INF, False),
    "Cauchy": (td.Cauchy(number(1.0), number(2.0)), -INF, INF, False),
    "half-Cauchy": (td.HalfCauchy(number(2.0)), 0.0, INF, False),
    "Laplace": (td.Laplace(number(1.0), number(2.0)), -INF, INF, False),
    "Gumbel": (td.Gumbel(number(1.0), number(2.0)), -INF, INF, False),
    "uniform": (td.Uniform(number(-1.0), number(2.5)), -1.0, 2.5, False),
    "Pareto": (td.Pareto(number(2.0), number(1.5)), 2.0, INF, False),
    "Kumaraswamy": (td.Kumaraswamy(number(2.0), number(3.0)), 0.0, 1.0, False),
    "falling": (
        td.TransformedDistribution(
            td.Exponential(number(1.0)), [td.AffineTransform(number(2.0), number(-3.0))]
        ),
        -INF,
        2.0,
        False,
    ),
    "mixture": (mixture((0.2, 0.8), (-3.0, 4.0), (0.5, 1.0)), -INF, INF, False),
    "Poisson": (td.Poisson(number(0.3, 40.0)), 0.0, INF, True),
    "binomial": (td.Binomial(12, number(0.3)), 0.0, 12.0, True),
    "geometric": (td.Geometric(number(0.2)), 0.0, INF, True),
    "negative binomial": (td.NegativeBinomial(number(4.0), number(0.4)), 0.0, INF, True),
    "Bernoulli": (td.Bernoulli(number(0.3)), 0.0, 1.0, True),
}
ABSOLUTE = td.TransformedDistribution(td.Normal(number(1.0), number(1.0)), [td.AbsTransform()])


@pytest.mark.parametrize(("dist", "lower", "upper", "discrete"), LINE.values(), ids=LINE.keys())
def test_supports(dist, lower: float, upper: float, discrete: bool):
    support = support_of(dist)
    assert support.lower.shape == support.upper.shape == dist.batch_shape
    assert (support.lower == lower).all()
    assert (support.upper == upper).all()
    assert support.discrete == discrete


def test_supports_that_torch_leaves_vague():
    assert float(support_of(ABSOLUTE).lower) == 0.0
    turn = support_of(td.VonMises(number(0.0), number(1.0)))
    assert (float(turn.lower), float(turn.upper)) == (-math.pi, math.pi)
    with pytest.raises(NotImplementedError, match="draws of Dirichlet are not numbers"):
        support_of(td.Dirichlet(torch.ones(3)))


LEVELS = number(1e-12, 1e-4, 0.2, 0.5, 0.9, 1 - 1e-6)


@pytest.mark.parametrize("name", LINE)
@pytest.mark.parametrize("upper", [False, True])
def test_quantiles_invert_the_distribution_function(name: str, upper: bool):
    """Smallest x with at least that probability below it, or at most that above it."""
    dist, *_, discrete = LINE[name]
    p = LEVELS.reshape(-1, *[1] * len(dist.batch_shape))
    x = quantile(dist, p, upper=upper)
    assert x.shape == torch.broadcast_shapes(p.shape, dist.batch_shape)
    if not discrete:
        ulp = 2e-16 * x.abs()  # all that x can tell apart
        below, tail, above = (_tail(dist, y, upper) for y in (x - ulp, x, x + ulp))
        assert ((tail - p).abs() <= 1e-9 * p + (above - below).abs()).all()
        return
    here = tail_probability(dist, x, upper)
    before = tail_probability(dist, x - 1, upper)
    if upper:
        assert (here <= p).all()
        assert ((before > p) | (x == 0)).all()
    else:
        assert (here >= p * (1 - 1e-12)).all()
        assert ((before < p * (1 + 1e-12)) | (x == 0)).all()


def _tail(dist: td.Distribution, x: Tensor, upper: bool) -> Tensor:
    if not isinstance(dist, td.MixtureSameFamily):
        return tail_probability(dist, x, upper)
    tail = tail_probability(dist.component_distribution, x[..., None], upper)
    return (tail * dist.mixture_distribution.probs).sum(-1)


@pytest.mark.parametrize("p", [1e-20, 1e-100, 1e-300])
def test_upper_tails_keep_their_precision(p: float):
    exact = {
        "normal": (td.Normal(number(0.0), number(1.0)), mp.sqrt(2) * mp.erfinv(1 - 2 * mp.mpf(p))),
        "exponential": (td.Exponential(number(2.0)), -mp.log(p) / 2),
        "Cauchy": (td.Cauchy(number(0.0), number(1.0)), mp.cot(mp.pi * p)),
        "Pareto": (td.Pareto(number(1.0), number(3.0)), mp.mpf(p) ** (-mp.mpf(1) / 3)),
    }
    with mp.workdps(350):
        exact["normal"] = (
            exact["normal"][0],
            mp.findroot(
                lambda x: mp.log(mp.ncdf(-x)) - mp.log(mp.mpf(p)), math.sqrt(-2 * math.log(p))
            ),
        )
    for dist, x in exact.values():
        assert float(quantile(dist, number(p), upper=True)) == pytest.approx(float(x), rel=1e-12)


def test_unknown_families_are_named():
    with pytest.raises(NotImplementedError, match="no quantiles of Dirichlet; known: .*Normal"):
        quantile(td.Dirichlet(torch.ones(2)), number(0.5))
    with pytest.raises(NotImplementedError, match="is not monotone"):
        quantile(ABSOLUTE, number(0.5))


# name -> (distribution, SciPy's)
WITH_MOMENTS = {
    "normal": (td.Normal(number(1.3), number(2.0)), st.norm(1.3, 2.0)),
    "lognormal": (td.LogNormal(number(0.3), number(0.5)), st.lognorm(0.5, scale=math.exp(0.3))),
    "half-normal": (td.HalfNormal(number(2.0)), st.halfnorm(0, 2.0)),
    "gamma": (td.Gamma(number(0.7), number(2.0)), st.gamma(0.7, scale=0.5)),
    "inverse gamma": (td.InverseGamma(number(7.5), number(2.0)), st.invgamma(7.5, scale=2.0)),
    "exponential": (td.Exponential(number(2.0)), st.expon(scale=0.5)),
    "Weibull": (td.Weibull(number(2.0), number(0.7)), st.weibull_min(0.7, scale=2.0)),
    "beta": (td.Beta(number(0.7), number(2.0)), st.beta(0.7, 2.0)),
    "Student": (td.StudentT(number(9.5), number(0.5), number(2.0)), st.t(9.5, 0.5, 2.0)),
    "Laplace": (td.Laplace(number(0.5), number(2.0)), st.laplace(0.5, 2.0)),
    "uniform": (td.Uniform(number(-1.0), number(2.0)), st.uniform(-1.0, 3.0)),
    "Pareto": (td.Pareto(number(2.0), number(7.5)), st.pareto(7.5, scale=2.0)),
    "F": (td.FisherSnedecor(number(3.0), number(11.0)), st.f(3.0, 11.0)),
    "Gumbel": (td.Gumbel(number(0.5), number(2.0)), st.gumbel_r(0.5, 2.0)),
    "affine": (
        td.TransformedDistribution(
            td.Exponential(number(2.0)),
            [td.AffineTransform(0.5, -2.0), td.AffineTransform(number(1.0), 3.0)],
        ),
        None,
    ),
    "Kumaraswamy": (td.Kumaraswamy(number(2.0), number(3.0)), None),
    "mixture": (mixture((0.3, 0.7), (-1.0, 2.0), (0.5, 1.5)), None),
    "point": (pyro_dist.Delta(number(-1.5)), None),
    "Bernoulli": (td.Bernoulli(number(0.3)), st.bernoulli(0.3)),
    "Poisson": (td.Poisson(number(2.5)), st.poisson(2.5)),
    "binomial": (td.Binomial(12, number(0.3)), st.binom(12, 0.3)),
    "geometric": (td.Geometric(number(0.3)), st.geom(0.3, loc=-1)),
    "negative binomial": (td.NegativeBinomial(number(4.0), number(0.4)), st.nbinom(4, 0.6)),
}


@pytest.mark.parametrize(("dist", "oracle"), WITH_MOMENTS.values(), ids=WITH_MOMENTS.keys())
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_moments_are_those_of_scipy(dist, oracle, order: int):
    if oracle is None:
        expected = float(_mean_of_power(dist, order))
    else:
        expected = 1.0 if order == 0 else float(oracle.moment(order))
    assert float(raw_moment(dist, order)) == pytest.approx(expected, rel=1e-9)


def _mean_of_power(dist: td.Distribution, order: int) -> Tensor:
    """By the trapezoid rule in the normal deviate of the level, from whichever tail is small."""
    z = torch.linspace(0, 25, 20_001, dtype=torch.float64)
    weights = td.Normal(number(0.0), number(1.0)).log_prob(z).exp() * (z[1] - z[0])
    weights[0] /= 2
    level = torch.special.erfc(z / 2**0.5) / 2
    sides = (quantile(dist, level), quantile(dist, level, upper=True))
    return sum((x**order * weights).sum() for x in sides)


# what has no finite moment: inf where it is infinite, NaN where it is undefined
INFINITE = {
    "Cauchy": (td.Cauchy(number(1.0), number(1.0)), 1, math.nan),
    "Cauchy²": (td.Cauchy(number(1.0), number(1.0)), 2, INF),
    "half-Cauchy": (td.HalfCauchy(number(1.0)), 1, INF),
    "t(1)": (td.StudentT(number(1.0)), 1, math.nan),
    "t(1)²": (td.StudentT(number(1.0)), 2, INF),
    "half-Cauchy, shifted": (
        td.TransformedDistribution(
            td.HalfCauchy(number(1.0)), [td.AffineTransform(number(2.0), number(-1.0))]
        ),
        2,
        INF,
    ),
    "F(3, 4)²": (td.FisherSnedecor(number(3.0), number(4.0)), 2, INF),
    "t(2)²": (td.StudentT(number(2.0)), 2, INF),
    "Pareto(1)": (td.Pareto(number(1.0), number(1.0)), 1, INF),
    "inverse gamma": (td.InverseGamma(number(2.0), number(1.0)), 2, INF),
}


@pytest.mark.parametrize(("dist", "order", "expected"), INFINITE.values(), ids=INFINITE.keys())
def test_moments_that_do_not_exist(dist, order: int, expected: float):
    assert float(raw_moment(dist, order)) == pytest.approx(expected, nan_ok=True)


def test_moments_are_differentiable_also_where_neighbours_do_not_exist():
    alpha = number(1.0, 3.0).requires_grad_()
    moments = raw_moment(td.Pareto(number(1.0), alpha), 1)
    (slope,) = torch.autograd.grad(moments[1], alpha)
    assert slope.tolist() == [0.0, -0.25]


def test_transforms_of_other_kinds_have_no_moments():
    with pytest.raises(NotImplementedError, match="known: affine transforms"):
        raw_moment(ABSOLUTE, 1)


def test_point_masses():
    point = pyro_dist.Delta(number(0.3, 2.0))
    support = support_of(point)
    assert torch.equal(support.lower, point.v)
    assert torch.equal(support.upper, point.v)
    assert support.discrete
    assert torch.equal(quantile(point, number(0.0, 0.7)), point.v)
    assert cdf(point, 0.3).tolist() == [1.0, 0.0]
    assert cdf(point, 0.3, upper=True).tolist() == [0.0, 1.0]
    matrix = pyro_dist.Delta(torch.ones(2, 3), event_dim=1)
    assert copied(matrix).event_shape == (3,)


def test_bad_orders_and_families():
    with pytest.raises(ValueError, match="`order` must be at least 0, got -1"):
        raw_moment(td.Normal(0.0, 1.0), -1)
    with pytest.raises(NotImplementedError, match="no moments of VonMises"):
        raw_moment(td.VonMises(0.0, 1.0), 1)


COPIES = {
    **{name: row[0] for name, row in LINE.items()},
    "independent": td.Independent(td.Normal(torch.zeros(2, 3), 1.0), 1),
    "Dirichlet": td.Dirichlet(number(0.5, 2.0)),
    "covariance": td.MultivariateNormal(torch.zeros(2), covariance_matrix=2 * torch.eye(2)),
    "precision": td.MultivariateNormal(torch.zeros(2), precision_matrix=2 * torch.eye(2)),
    "factor": td.MultivariateNormal(torch.zeros(2), scale_tril=2 * torch.eye(2)),
    "low rank": td.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    "categorical": td.Categorical(logits=torch.tensor([0.1, -1.0, 2.0])),
    "one-hot": td.OneHotCategorical(torch.ones(3)),
    "multinomial": td.Multinomial(5, torch.ones(3)),
    "LKJ": td.LKJCholesky(3, 1.5),
}


@pytest.mark.parametrize("dist", COPIES.values(), ids=COPIES.keys())
def test_copies_have_the_same_density(dist, generator: torch.Generator):
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        x = dist.sample((5,))
    expected = dist.log_prob(x)
    torch.testing.assert_close(copied(dist).log_prob(x), expected)
    double = in_double(dist).log_prob(x.double() if x.is_floating_point() else x)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-4)


def test_parameters_keep_their_gradients():
    scale = number(2.0).requires_grad_()
    tensors, build = taken_apart(td.Normal(number(0.0), scale))
    (slope,) = torch.autograd.grad(build(tensors).log_prob(number(3.0)), scale)
    assert float(slope) == pytest.approx(9 / 8 - 1 / 2)


@pytest.mark.parametrize("kappa", [1e-3, 1.0, 50.0, 1e4])
def test_von_mises_to_all_digits(kappa: float):
    x: Tensor = number(0.01, 1.0)
    with mp.workdps(40):
        exact = [
            float(kappa * mp.cos(v - mp.mpf("0.3")) - mp.log(2 * mp.pi * mp.besseli(0, kappa)))
            for v in (mp.mpf(float(x[0])), mp.mpf(float(x[1])))
        ]
    got = log_density(td.VonMises(number(0.3), number(kappa)), x)
    torch.testing.assert_close(got, number(*exact), rtol=1e-12, atol=1e-12)

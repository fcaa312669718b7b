"""Distribution functions: numbers against mpmath, derivatives against differences, both tails."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import mpmath as mp
import pytest
import scipy.stats as st
import torch
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.quantile import quantile
from probcalc.distributions.support import support_of

INF = math.inf


def _logistic(loc: Tensor, scale: Tensor) -> td.Distribution:
    unit = td.Uniform(torch.zeros_like(loc), torch.ones_like(loc))
    return td.TransformedDistribution(
        unit, [td.SigmoidTransform().inv, td.AffineTransform(loc, scale)]
    )


def _falling(rate: Tensor, loc: Tensor, scale: Tensor) -> td.Distribution:
    return td.TransformedDistribution(td.Exponential(rate), [td.AffineTransform(loc, -scale)])


def _mixture(logits: Tensor, loc: Tensor, df: Tensor) -> td.Distribution:
    parts = td.StudentT(df.expand(2), torch.stack([loc, -loc]), torch.ones_like(loc))
    weights = torch.stack([logits, torch.zeros_like(logits)])
    return td.MixtureSameFamily(td.Categorical(logits=weights), parts)


# name -> (family, parameters, SciPy's)
CONTINUOUS: dict[str, tuple[Callable, tuple[float, ...], Callable]] = {
    "normal": (td.Normal, (1.0, 0.5), st.norm),
    "lognormal": (td.LogNormal, (0.3, 1.2), lambda m, s: st.lognorm(s, scale=math.exp(m))),
    "half-normal": (td.HalfNormal, (2.0,), lambda s: st.halfnorm(0, s)),
    "gamma": (td.Gamma, (0.3, 2.0), lambda a, r: st.gamma(a, scale=1 / r)),
    "large gamma": (td.Gamma, (70.0, 0.1), lambda a, r: st.gamma(a, scale=1 / r)),
    "chi-squared": (td.Chi2, (3.0,), st.chi2),
    "inverse gamma": (td.InverseGamma, (2.5, 1.5), lambda a, r: st.invgamma(a, scale=r)),
    "exponential": (td.Exponential, (0.2,), lambda r: st.expon(scale=1 / r)),
    "Weibull": (td.Weibull, (2.0, 0.7), lambda s, c: st.weibull_min(c, scale=s)),
    "beta": (td.Beta, (0.5, 2.0), st.beta),
    "large beta": (td.Beta, (30.0, 7.0), st.beta),
    "Student": (td.StudentT, (3.3, 1.0, 2.0), st.t),
    "F": (td.FisherSnedecor, (3.0, 7.0), st.f),
    "Cauchy": (td.Cauchy, (1.0, 2.0), st.cauchy),
    "half-Cauchy": (td.HalfCauchy, (2.0,), lambda s: st.halfcauchy(0, s)),
    "Laplace": (td.Laplace, (1.0, 2.0), st.laplace),
    "Gumbel": (td.Gumbel, (1.0, 2.0), st.gumbel_r),
    "uniform": (td.Uniform, (-1.0, 2.5), lambda a, b: st.uniform(a, b - a)),
    "Pareto": (td.Pareto, (2.0, 1.5), lambda s, a: st.pareto(a, scale=s)),
    "Kumaraswamy": (td.Kumaraswamy, (2.0, 3.0), None),
    "logistic": (_logistic, (0.5, 2.0), st.logistic),
    "falling": (_falling, (1.5, 2.0, 3.0), None),
    "mixture": (_mixture, (0.4, 2.0, 3.5), None),
}
LEVELS = number(1e-6, 0.03, 0.4, 0.8, 0.999)
both_tails = pytest.mark.parametrize("upper", [False, True])
families = pytest.mark.parametrize("name", CONTINUOUS)


def _parameters(name: str) -> list[Tensor]:
    return [number(v).requires_grad_() for v in CONTINUOUS[name][1]]


@families
@both_tails
def test_values_are_those_of_scipy(name: str, upper: bool):
    make, values, oracle = CONTINUOUS[name]
    if oracle is None:
        pytest.skip("SciPy has no such family")
    dist = make(*map(number, values))
    x = quantile(dist, LEVELS)
    frozen = oracle(*values)
    expected = (frozen.sf if upper else frozen.cdf)(x.numpy())
    torch.testing.assert_close(
        cdf(dist, x, upper=upper), torch.as_tensor(expected), rtol=1e-9, atol=0
    )


@families
@both_tails
def test_derivatives_of_first_and_second_order(name: str, upper: bool):
    """In x and in every parameter, against finite differences."""
    parameters = _parameters(name)
    with torch.no_grad():
        x = quantile(CONTINUOUS[name][0](*parameters), number(0.2, 0.45, 0.8))
    x.requires_grad_()

    def tail(x: Tensor, *theta: Tensor) -> Tensor:
        return cdf(CONTINUOUS[name][0](*theta), x, upper=upper)

    assert torch.autograd.gradcheck(tail, (x, *parameters), rtol=1e-5, atol=1e-8)
    assert torch.autograd.gradgradcheck(tail, (x, *parameters), rtol=1e-4, atol=1e-7)


@families
@both_tails
def test_the_derivative_in_x_is_the_density(name: str, upper: bool):
    dist = CONTINUOUS[name][0](*_parameters(name))
    x = quantile(dist, number(1e-12, *LEVELS.tolist()), upper=upper).detach().requires_grad_()
    (slope,) = torch.autograd.grad(cdf(dist, x, upper=upper).sum(), x)
    expected = dist.log_prob(x).exp() * (-1 if upper else 1)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0)  # torch's density


@families
@both_tails
def test_quantiles_have_derivatives_of_first_and_second_order(name: str, upper: bool):
    parameters = _parameters(name)
    p = number(0.03, 0.4, 0.8).requires_grad_()

    def level(p: Tensor, *theta: Tensor) -> Tensor:
        return quantile(CONTINUOUS[name][0](*theta), p, upper=upper)

    assert torch.autograd.gradcheck(level, (p, *parameters), rtol=1e-5, atol=1e-8)
    assert torch.autograd.gradgradcheck(level, (p, *parameters), rtol=1e-4, atol=1e-6)


@families
@both_tails
@pytest.mark.parametrize("p", [1e-300, 1e-100, 1e-20, 1e-3, 0.7])
def test_the_quantile_inverts_far_in_the_tails(name: str, upper: bool, p: float):
    """Up to what one rounding of x does to the tail; x itself may be out of range."""
    dist = CONTINUOUS[name][0](*(v.detach() for v in _parameters(name)))
    x = quantile(dist, number(p), upper=upper)
    if not bool(x.isfinite() & (x.abs() > 1e-300)):
        pytest.skip("the quantile is no number of float64")
    ulp = 4e-16 * x.abs()
    below, here, above = (cdf(dist, t, upper=upper) for t in (x - ulp, x, x + ulp))
    assert float((here - p).abs()) <= 2e-12 * p + float((above - below).abs())


@families
def test_outside_the_support_tails_are_zero_and_one(name: str):
    parameters = _parameters(name)
    dist = CONTINUOUS[name][0](*parameters)
    x = number(-INF, INF, math.nan)
    lower, upper = cdf(dist, x), cdf(dist, x, upper=True)
    torch.testing.assert_close(lower, number(0.0, 1.0, math.nan), equal_nan=True)
    torch.testing.assert_close(upper, number(1.0, 0.0, math.nan), equal_nan=True)
    ends = cdf(dist, x[:2]) + cdf(dist, x[:2], upper=True)
    slopes = torch.autograd.grad(ends.sum(), parameters)
    assert all(float(s.abs()) < 1e-15 for s in slopes)


def _gamma(a: float, lower: float, upper: float) -> mp.mpf:
    return mp.gammainc(mp.mpf(a), lower, upper, regularized=True)


def _beta(a: float, b: float, lower: float, upper: float) -> mp.mpf:
    return mp.betainc(mp.mpf(a), mp.mpf(b), lower, upper, regularized=True)


# name -> (distribution, x, upper, exact)
FAR = {
    "normal at 37": (td.Normal(number(0.0), number(1.0)), 37.0, True, lambda: mp.ncdf(-37)),
    "normal at -9": (td.Normal(number(0.0), number(1.0)), -9.0, False, lambda: mp.ncdf(-9)),
    "gamma at 700": (
        td.Gamma(number(2.5), number(1.0)),
        700.0,
        True,
        lambda: _gamma(2.5, 700, INF),
    ),
    "gamma at 1e-90": (td.Gamma(number(2.5), number(1.0)), 1e-90, False, None),
    "gamma of 1000": (
        td.Gamma(number(1000.0), number(1.0)),
        700.0,
        False,
        lambda: _gamma(1000, 0, 700),
    ),
    "beta at 1e-100": (
        td.Beta(number(2.0), number(3.0)),
        1e-100,
        False,
        lambda: _beta(2, 3, 0, 1e-100),
    ),
    "Student at 1e80": (td.StudentT(number(3.3)), -1e80, False, None),
    "Student at 1e250": (
        td.StudentT(number(1.0)),
        1e250,
        True,
        lambda: 1 / (mp.pi * mp.mpf(1e250)),
    ),
    "Cauchy at 1e200": (
        td.Cauchy(number(0.0), number(1.0)),
        1e200,
        True,
        lambda: 1 / (mp.pi * mp.mpf(1e200)),
    ),
    "F at 1e50": (td.FisherSnedecor(number(3.0), number(7.0)), 1e50, True, None),
    "logistic at 600": (_logistic(number(0.0), number(1.0)), 600.0, True, lambda: mp.exp(-600)),
    "Gumbel at 600": (td.Gumbel(number(0.0), number(1.0)), 600.0, True, lambda: mp.exp(-600)),
    "Weibull near 0": (
        td.Weibull(number(1.0), number(3.0)),
        1e-90,
        False,
        lambda: mp.mpf(1e-90) ** 3,
    ),
    "Pareto near 1": (td.Pareto(number(1.0), number(3.0)), 1 + 2**-50, False, None),
}


def _power_series(name: str) -> mp.mpf:
    """Leading powers, where the rest is below rounding."""
    if name == "gamma at 1e-90":
        return mp.mpf(1e-90) ** mp.mpf(2.5) / mp.gamma(mp.mpf(3.5))
    if name == "Pareto near 1":
        return 1 - (1 + mp.mpf(2) ** -50) ** -3
    nu = mp.mpf(3.3)
    if name == "Student at 1e80":
        return mp.power(nu, nu / 2 - 1) * mp.mpf(1e80) ** -nu / mp.beta(nu / 2, 0.5)
    w = mp.mpf(7) / (3 * mp.mpf(1e50))
    return w ** mp.mpf(3.5) / (3.5 * mp.beta(3.5, 1.5))


@pytest.mark.parametrize("name", FAR)
def test_far_tails_have_all_their_digits(name: str):
    dist, x, upper, exact = FAR[name]
    with mp.workdps(400 if "beta" in name or "normal" in name else 60):
        expected = float(_power_series(name) if exact is None else exact())
    assert float(cdf(dist, x, upper=upper)) == pytest.approx(expected, rel=2e-12, abs=0)


@pytest.mark.parametrize(
    ("a", "x"), [(0.01, 1e-3), (0.3, 3.0), (2.5, 2.5), (50.0, 40.0), (50.0, 90.0)]
)
def test_derivatives_in_the_shape_have_the_digits_of_the_number(a: float, x: float):
    shape = number(a).requires_grad_()
    (first,) = torch.autograd.grad(cdf(td.Gamma(shape, number(1.0)), x), shape, create_graph=True)
    (second,) = torch.autograd.grad(first, shape)

    def tail(v: mp.mpf) -> mp.mpf:
        return mp.gammainc(v, 0, mp.mpf(x), regularized=True)

    with mp.workdps(40):  # by Cauchy's integral
        exact = [
            float(mp.re(mp.diff(tail, mp.mpf(a), n, method="quad", radius=a / 4))) for n in (1, 2)
        ]
    assert float(first.detach()) == pytest.approx(exact[0], rel=1e-11, abs=0)
    assert float(second) == pytest.approx(exact[1], rel=1e-11, abs=0)


COUNTS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "Poisson": (td.Poisson, (7.3,)),
    "binomial": (partial(td.Binomial, 12), (0.3,)),
    "binomial, logits": (lambda v: td.Binomial(12, logits=v), (-0.7,)),
    "geometric": (td.Geometric, (0.2,)),
    "negative binomial": (td.NegativeBinomial, (4.5, 0.4)),
    "Bernoulli": (td.Bernoulli, (0.3,)),
    "Bernoulli, logits": (lambda v: td.Bernoulli(logits=v), (0.3,)),
    "categorical": (lambda v: td.Categorical(torch.stack([v, 0.7 - v, v**0 * 0.3])), (0.2,)),
    "mixture": (
        lambda r, w: td.MixtureSameFamily(
            td.Categorical(torch.stack([w, 1 - w])), td.Poisson(torch.stack([r, 5 * r]))
        ),
        (1.5, 0.3),
    ),
}
counts = pytest.mark.parametrize(("make", "values"), COUNTS.values(), ids=COUNTS.keys())


@counts
@both_tails
def test_counts_are_sums_of_masses(make, values, upper: bool):
    dist = make(*map(number, values))
    k = torch.arange(300.0, dtype=torch.float64)
    last = float(support_of(dist).upper)
    mass = torch.where(k <= last, dist.log_prob(k.clamp(max=last)).exp(), 0.0)
    at = number(-1.0, 0.0, 0.5, 1.0, 2.0, 5.0, 11.5, 12.0, 40.0)
    kept = (k > at[:, None]) if upper else (k <= at[:, None])
    torch.testing.assert_close(
        cdf(dist, at, upper=upper), (mass * kept).sum(-1), rtol=1e-10, atol=1e-300
    )


@counts
@both_tails
def test_counts_are_differentiable_in_their_parameters(make, values, upper: bool):
    theta = [number(v).requires_grad_() for v in values]
    k = number(0.0, 1.0, 5.0)

    def tail(*theta: Tensor) -> Tensor:
        return cdf(make(*theta), k, upper=upper)

    assert torch.autograd.gradcheck(tail, theta, rtol=1e-5, atol=1e-9)
    assert torch.autograd.gradgradcheck(tail, theta, rtol=1e-4, atol=1e-8)


@counts
@both_tails
def test_quantiles_of_counts_are_the_smallest(make, values, upper: bool):
    dist = make(*map(number, values))
    p = number(1e-12, 0.01, 0.3, 0.5, 0.99)
    k = quantile(dist, p, upper=upper)
    here, before = cdf(dist, k, upper=upper), cdf(dist, k - 1, upper=upper)
    assert ((here <= p) if upper else (here >= p)).all()
    assert (((before > p) if upper else (before < p)) | (k == 0)).all()
    torch.testing.assert_close(quantile(dist, here, upper=upper)[1:4], k[1:4])


def test_batches_independent_and_float32_parameters():
    loc, scale = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 2.0, 4.0])
    base = td.Normal(loc, scale)
    x = number(0.3, 0.1, -2.0)
    expected = torch.as_tensor(st.norm(loc.numpy(), scale.numpy()).cdf(x.numpy()))
    torch.testing.assert_close(cdf(base, x), expected)
    torch.testing.assert_close(cdf(td.Independent(base, 1), x), expected)
    torch.testing.assert_close(quantile(td.Independent(base, 2), expected), x.expand(2, 3))


def test_transforms_that_rise_for_some_and_fall_for_others():
    scale = number(2.0, -2.0)
    dist = td.TransformedDistribution(
        td.Exponential(number(1.0, 1.0)), [td.AffineTransform(number(0.0, 0.0), scale)]
    )
    x = number(3.0, -3.0)
    expected = number(-math.expm1(-1.5), math.exp(-1.5))
    torch.testing.assert_close(cdf(dist, x), expected)
    torch.testing.assert_close(quantile(dist, expected), x)


@pytest.mark.parametrize("name", ["normal", "gamma", "beta", "Student", "Pareto"])
def test_under_vmap_and_torch_func(name: str):
    make, values, _ = CONTINUOUS[name]
    theta = tuple(map(number, values))
    x = quantile(make(*theta), number(0.2, 0.6))

    def tail(x: Tensor, *theta: Tensor) -> Tensor:
        return cdf(make(*theta, validate_args=False), x)

    each = torch.func.vmap(torch.func.hessian(tail), in_dims=(0, *[None] * len(theta)))
    expected = torch.stack(
        [torch.autograd.functional.hessian(lambda t: tail(t, *theta), v) for v in x]
    )
    torch.testing.assert_close(each(x, *theta), expected)
    in_first = torch.func.vmap(
        torch.func.jacfwd(torch.func.grad(tail, 1), 1), (0, *[None] * len(theta))
    )
    leaf = theta[0].clone()
    expected = torch.stack(
        [torch.autograd.functional.hessian(lambda t, v=v: tail(v, t, *theta[1:]), leaf) for v in x]
    )
    torch.testing.assert_close(in_first(x, *theta), expected)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_numbers_stay_on_their_device(name: str):
    """On meta tensors, which fail on whatever would mix devices."""
    make, values, _ = CONTINUOUS[name]
    if name in {"logistic", "falling", "mixture", "Student", "F"}:
        pytest.skip("torch or a search asks for numbers")
    theta = [torch.empty(3, dtype=torch.float64, device="meta") for _ in values]
    dist = make(*theta, validate_args=False)
    assert cdf(dist, theta[0]).is_meta
    assert quantile(dist, theta[0]).is_meta


def test_what_is_unknown_is_named():
    with pytest.raises(NotImplementedError, match="no distribution function of VonMises; known"):
        cdf(td.VonMises(number(0.0), number(1.0)), 0.0)
    absolute = td.TransformedDistribution(td.Normal(number(0.0), number(1.0)), [td.AbsTransform()])
    with pytest.raises(NotImplementedError, match="is not monotone"):
        cdf(absolute, 0.5)

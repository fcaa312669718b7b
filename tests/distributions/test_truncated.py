"""Truncated distributions: their tails are ratios, far out too, and draws follow them."""

from __future__ import annotations

import math

import laws
import mpmath as mp
import pytest
import scipy.stats as st
import torch
from problems.expectations import mixture, number
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.draw import draw
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import copied, in_double
from probcalc.distributions.support import support_of
from probcalc.distributions.truncated import Truncated

NORMAL = td.Normal(number(0.0), number(1.0))
# name -> truncated distribution
CASES = {
    "normal": Truncated(NORMAL, -0.5, 2.0),
    "normal, far right": Truncated(NORMAL, low=30.0),
    "normal, far left": Truncated(NORMAL, high=-20.0),
    "normal, far and narrow": Truncated(NORMAL, 10.0, 10.5),
    "gamma": Truncated(td.Gamma(number(2.0), number(1.0)), high=1.0),
    "beta": Truncated(td.Beta(number(0.5), number(2.0)), 0.1, 0.7),
    "Student": Truncated(td.StudentT(number(3.3)), 1e6),
    "mixture": Truncated(mixture((0.3, 0.7), (-3.0, 2.0), (1.0, 0.5)), -1.0, 4.0),
    "twice": Truncated(Truncated(NORMAL, low=1.0), high=3.0),
}
COUNTS = {
    "Poisson above zero": Truncated(td.Poisson(number(1.5)), low=0),
    "binomial": Truncated(td.Binomial(12, number(0.3)), 1.5, 6.0),
    "Poisson, far": Truncated(td.Poisson(number(2.0)), low=50),
}
cases = pytest.mark.parametrize("dist", CASES.values(), ids=CASES.keys())


@cases
@pytest.mark.parametrize("upper", [False, True])
def test_quantiles_invert_the_distribution_function(dist: Truncated, upper: bool):
    p = number(1e-9, 0.01, 0.3, 0.8, 1 - 1e-9)
    x = quantile(dist, p, upper=upper)
    assert ((x >= dist.low) & (x <= dist.high)).all()
    torch.testing.assert_close(cdf(dist, x, upper=upper), p, rtol=1e-5, atol=1e-12)
    middle = cdf(dist, x[1:4], upper=upper)
    torch.testing.assert_close(middle, p[1:4], rtol=1e-9, atol=0)


@cases
def test_the_density_is_the_slope(dist: Truncated):
    x = dist.icdf(number(0.1, 0.5, 0.9)).requires_grad_()
    (slope,) = torch.autograd.grad(dist.cdf(x).sum(), x)
    torch.testing.assert_close(slope, dist.log_prob(x).exp(), rtol=1e-9, atol=0)
    outside = number(*(v for v in (float(dist.low) - 1, float(dist.high) + 1) if math.isfinite(v)))
    assert (dist.log_prob(outside) == -math.inf).all()


def test_a_far_tail_has_all_its_digits():
    tail = CASES["normal, far right"]
    with mp.workdps(60):
        exact = float(mp.ncdf(-30.05) / mp.ncdf(-30))
        log_density = float(mp.log(mp.npdf(30.05) / mp.ncdf(-30)))
    assert float(cdf(tail, 30.05, upper=True)) == pytest.approx(exact, rel=1e-11)
    assert float(tail.log_prob(number(30.05))) == pytest.approx(log_density, rel=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_derivatives_in_parameters_and_ends(p: float):
    theta = [number(v).requires_grad_() for v in (2.0, 1.5, 0.4, 3.0)]

    def build(a: Tensor, b: Tensor, low: Tensor, high: Tensor) -> Truncated:
        return Truncated(td.Gamma(a, b), low, high, validate_args=False)

    x = build(*theta).icdf(number(p)).detach()
    for function in (
        lambda *t: build(*t).icdf(number(p)),
        lambda *t: build(*t).log_prob(x),
        lambda *t: build(*t).cdf(x),
    ):
        assert torch.autograd.gradcheck(function, theta, atol=1e-7)
        assert torch.autograd.gradgradcheck(function, theta, atol=1e-5)


@pytest.mark.parametrize("dist", COUNTS.values(), ids=COUNTS.keys())
def test_counts_are_those_above_low_and_up_to_high(dist: Truncated):
    k = torch.arange(120.0, dtype=torch.float64)
    kept = (k > dist.low) & (k <= dist.high)
    last = float(support_of(dist.base).upper)
    base = torch.where(k <= last, dist.base.log_prob(k.clamp(max=last)).exp(), 0.0)
    mass = torch.where(kept, base, 0.0)
    mass = mass / mass.sum()
    torch.testing.assert_close(dist.log_prob(k.clamp(max=last)).exp() * (k <= last), mass)
    torch.testing.assert_close(cdf(dist, k), mass.cumsum(0), rtol=1e-9, atol=1e-15)
    support = support_of(dist)
    assert float(support.lower) == float(k[kept].min())
    assert float(quantile(dist, number(1e-12))) == float(k[kept].min())
    assert float(quantile(dist, number(1e-12), upper=True)) <= float(k[kept].max())


@pytest.mark.parametrize("name", ["normal", "normal, far right", "beta", "mixture"])
def test_draws_follow_the_distribution(name: str, generator: torch.Generator):
    dist = CASES[name]
    x = draw(dist, (20_000,), generator)
    laws.assert_distributed(x, cdf(dist, x), distance=0.05)


def test_torch_draws_copies_batches_and_float32(seed: int):
    dist = Truncated(td.Normal(torch.zeros(2), 1.0), torch.tensor([[1.0], [2.0]]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = dist.rsample((5,))
    assert x.shape == (5, 2, 2)
    assert x.dtype == torch.float32
    assert (x >= dist.low).all()
    torch.testing.assert_close(copied(dist).log_prob(x), dist.log_prob(x))
    assert in_double(dist).log_prob(x.double()).dtype == torch.float64
    assert dist.expand((3, 2, 2)).log_prob(x[:3]).shape == (3, 2, 2)
    assert not COUNTS["binomial"].has_rsample
    with pytest.raises(NotImplementedError, match="have no gradient; use `sample`"):
        COUNTS["binomial"].rsample()


def test_scipy_agrees():
    x = number(-0.4, 0.0, 1.9)
    oracle = st.truncnorm(-0.5, 2.0)
    torch.testing.assert_close(CASES["normal"].cdf(x), torch.as_tensor(oracle.cdf(x.numpy())))
    torch.testing.assert_close(
        CASES["normal"].log_prob(x), torch.as_tensor(oracle.logpdf(x.numpy()))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NORMAL, 2.0, 1.0), "`low` must be below `high`, got 2.0 and 1.0"),
        ((NORMAL, math.nan, 1.0), "must not be NaN"),
        ((NORMAL, 60.0), "must have mass between `low` and `high`, got none"),
        ((td.Poisson(number(1.0)), 1.2, 1.8), "must have mass between"),
        ((td.Dirichlet(torch.ones(2)), 0.0), r"distribution of numbers, got Dirichlet .* \(2,\)"),
    ],
)
def test_bad_input(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Truncated(*arguments)


def test_moments_are_referred_to_expect():
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match="pc.expect"):
            getattr(CASES["normal"], moment)

"""Fixed Gauss rules: exact for polynomials, honest elsewhere, usable inside every transform."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from laws import assert_within
from problems.expectations import number
from torch import Tensor
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc import GaussQuadrature, Status, expect, integrate

RULE = GaussQuadrature(20)
CORRELATED = td.MultivariateNormal(
    number(0.5, 1.0), torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double()
)
# name -> (function, distribution, value)
SMOOTH = {
    "normal": (lambda x: x.exp(), td.Normal(number(0.0, 1.0), number(1.0, 0.5)), None),
    "log-normal": (lambda x: x**0.5, td.LogNormal(number(0.3), number(0.8)), math.exp(0.23)),
    "gamma": (lambda x: x**3, td.Gamma(number(2.5), number(2.0)), 2.5 * 3.5 * 4.5 / 8),
    "chi-squared": (lambda x: x**2, td.Chi2(number(3.0)), 15.0),
    "exponential": (lambda x: (-x).exp(), td.Exponential(number(2.0)), 2 / 3),
    "beta": (lambda x: x**2, td.Beta(number(0.5), number(1.5)), 0.125),
    "uniform": (torch.exp, td.Uniform(number(-1.0), number(2.0)), (math.e**2 - 1 / math.e) / 3),
    "Weibull": (lambda x: x**2, td.Weibull(number(1.0), number(2.0)), 1.0),
    "correlated": (lambda x: x.prod(-1), CORRELATED, 1.0),
    "low rank": (
        lambda x: x.prod(-1),
        td.LowRankMultivariateNormal(number(0.5, 1.0), number([[1.0], [0.5]]), number(1.0, 1.0)),
        1.0,
    ),
    "independent": (
        lambda x: x.square().sum(-1),
        td.Independent(td.Gamma(number(2.0, 3.0), number(1.0, 2.0)), 1),
        9.0,
    ),
    "Dirichlet": (
        lambda x: x[..., 0] * x[..., 1],
        td.Dirichlet(number(0.5, 2.0, 3.0)),
        0.5 * 2 / (5.5 * 6.5),
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name: str):
    fn, dist, value = SMOOTH[name]
    result = expect(fn, dist, method=RULE)
    if value is None:
        value = (dist.loc + dist.scale**2 / 2).exp()
    error = (result.value - value).abs()
    assert result.ok
    assert (error <= result.error + 1e-14).all()
    assert (error <= 1e-9).all()


@pytest.mark.parametrize("shape", [0.05, 0.5, 1.0, 7.0])
def test_shapes_may_differ_in_a_batch(shape: float):
    dist = td.Gamma(number(shape, 2.0), number(1.0, 3.0))
    result = expect(lambda x: x**4, dist, method=RULE)
    exact = torch.exp(torch.lgamma(dist.concentration + 4) - torch.lgamma(dist.concentration))
    torch.testing.assert_close(result.value, exact / dist.rate**4, rtol=1e-10, atol=0.0)


ROUGH = {
    "kink": (torch.abs, math.sqrt(2 / math.pi)),
    "kink elsewhere": (
        lambda x: (x - 0.7).abs(),
        0.7 * math.erf(0.7 / math.sqrt(2)) + math.sqrt(2 / math.pi) * math.exp(-0.245),
    ),
    "jump": (lambda x: (x > 0.3).double(), 0.5 * math.erfc(0.3 / math.sqrt(2))),
    "root": (lambda x: x.abs().sqrt(), 0.8221789586624),
    "wave": (lambda x: (9 * x).cos(), math.exp(-40.5)),
}


@pytest.mark.parametrize(("fn", "exact"), ROUGH.values(), ids=ROUGH.keys())
@pytest.mark.parametrize("n", [10, 20, 21, 40])
def test_the_bar_covers_what_the_rule_misses(fn, exact: float, n: int):
    result = expect(fn, td.Normal(number(0.0), number(1.0)), method=GaussQuadrature(n))
    assert_within(result, exact)


def gaps(c: Tensor, phase: Tensor) -> dict[str, tuple]:
    """Name -> function of x and its value for a standard normal x, for places and phases."""
    cdf, density = torch.special.ndtr(c), (-0.5 * c * c).exp() / math.sqrt(2 * math.pi)
    kink = 2 * density + c * (2 * cdf - 1)
    w = 10 ** (1.5 * c.tanh())  # both slow and far too fast
    return {
        "kink": (lambda x, c, p: (x - c).abs(), kink),
        "kink on a slope": (lambda x, c, p: 1e4 * x + (x - c).abs(), kink),
        "jump": (lambda x, c, p: (x > c).double(), 1 - cdf),
        "ramp": (lambda x, c, p: (x - c).relu() ** 2, (1 + c * c) * (1 - cdf) - c * density),
        "wave": (
            lambda x, c, p: (10 ** (1.5 * c.tanh()) * x + p).cos(),
            phase.cos() * (-0.5 * w * w).exp(),
        ),
        "smooth": (lambda x, c, p: (c * x).exp(), (0.5 * c * c).exp()),
        "odd": (lambda x, c, p: (c * x).sinh(), 0.0 * c),
    }


@pytest.mark.parametrize("name", gaps(number(0.0), number(0.0)))
@pytest.mark.parametrize("n", [20, 21, 40])
def test_bars_cover_wherever_the_trouble_lies(name: str, n: int):
    """All but one in a hundred, by less than ten times the bar."""
    generator = torch.Generator().manual_seed(n)
    c = torch.randn(3000, generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(3000, generator=generator, dtype=torch.float64)
    fn, exact = gaps(c, phase)[name]
    dist = td.Normal(torch.zeros_like(c), torch.ones_like(c))
    result = expect(fn, dist, args=(c, phase), method=GaussQuadrature(n))
    error = (result.value - exact).abs() - 4e-16 * exact.abs() - 1e-17
    assert (error > result.error).double().mean() < 0.01
    assert (error > 10 * result.error).double().mean() < 0.001


def test_intervals_and_boxes():
    lower, upper = number(0.0, 1.0), number(1.0, -1.0)
    result = integrate(torch.exp, lower, upper, method=RULE)
    torch.testing.assert_close(result.value, upper.exp() - lower.exp(), rtol=1e-14, atol=1e-14)
    box = integrate(lambda x: x.prod(-1), lower, number(1.0, 2.0), event_dim=1, method=RULE)
    assert float(box.value) == pytest.approx(0.75, rel=1e-13)
    assert int(box.num_evals) == 402


def log_density(theta: Tensor) -> Tensor:
    """A density with an expectation and an integral inside."""
    prior = td.Normal(theta[0], theta[1].exp(), validate_args=False)
    mean = expect(torch.sigmoid, prior, method=RULE).value
    gamma = td.Gamma(theta[1].exp(), theta[0].exp(), validate_args=False)
    wave = expect(torch.sin, gamma, method=RULE).value
    area = integrate(lambda x, a: (a * x).sin(), 0.0, 1.0, args=(theta[1],), method=RULE).value
    return mean.log() + area + wave


def test_inside_every_transform():
    """vmap, grad, hessian, make_fx and a whole compiled graph give the same numbers."""
    theta = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    plain = torch.stack([log_density(t) for t in theta])
    torch.testing.assert_close(torch.vmap(log_density)(theta), plain)
    slope = torch.func.grad(log_density)
    slopes = torch.stack([slope(t) for t in theta])
    torch.testing.assert_close(torch.vmap(slope)(theta), slopes)
    traced = make_fx(torch.vmap(slope))(theta)
    torch.testing.assert_close(traced(theta + 0.1), torch.vmap(slope)(theta + 0.1))
    curvature = torch.func.hessian(log_density)(theta[0])
    torch.testing.assert_close(curvature, torch.func.jacrev(slope)(theta[0]))


def test_inside_a_compiled_graph():
    """Whole, in a process of its own: run-time checks of shapes cannot be compiled."""
    script = """
import torch
from torch.distributions import Normal
from probcalc import GaussQuadrature, expect, integrate
rule = GaussQuadrature(20)
def log_density(t):
    mean = expect(torch.sigmoid, Normal(t[0], t[1].exp(), validate_args=False), method=rule)
    area = integrate(lambda x, a: (a * x).sin(), 0.0, 1.0, args=(t[1],), method=rule)
    return mean.value.log() + area.value
t = torch.tensor([0.3, -0.2], dtype=torch.float64)
compiled = torch.compile(log_density, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(t), log_density(t))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    ("family", "at"),
    [
        (lambda t: td.Normal(t, t**2), 0.7),
        (lambda t: td.Gamma(t, 1 + t), 1.3),
        (lambda t: td.Beta(t, 2 * t), 0.8),
        (lambda t: td.Uniform(t, 3 * t), 0.5),
        (lambda t: td.Dirichlet(torch.stack([t, t + 1, 2 * t])), 1.1),
        (lambda t: td.MultivariateNormal(torch.stack([t, t]), torch.eye(2).double() * t), 0.9),
    ],
)
def test_derivatives_in_parameters(family, at: float):
    fn = lambda x: x.square() + x  # noqa: E731

    def value(t: Tensor) -> Tensor:
        return expect(fn, family(t), method=GaussQuadrature(8)).value

    t = number(at).requires_grad_()
    assert torch.autograd.gradcheck(value, t)
    assert torch.autograd.gradgradcheck(value, t)


def test_a_large_batch_is_evaluated_in_pieces():
    """With arguments that carry the batch, forward and backward."""
    num, seen = 30_000, []
    scale = torch.ones(num, dtype=torch.float64, requires_grad=True)

    def fn(x: Tensor, a: Tensor) -> Tensor:
        seen.append(x.numel())
        return a * x

    dist = td.Normal(torch.arange(num, dtype=torch.float64), 1.0)
    result = expect(fn, dist, args=(scale,), method=RULE)
    result.value.sum().backward()
    torch.testing.assert_close(result.value.detach(), dist.loc)
    torch.testing.assert_close(scale.grad, dist.loc)
    assert max(seen) <= 2**18
    assert len(seen) >= 4


def test_what_is_not_finite_is_flagged():
    result = expect(lambda x: (x - 1).log(), td.Normal(number(0.0), number(1.0)), method=RULE)
    assert result.status == Status.NON_FINITE
    assert result.error == math.inf


BAD = {
    "few": (lambda: GaussQuadrature(3), ValueError, "at least 4, got 3"),
    "family": (
        lambda: expect(torch.sin, td.Cauchy(0.0, 1.0), method=RULE),
        NotImplementedError,
        "Cauchy is not known as an image",
    ),
    "dimensions": (
        lambda: expect(torch.sin, td.Dirichlet(torch.ones(9)), method=RULE),
        ValueError,
        "20 points an axis in 8 dimensions has 25,600,000,002 points",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, error: type, text: str):
    with pytest.raises(error, match=text):
        call()

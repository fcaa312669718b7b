"""Expectations on the log scale: every peak is found, wherever it is and however narrow."""

from __future__ import annotations

import math
import re

import pytest
import scipy.special
import torch
from laws import ALPHA, assert_within
from problems.expectations import NORMAL, number
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, MonteCarlo, log_expect

INF = math.inf
LOG_2PI = math.log(2 * math.pi)


def bumps(*peaks: tuple[float, float, float]):
    """Logarithm of a sum of Gaussian bumps, each with a place, a width and a log height."""

    def log_fn(x: Tensor) -> Tensor:
        each = [h - 0.5 * ((x - c) / s) ** 2 for c, s, h in peaks]
        return torch.stack(each).logsumexp(dim=0)

    return log_fn


def under_normal(*peaks: tuple[float, float, float]) -> float:
    """Exact: a bump of width s is s √(2π) N(c; 0, 1 + s²)."""
    return float(
        scipy.special.logsumexp(
            [
                h + math.log(s) - 0.5 * (math.log1p(s * s) + c * c / (1 + s * s))
                for c, s, h in peaks
            ]
        )
    )


PEAKS = {
    "one": ((0.3, 1e-6, 0.0),),
    "two alike": ((-1.0, 1e-5, 0.0), (1.0, 1e-5, 0.0)),
    "two unlike": ((-1.3, 1e-3, 0.0), (1.7, 1e-6, 3.0)),
    "three": ((-2.0, 1e-4, 0.0), (0.3, 3e-4, 1.0), (2.1, 1e-3, -1.0)),
    "five": tuple((0.7 * i - 1.5, 1e-4, 0.1 * i) for i in range(5)),
    "narrow and tall on broad": ((0.4, 3e-4, 8.0), (0.0, 1.0, 0.0)),
    "near each other": ((0.1, 1e-5, 0.0), (0.11, 1e-5, 0.0)),
    "far out": ((-20.0, 1e-4, 0.0), (20.0, 1e-4, 0.0)),
}


@pytest.mark.parametrize("peaks", PEAKS.values(), ids=PEAKS.keys())
def test_no_peak_is_lost(peaks: tuple):
    result = log_expect(bumps(*peaks), NORMAL)
    exact = under_normal(*peaks)
    assert result.ok
    assert_within(result, exact, atol=1e-8)
    assert float(result.error) <= 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_two_peaks_anywhere(seed: int):
    """A batch of places, widths and heights over five decades."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, 2, 20, generator=generator, dtype=torch.float64)
    place = u[0] * 2.5 + torch.tensor([[-3.0], [0.5]]).double()
    width, height = 10 ** (-5 + 3 * u[1]), 4 * u[2]

    def log_fn(x: Tensor, c: Tensor, s: Tensor, h: Tensor) -> Tensor:
        return (h - 0.5 * ((x[..., None] - c) / s) ** 2).logsumexp(dim=-1)

    result = log_expect(
        log_fn, td.Normal(torch.zeros(20).double(), 1.0), args=(place.T, width.T, height.T)
    )
    v = 1 + width**2
    exact = (height + width.log() - 0.5 * (v.log() + place**2 / v)).logsumexp(dim=0)
    assert result.ok
    assert_within(result, exact, atol=1e-8)


def test_the_two_roots_of_a_square():
    """exp(−n/2 (x² − a²)²): two peaks of width 1/(2a√n); Laplace's method is exact to 1/n."""
    n, a, sd = 1e6, 1.5, 2.0
    result = log_expect(lambda x: -0.5 * n * (x * x - a * a) ** 2, td.Normal(number(0.0), sd))
    laplace = math.log(2) - 0.5 * (a / sd) ** 2 - math.log(sd * 2 * a * math.sqrt(n))
    assert result.ok
    assert float(result.value) == pytest.approx(laplace, abs=2e-6)


# name -> (log function, distribution, exact value)
FAR = {
    "normal": (lambda x: 100 * x, NORMAL, 5000.0),
    "normal, left": (lambda x: -1000 * x, NORMAL, 5e5),
    "exponential": (
        lambda x: -1e10 * (x - 1e3) ** 2,
        td.Exponential(number(1.0)),
        0.5 * math.log(math.pi * 1e-10) - 1e3 + 0.25e-10,
    ),
    "uniform": (lambda x: 1e6 * x, td.Uniform(number(0.0), number(1.0)), 1e6 - math.log(1e6)),
    "beta": (
        lambda x: 1e5 * x.log() + 2e5 * (1 - x).log(),
        td.Beta(number(0.5), number(0.5)),
        float(scipy.special.betaln(1e5 + 0.5, 2e5 + 0.5)) - math.log(math.pi),
    ),
    "constant": (lambda x: 0 * x - 1e5, NORMAL, -1e5),
}


@pytest.mark.parametrize(("log_fn", "dist", "exact"), FAR.values(), ids=FAR.keys())
def test_the_peak_may_be_anywhere(log_fn, dist, exact: float):
    result = log_expect(log_fn, dist)
    assert result.ok
    assert abs(float(result.value) - exact) <= float(result.error) + 1e-9 * abs(exact)
    assert float(result.error) <= 1e-6 + 1e-9 * abs(exact)


# name -> (distribution of pairs, exact value of log E exp(−|x|²/2))
PAIRS = {
    "one": (td.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()), -math.log(2)),
    "batch": (
        td.Independent(td.Normal(torch.zeros(3, 2).double(), number(1.0)), 1),
        -math.log(2),
    ),
}


@pytest.mark.parametrize(("dist", "exact"), PAIRS.values(), ids=PAIRS.keys())
def test_more_dimensions_are_sampled(dist, exact: float, generator: torch.Generator):
    result = log_expect(
        lambda x: -0.5 * x.square().sum(dim=-1),
        dist,
        method=MonteCarlo(),
        confidence=1 - ALPHA,
        generator=generator,
    )
    assert result.ok
    assert_within(result, exact)
    assert (result.error < 0.01).all()


def test_few_points_need_no_draws():
    dist = td.OneHotCategorical(number(0.25, 0.75))
    result = log_expect(lambda x: 1000 * x[..., 0], dist)
    assert float(result.value) == pytest.approx(1000 + math.log(0.25), rel=1e-14)
    assert result.method == "log of enumeration"


def test_families_without_quantiles_are_looked_at_through_draws():
    class Triangle(td.Distribution):
        """Density 2x on [0, 1]."""

        arg_constraints: dict = {}
        support = td.constraints.unit_interval

        def log_prob(self, x: Tensor) -> Tensor:
            return (2 * x).log()

        def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
            return torch.rand(shape).double().sqrt()

    triangle = Triangle(validate_args=False)
    result = log_expect(lambda x: 500 * x, triangle, dtype=torch.float64)
    exact = 500 + math.log(2 * (1 / 500 - 1 / 500**2))
    assert float(result.value) == pytest.approx(exact, abs=1e-8)


DIVERGENT = {
    "e^(0.55 x²)": (lambda x: 0.55 * x * x, NORMAL),
    "undefined": (lambda x: (x - 0.5).sqrt(), td.Uniform(number(0.0), number(1.0))),
    "counts": (lambda k: k * math.log(2.1), td.Geometric(number(0.5))),
}


@pytest.mark.parametrize(("log_fn", "dist"), DIVERGENT.values(), ids=DIVERGENT.keys())
def test_what_has_no_value_is_flagged(log_fn, dist):
    with pytest.warns(EstimateWarning):
        assert not log_expect(log_fn, dist).ok


BAD = {
    "complex": (lambda: log_expect(lambda x: 1j * x, NORMAL), "`log_fn` must return real numbers"),
    "no function": (lambda: log_expect(3.0, NORMAL), "the function must be callable"),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, text: str):
    with pytest.raises(TypeError) as raised:
        call()
    checked = "Type-check error" in str(raised.value)
    assert checked or re.search(text, str(raised.value))

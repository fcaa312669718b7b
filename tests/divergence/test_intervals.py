"""Divergences from uniform and truncated normal distributions: formulas, derivatives, ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import pytest
import torch
from laws import assert_within
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import GaussKronrod, kl
from probcalc.distributions.truncated import Truncated

INF = math.inf
Make = Callable[..., td.Distribution]

# family, parameters; every one has the interval from 0 to 1
FAMILIES: dict[str, tuple[Make, tuple[float, ...]]] = {
    "normal": (td.Normal, (0.3, 1.2)),
    "Laplace": (td.Laplace, (0.4, 1.2)),
    "Laplace outside": (td.Laplace, (3.0, 1.2)),
    "Student": (td.StudentT, (3.0, 0.2, 1.1)),
    "narrow Student": (td.StudentT, (3.0, 0.2, 0.01)),
    "Cauchy": (td.Cauchy, (0.2, 1.1)),
    "Gumbel": (td.Gumbel, (0.2, 1.1)),
    "half normal": (td.HalfNormal, (1.2,)),
    "half Cauchy": (td.HalfCauchy, (1.2,)),
    "log-normal": (td.LogNormal, (0.1, 0.8)),
    "exponential": (td.Exponential, (1.3,)),
    "gamma": (td.Gamma, (2.0, 1.5)),
    "gamma with a pole": (td.Gamma, (0.4, 1.5)),
    "inverse gamma": (td.InverseGamma, (3.0, 2.0)),
    "Weibull": (td.Weibull, (1.2, 1.7)),
    "beta": (td.Beta, (2.0, 3.0)),
    "continuous Bernoulli": (td.ContinuousBernoulli, (0.3,)),
}
INTERVALS = [(0.1, 0.9), (0.0, 1.0), (0.0, 0.3), (0.5, 0.5 + 2.0**-20), (1e-9, 2e-9)]


@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")  # of the integrals
@pytest.mark.parametrize("ends", INTERVALS, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_from_uniform_as_integrals_give(name: str, ends: tuple[float, float]):
    make, given = FAMILIES[name]
    p, q = td.Uniform(number(ends[0]), number(ends[1])), make(*map(number, given))
    exact = kl(p, q)
    assert exact.method == "closed form"
    taken = kl(p, q, method=GaussKronrod(), rtol=1e-11)
    if math.isinf(float(exact.value)):
        assert taken.value == INF
        return
    assert abs(float(exact.value - taken.value)) <= float(exact.error + taken.error) + 1e-15


@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.4, 0.45)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_from_uniform(name: str, ends: tuple[float, float]):
    make, given = FAMILIES[name]
    args = [number(t).requires_grad_() for t in (*ends, *given)]
    torch.autograd.gradcheck(lambda low, high, *t: kl(td.Uniform(low, high), make(*t)).value, args)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_an_interval_from_zero(name: str):
    """In its upper end, and in what q is: those in the lower end are infinite for some."""
    make, given = FAMILIES[name]
    if name == "inverse gamma":
        return  # infinite
    args = [number(t).requires_grad_() for t in (0.7, *given)]
    low = number(0.0)
    torch.autograd.gradcheck(lambda high, *t: kl(td.Uniform(low, high), make(*t)).value, args)


OUTSIDE = {
    "below zero": (td.Exponential(number(1.0)), -0.1, 1.0),
    "above one": (td.Beta(number(2.0), number(3.0)), 0.0, 1.1),
    "before it starts": (td.Pareto(number(0.5), number(3.0)), 0.4, 1.0),
}


@pytest.mark.parametrize(("q", "low", "high"), OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_q_does_not_have_is_infinite(q: td.Distribution, low: float, high: float):
    """In the elements where it is missing, with derivatives that are numbers."""
    ends = number(low, 0.6).requires_grad_(), number(high, 0.9).requires_grad_()
    found = kl(td.Uniform(*ends), q)
    assert found.value[0] == INF
    assert found.error[0] == 0
    alone = kl(td.Uniform(number(0.6), number(0.9)), q)
    assert float(found.value[1].detach()) == pytest.approx(float(alone.value), rel=1e-15)
    slopes = torch.autograd.grad(found.value[1], ends)
    assert all(s.isfinite().all() for s in slopes)


def cut(m: float, s: float, low: float, high: float) -> Truncated:
    return Truncated(td.Normal(number(m), number(s)), number(low), number(high))


TRUNCATED = {
    "both ends": (cut(0.2, 1.0, -1.0, 2.0), cut(0.5, 1.3, -2.0, 4.0)),
    "to the whole line": (cut(0.2, 1.0, -1.0, 2.0), td.Normal(number(0.0), number(1.4))),
    "one end": (cut(0.2, 1.0, 0.0, INF), cut(0.5, 1.3, -2.0, INF)),
    "upper end": (cut(0.2, 1.0, -INF, 0.0), cut(0.5, 1.3, -INF, 3.0)),
    "no end": (cut(0.2, 1.0, -INF, INF), cut(0.5, 1.3, -INF, INF)),
    "far": (cut(0.2, 1.0, 30.0, INF), cut(0.5, 1.3, -2.0, INF)),
    "far below": (cut(0.2, 1.0, -INF, -30.0), td.Normal(number(0.5), number(1.3))),
    "narrow": (cut(0.2, 1.0, 0.5, 0.53), cut(0.5, 1.3, -2.0, 4.0)),
    "narrow and far": (cut(0.2, 1.0, 20.0, 20.03), cut(0.5, 1.3, -2.0, 21.0)),
    "nearly the same": (cut(0.2, 1.0, -1.0, 2.0), cut(0.2001, 1.0, -1.0, 2.0)),
}


def by_mpmath(p: Truncated, q: td.Distribution) -> float:
    with mp.workdps(40):

        def parts(d: td.Distribution) -> tuple:
            base = d.base if isinstance(d, Truncated) else d
            ends = (d.low, d.high) if isinstance(d, Truncated) else (-INF, INF)
            m, s, low, high = (mp.mpf(float(t)) for t in (base.loc, base.scale, *ends))
            # of the two tails the smaller
            sign = -1 if high < m else 1
            a, b = sorted(sign * (t - m) / s for t in (low, high))
            mass = (mp.erfc(a / mp.sqrt(2)) - mp.erfc(b / mp.sqrt(2))) / 2
            return (lambda x: mp.log(mp.npdf(x, m, s) / mass)), low, high, m, s

        log_p, low, high, m, s = parts(p)
        log_q = parts(q)[0]
        top = min(max(m, low), high)
        places = [top + k * s / 4 for k in range(-80, 81)]
        points = [max(low, top - 20 * s), *places, min(high, top + 20 * s)]
        points = sorted({x for x in points if low <= x <= high})
        return float(mp.quad(lambda x: mp.exp(log_p(x)) * (log_p(x) - log_q(x)), points))


@pytest.mark.parametrize(("p", "q"), TRUNCATED.values(), ids=TRUNCATED.keys())
def test_truncated_normals_as_mpmath_gives(p: Truncated, q: td.Distribution):
    found = kl(p, q)
    assert found.method == "closed form"
    assert_within(found, by_mpmath(p, q))
    assert float(found.error) <= 1e-12 * (1 + 100 * float(found.value))


@pytest.mark.parametrize("ends", [(-1.0, 2.0), (0.5, 0.7), (4.0, 6.0), (-6.0, -4.0)], ids=str)
def test_derivatives_of_truncated_normals(ends: tuple[float, float]):
    def value(m: Tensor, s: Tensor, low: Tensor, high: Tensor, n: Tensor, t: Tensor) -> Tensor:
        p, q = Truncated(td.Normal(m, s), low, high), Truncated(td.Normal(n, t), -7.0, 7.0)
        return kl(p, q).value + kl(p, td.Normal(n, t)).value

    args = [number(x).requires_grad_() for x in (0.2, 1.1, *ends, 0.4, 1.3)]
    torch.autograd.gradcheck(value, args)


def test_truncated_normals_that_leave_the_other():
    p = Truncated(td.Normal(number(0.0), number(1.0)), number(-1.0, 0.0), 2.0)
    found = kl(p, cut(0.0, 1.0, -0.5, 3.0))
    assert found.value[0] == INF
    assert 0 < found.value[1] < INF
    assert kl(p, p).value.tolist() == [0.0, 0.0]


def test_very_narrow_ones_are_integrated():
    p, q = cut(0.2, 1.0, 0.5, 0.5 + 1e-6), cut(0.5, 1.3, -2.0, 4.0)
    found = kl(p, q)
    assert found.method == "adaptive Gauss–Kronrod"
    assert float(found.value) == pytest.approx(by_mpmath(p, q), rel=1e-10)

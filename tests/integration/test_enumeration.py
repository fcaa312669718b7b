"""Sums over counts: right wherever the terms lie, or flagged."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pyro.distributions as pyro_dist
import pytest
import scipy.stats
import torch
from laws import assert_within
from mpmath import mp
from problems.expectations import number
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, Status, expect, log_expect, probability
from probcalc.integration.enumeration import Enumeration

INF = math.inf
RATES = (0.0, 1e-3, 2.5, 1e2, 8e3, 2e4, 1e6, 1e8)


def power(z: float):
    return lambda k: z**k


def step(at: float, height: float):
    """One, and much more from somewhere far out."""
    return lambda k: 1 + height * (k > at).double()


def mixed(weights: tuple, parts: td.Distribution) -> td.Distribution:
    return td.MixtureSameFamily(td.Categorical(number(*weights)), parts)


# name -> (function, distribution, exact value)
SUMS = {
    **{f"Poisson({r:g})": (lambda k: k, td.Poisson(number(r)), r) for r in RATES},
    "k², Poisson": (lambda k: k * k, td.Poisson(number(3e5)), 3e5 + 9e10),
    "binomial of a billion": (lambda k: k, td.Binomial(10**9, number(0.3)), 3e8),
    "certain": (lambda k: k, td.Binomial(10**7, number(1.0)), 1e7),
    "negative binomial": (
        lambda k: k,
        td.NegativeBinomial(number(12000.0), probs=number(0.5)),
        12000.0,
    ),
    "slow": (lambda k: k, td.Geometric(number(4e-4)), 2499.0),
    "slower": (lambda k: k, td.Geometric(number(1e-4)), 9999.0),
    "slow and short": (
        lambda k: k,
        td.NegativeBinomial(number(5.0), probs=number(0.9997)),
        5 * 0.9997 / 0.0003,
    ),
    "r below one": (
        lambda k: k * k,
        td.NegativeBinomial(number(0.01), probs=number(0.9)),
        0.01 * 0.9 / 0.01 + 0.09**2,
    ),
    "alternating": (power(-1.0), td.Geometric(number(0.3)), 0.3 / 1.7),
    "growing": (power(1.9), td.Geometric(number(0.5)), 10.0),
    "overflows where p vanishes": (power(15.0), td.Poisson(number(10.0)), math.exp(140.0)),
    "factorial": (
        lambda k: (k + 1).lgamma().exp(),
        td.Poisson(number(0.5)),
        2 * math.exp(-0.5),
    ),
    "not a number where p vanishes": (
        lambda k: k.exp() / k.exp(),
        td.Poisson(number(4.0)),
        1.0,
    ),
    "mixture": (
        lambda k: k * k,
        mixed((1 - 1e-9, 1e-9), td.Poisson(number(1.0, 5e4))),
        2 * (1 - 1e-9) + 1e-9 * (5e4 + 25e8),
    ),
    "jump far to the right": (step(20_000, 0.99**-20_001.0), td.Geometric(number(0.01)), 2.0),
    "jump at the end": (
        step(99_999, 0.5 ** (-1e-3 * 1e5)),
        td.Binomial(100_000, number(0.5**1e-3)),
        2.0,
    ),
    "fall far to the left": (
        lambda k: 1 + (k <= 96_000).double() / 1.9446798528565386e-37,
        td.Poisson(number(1e5)),
        2.0,
    ),
    "zero where the mass is": (
        lambda k: (k == 97_000).double(),
        td.Poisson(number(1e5)),
        scipy.stats.poisson(1e5).pmf(97_000),
    ),
    "zero everywhere": (lambda k: 0 * k, td.Poisson(number(1e5)), 0.0),
}


@pytest.mark.parametrize(("fn", "dist", "exact"), SUMS.values(), ids=SUMS.keys())
def test_every_term_that_matters_is_summed(fn, dist, exact: float):
    result = expect(fn, dist)
    assert result.ok
    assert result.method == "enumeration"
    assert_within(result, exact)
    assert float(result.error) <= 1e-8 * abs(exact)
    assert int(result.num_evals) <= 2**20


# infinite, or more than can be summed: name -> (function, distribution, flag)
REFUSED = {
    "St Petersburg": (power(2.0), td.Geometric(number(0.5)), Status.DIVERGENT),
    "e^(k²/1000)": (
        lambda k: (k * k / 1e3).exp(),
        td.Poisson(number(4.0)),
        Status.NON_FINITE,
    ),
    "k^-½ 2^k": (
        lambda k: 2.0**k * (k + 1) ** -0.5,
        td.Geometric(number(0.5)),
        Status.NON_FINITE,
    ),
    "infinite far to the left": (
        lambda k: torch.where(k < 100, INF, 1.0),
        td.Poisson(number(3e4)),
        Status.NON_FINITE,
    ),
    "infinite far to the right": (
        lambda k: torch.where(k > 1000, INF, 1.0),
        td.Poisson(number(4.0)),
        Status.NON_FINITE,
    ),
    "1/k": (lambda k: 1 / k, td.Poisson(number(1e5)), Status.NON_FINITE),
    "too slow": (lambda k: k, td.Geometric(number(1e-6)), Status.UNRESOLVED_MASS),
    "rounded away": (
        lambda k: k,
        td.Binomial(10**15, number(1e-13)),
        Status.ROUNDOFF,
    ),
    "too wide": (lambda k: k, td.Poisson(number(1e12)), Status.UNRESOLVED_MASS),
    "too far apart": (
        lambda k: k,
        mixed((0.5, 0.5), td.Poisson(number(1.0, 1e9))),
        Status.UNRESOLVED_MASS,
    ),
}


@pytest.mark.parametrize(("fn", "dist", "flag"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_summed_is_flagged(fn, dist, flag: Status):
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist)
    assert flag in result.flags
    assert result.error == INF
    assert int(result.num_evals) <= 2**20


TAILS = {
    "Poisson, left": (td.Poisson(number(1e5)), None, 96_000.0),
    "Poisson, right": (td.Poisson(number(1e5)), 104_000.0, None),
    "Poisson, middle": (td.Poisson(number(1e5)), 99_900.0, 100_100.0),
    "Poisson, huge": (td.Poisson(number(1e8)), None, 1e8 - 3e5),
    "binomial": (td.Binomial(50_000, number(0.3)), None, 12_000.0),
    "geometric": (td.Geometric(number(1e-3)), 50_000.0, None),
    "geometric, all but some": (td.Geometric(number(1e-4)), 100.0, None),
}


@pytest.mark.parametrize(("dist", "lower", "upper"), TAILS.values(), ids=TAILS.keys())
def test_tails_on_either_side(dist, lower: float | None, upper: float | None):
    law = {
        td.Poisson: lambda d: scipy.stats.poisson(float(d.rate)),
        td.Binomial: lambda d: scipy.stats.binom(float(d.total_count), float(d.probs)),
        td.Geometric: lambda d: scipy.stats.geom(float(d.probs), loc=-1),
    }[type(dist)](dist)
    result = probability(dist, lower, upper)
    exact = law.cdf(upper) if lower is None else law.sf(lower)
    if lower is not None and upper is not None:
        exact = law.cdf(upper) - law.cdf(lower)
    assert result.ok
    assert_within(result, exact)
    assert float(result.error) <= 1e-5 * exact


@pytest.mark.parametrize("rate", RATES)
def test_the_sum_of_the_masses_is_one(rate: float):
    result = expect(torch.ones_like, td.Poisson(number(rate)))
    assert abs(float(result.value) - 1) <= float(result.error) <= 1e-9


# name -> (function, exact value under Poisson(4), computed in float32)
SINGLES = {
    "k": (lambda k: k, 4.0),
    "3^k overflows early": (power(3.0), math.exp(8.0)),
    "e^k overflows early": (lambda k: k.exp(), math.exp(4 * (math.e - 1))),
    "not a number early": (lambda k: k.exp() / k.exp(), 1.0),
}


@pytest.mark.parametrize(("fn", "exact"), SINGLES.values(), ids=SINGLES.keys())
def test_single_precision_knows_its_limits(fn, exact: float):
    result = expect(fn, td.Poisson(torch.tensor(4.0)))
    assert result.ok
    assert result.value.dtype == torch.float32
    assert abs(float(result.value) - exact) <= float(result.error) <= 1e-6 * exact


@pytest.mark.parametrize("seed", range(20))
def test_any_exponential_of_any_family(seed: int):
    """E z^K is the probability generating function."""
    generator = torch.Generator().manual_seed(seed)
    u, v, w = torch.rand(3, 16, generator=generator, dtype=torch.float64)
    rate, p, r = 10 ** (6 * u - 1), 0.05 + 0.9 * v, 10 ** (5 * u - 1)
    z = 1 + (2 * w - 1) / (4 * rate.clamp(min=1.0))
    families = {
        td.Poisson(rate): (lambda z, t: mp.exp(t * (z - 1)), rate),
        td.NegativeBinomial(r, probs=p): (lambda z, t, q: ((1 - q) / (1 - q * z)) ** t, r, p),
        td.Geometric(p): (lambda z, q: q / (1 - (1 - q) * z), p),
    }
    converges = {td.NegativeBinomial: p * z < 1, td.Geometric: (1 - p) * z < 1}
    for dist, (generating, *parameters) in families.items():
        with mp.workdps(50):
            rows = zip(z.tolist(), *(t.tolist() for t in parameters), strict=True)
            exact = [mp.re(generating(*map(mp.mpf, row))) for row in rows]
            fits = torch.tensor([1e-300 < e < 1e300 for e in exact])
            fits &= converges.get(type(dist), torch.ones_like(fits))
            result = expect(lambda k, z=z, fits=fits: torch.where(fits, z**k, 1.0), dist)
            pairs = zip(result.value.tolist(), exact, strict=True)
            gap = number(*[float(abs(value - truth)) for value, truth in pairs])
        assert result.ok
        assert (gap <= result.error)[fits].all()


def test_every_element_has_its_own_window():
    rates = number(0.0, 1.0, 1e2, 2e4, 3e6)
    together = expect(lambda k: k, td.Poisson(rates))
    alone = [expect(lambda k: k, td.Poisson(r)) for r in rates]
    torch.testing.assert_close(together.value, torch.stack([a.value for a in alone]))
    assert together.num_evals.tolist() == [int(a.num_evals) for a in alone]
    counts = td.Binomial(torch.tensor([3, 5, 10**7]), number(0.3))
    torch.testing.assert_close(
        expect(lambda k: k, counts).value, number(0.9, 1.5, 3e6), rtol=1e-11, atol=0
    )


def test_values_may_be_vectors_and_complex():
    """Each component on its own scale."""
    rate = number(4.0, 1e5)
    result = expect(lambda k: torch.stack([k, 1e-30 * k * k], dim=-1), td.Poisson(rate))
    exact = torch.stack([rate, 1e-30 * (rate + rate**2)], dim=-1)
    assert_within(result, exact)
    assert (result.error <= 1e-10 * exact).all()
    wave = expect(lambda k: torch.exp(0.3j * k), td.Poisson(rate))
    exact = (rate * (torch.exp(torch.tensor(0.3j, dtype=torch.complex128)) - 1)).exp()
    assert wave.ok
    assert_within(wave, exact)


@pytest.mark.parametrize("rate", [0.7, 300.0, 1e5])
def test_derivatives_of_every_kind(rate: float):
    """Of E a k² in the parameter and in a, given or closed over, to second order."""
    m, a = number(rate).requires_grad_(), number(1.5).requires_grad_()
    exact = (1.5 * (1 + 2 * rate), rate + rate**2)
    for value in (
        expect(lambda k, a: a * k**2, td.Poisson(m), args=(a,)).value,
        expect(lambda k: a * k**2, td.Poisson(m)).value,
    ):
        slopes = torch.autograd.grad(value, (m, a), create_graph=True)
        torch.testing.assert_close(slopes, tuple(map(number, exact)), rtol=1e-9, atol=0)
        (curve,) = torch.autograd.grad(slopes[0], m)
        assert float(curve) == pytest.approx(3.0, rel=1e-5)
    by_func = torch.func.grad(lambda m: expect(lambda k: k**2, td.Poisson(m)).value)(m.detach())
    assert float(by_func) == pytest.approx(1 + 2 * rate, rel=1e-9)


def test_a_gradient_keeps_one_block():
    """What is saved for the gradient does not grow with the number of terms."""
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    m = number(1e8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = expect(lambda k: k, td.Poisson(m)).value
    assert sum(saved) < 2**16
    assert float(torch.autograd.grad(value, m)[0]) == pytest.approx(1.0, rel=1e-6)


def test_declared_growth_is_believed():
    """The same sum, without a look at where there is no mass."""
    seen: list[float] = []

    def cube(k: Tensor) -> Tensor:
        seen.append(float(k.max()))
        return k**3

    rate = number(4.0, 1e4)
    declared = expect(cube, td.Poisson(rate), method=Enumeration(growth=3.0))
    assert max(seen) < 1e5
    plain = expect(cube, td.Poisson(rate))
    assert max(seen) > 1e15
    torch.testing.assert_close(declared.value, plain.value)
    exact = rate**3 + 3 * rate**2 + rate
    for result in (declared, plain):
        assert_within(result, exact)
        assert (result.error <= 1e-10 * exact).all()


@pytest.mark.parametrize("max_evals", [50, 100, 250])
def test_what_a_budget_leaves_out_is_bounded(max_evals: int):
    """The bar holds the truth or the flag stands, whatever is left out."""
    with pytest.warns(EstimateWarning) if max_evals < 250 else pytest.MonkeyPatch.context():
        result = expect(lambda k: k, td.Poisson(number(100.0)), max_evals=max_evals)
    assert int(result.num_evals) <= max_evals
    assert result.ok == (max_evals == 250)
    assert_within(result, 100)


def test_masses_that_do_not_sum_to_one_are_noticed():
    class Half(td.Poisson):
        """A Poisson law that lost half its mass."""

        def log_prob(self, k: Tensor) -> Tensor:
            return super().log_prob(k) - math.log(2)

    with pytest.warns(EstimateWarning, match="mass may lie where"):
        assert not expect(lambda k: k, Half(number(3.0))).ok


def test_large_finite_supports_are_not_written_out():
    """A table of all their integers would not fit in memory."""
    dist = td.Binomial(10**10, number(1e-8))
    result = expect(lambda k: k, dist)
    assert result.ok
    assert float(result.value) == pytest.approx(100.0, rel=1e-6)
    assert int(result.num_evals) < 2**14


POINTS = {
    "number": (pyro_dist.Delta(number(2.0)), lambda x: x**2, number(4.0)),
    "batch": (pyro_dist.Delta(number(2.0, 3.0)), lambda x: x**2, number(4.0, 9.0)),
    "event": (
        pyro_dist.Delta(number(2.0, 3.0), event_dim=1),
        lambda x: x.prod(dim=-1),
        number(6.0),
    ),
    "weighted": (
        pyro_dist.Delta(number(2.0), log_density=number(5.0)),
        lambda x: torch.stack([x, 2 * x], dim=-1),
        number(2.0, 4.0),
    ),
}


@pytest.mark.parametrize(("dist", "fn", "exact"), POINTS.values(), ids=POINTS.keys())
def test_point_masses_are_one_term(dist, fn, exact: Tensor):
    result = expect(fn, dist, method=Enumeration())
    torch.testing.assert_close(result.value, exact)
    assert result.ok
    assert (result.num_evals == 1).all()
    logs = log_expect(lambda x: fn(x).log(), dist, method=Enumeration())
    torch.testing.assert_close(logs.value, exact.log())


def test_point_masses_have_derivatives():
    point = number(3.0).requires_grad_()
    value = expect(lambda x: x**3, pyro_dist.Delta(point), method=Enumeration()).value
    assert torch.autograd.grad(value, point)[0] == 27
    with pytest.warns(EstimateWarning):
        undefined = expect(lambda x: (-x).sqrt(), pyro_dist.Delta(point), method=Enumeration())
    assert Status.NON_FINITE in undefined.flags


# name -> (log function, distribution, exact value)
LOGS = {
    "tilted to the left": (lambda k: -0.7 * k, td.Poisson(number(3e4)), 3e4 * math.expm1(-0.7)),
    "far to the left": (lambda k: -5.0 * k, td.Poisson(number(1e5)), 1e5 * math.expm1(-5.0)),
    "tilted to the right": (lambda k: 3 * k, td.Poisson(number(4.0)), 4 * math.expm1(3.0)),
    "far to the right": (
        lambda k: 11.5 * k,
        td.Poisson(number(50.0)),
        50 * math.expm1(11.5),
    ),
    "slow": (lambda k: 1e-3 * k, td.Geometric(number(0.01)), -math.log1p(-99 * math.expm1(1e-3))),
    "shut": (lambda k: torch.full_like(k, -INF), td.Poisson(number(4.0)), -INF),
}


@pytest.mark.parametrize(("log_fn", "dist", "exact"), LOGS.values(), ids=LOGS.keys())
def test_logarithms_follow_the_terms_wherever_they_are(log_fn, dist, exact: float):
    result = log_expect(log_fn, dist)
    assert result.ok
    assert float(result.value) == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert exact == -INF or abs(float(result.value) - exact) <= float(result.error)


BAD = {
    "growth": (lambda: Enumeration(growth=-1.0), "`growth` must be a finite power"),
    "support": (
        lambda: expect(lambda x: x, td.Normal(0.0, 1.0), method=Enumeration()),
        "the support of Normal cannot be enumerated",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, text: str):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize(("n", "p"), [(10**9, 0.3), (10**8, 0.01), (10**6, 0.3), (5000, 0.2)])
def test_bars_know_the_rounding_of_large_counts(n: int, p: float):
    """Of a mean far larger than the spread, whose variance must not be a difference of squares."""
    result = expect(lambda k: k, td.Binomial(number(float(n)), number(p)))
    exact = float(n * Fraction(p))
    assert result.ok
    assert abs(float(result.value) - exact) <= float(result.error) <= 1e-9 * exact

"""Expectations of any distribution: right, or flagged; differentiable in everything."""

from __future__ import annotations

import math
import re

import mpmath
import pytest
import scipy.stats
import torch
from laws import assert_within
from problems.expectations import CONTINUOUS, DISCRETE, FLAGGED, GOOD, NARROW, number
from torch import Tensor
from torch import distributions as td

from probcalc import (
    EstimateWarning,
    GaussKronrod,
    Moment,
    MonteCarlo,
    Status,
    expect,
    log_expect,
    probability,
)

INF = math.inf

NARROW_AND_WIDE = {**CONTINUOUS, **NARROW}


@pytest.mark.parametrize(("fn", "dist", "exact"), GOOD.values(), ids=GOOD.keys())
def test_right_and_with_a_bar_that_says_so(fn, dist, exact: float):
    result = expect(fn, dist)
    assert result.ok
    assert abs(float(result.value) - exact) <= max(float(result.error), 1e-8 * abs(exact))
    assert float(result.error) <= 2e-7 * abs(exact)


@pytest.mark.parametrize(("fn", "dist"), FLAGGED.values(), ids=FLAGGED.keys())
def test_what_has_no_value_is_flagged(fn, dist):
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist)
    assert not result.ok
    assert result.error == math.inf


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions_are_summed(name: str):
    fn, dist, _ = DISCRETE[name]
    assert expect(fn, dist).method == "enumeration"


def test_needles_anywhere_are_found(generator: torch.Generator):
    """A hundred normals over eighteen decades of place and scale, all at once."""
    place, scale = (10 ** (18 * torch.rand(100, generator=generator).double() - 9) for _ in "ab")
    scale = torch.maximum(scale, 1e-7 * place)  # points next to x cannot be nearer than that
    result = expect(lambda x: x, td.Normal(place, scale))
    assert result.ok
    assert ((result.value - place).abs() <= 1e-8 * place + result.error).all()
    assert (result.error <= 1e-7 * torch.maximum(place, scale)).all()


BATCHES = {
    "continuous": (
        lambda x, a: (a * x).cos(),
        lambda p: td.Normal(p, 1 + p**2),
        lambda p, a: (a * p).cos() * (-0.5 * (a * (1 + p**2)) ** 2).exp(),
    ),
    "finite": (lambda k, a: a * k, td.Bernoulli, lambda p, a: a * p),
    "countable": (lambda k, a: a**k, td.Poisson, lambda p, a: (p * (a - 1)).exp()),
}


@pytest.mark.parametrize(("fn", "family", "exact"), BATCHES.values(), ids=BATCHES.keys())
def test_batches_and_gradients(fn, family, exact):
    """In arguments, parameters and closures, first and second order."""
    p, a = number(0.2, 0.5, 0.9).requires_grad_(), number(0.7, 1.1, 2.0).requires_grad_()
    truth = exact(p, a)
    first = torch.autograd.grad(truth.sum(), (p, a), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (p, a))
    for result in (expect(fn, family(p), args=(a,)), expect(lambda x: fn(x, a), family(p))):
        assert result.ok
        torch.testing.assert_close(result.value, truth, rtol=1e-8, atol=1e-10)
        got = torch.autograd.grad(result.value.sum(), (p, a), create_graph=True)
        torch.testing.assert_close(got, first, rtol=1e-6, atol=1e-8)
        again = torch.autograd.grad(sum(g.sum() for g in got), (p, a))
        torch.testing.assert_close(again, second, rtol=1e-5, atol=1e-7)


# name -> (function, family of one parameter, parameter, exact derivative)
SLOPES = {
    "indicator": (
        lambda x: (x > 0).double(),
        lambda m: td.Normal(m, 1.0),
        0.3,
        0.3813878154605241,
    ),
    "Bernoulli": (lambda k: k, td.Bernoulli, 0.3, 1.0),
    "support": (lambda x: x, lambda t: td.Uniform(number(0.0), t), 2.0, 0.5),
    "√|x|": (lambda x: x.abs().sqrt(), lambda m: td.Normal(m, 1.0), 0.5, 0.1932422988),
    "log x, Gamma": (lambda x: x.log(), lambda a: td.Gamma(a, 1.0), 2.0, math.pi**2 / 6 - 1),
    "Beta": (lambda x: x, lambda a: td.Beta(a, 2.0), 0.5, 0.32),
    "von Mises": (lambda x: x.cos(), lambda k: td.VonMises(0.0, k), 2.0, 0.1642231977),
}


@pytest.mark.parametrize(("fn", "family", "at", "exact"), SLOPES.values(), ids=SLOPES.keys())
def test_derivatives_that_others_get_wrong(fn, family, at: float, exact: float):
    parameter = number(at).requires_grad_()
    (slope,) = torch.autograd.grad(expect(fn, family(parameter)).value, parameter)
    assert float(slope) == pytest.approx(exact, rel=2e-7)
    by_func = torch.func.grad(lambda t: expect(fn, family(t)).value)(number(at))
    assert float(by_func) == pytest.approx(exact, rel=2e-7)


def test_a_gradient_through_where_is_finite():
    mean = number(0.5).requires_grad_()
    value = expect(lambda x: torch.where(x > 0, x.log(), 0.0), td.Normal(mean, 1.0)).value
    assert torch.autograd.grad(value, mean)[0].isfinite()


@pytest.mark.parametrize("places", [[-6.0], [-6.0, -3.0, -0.3], [-1.0, 2.0, 1e6, INF], []])
def test_breaks_beyond_the_support_change_nothing(places: list[float]):
    """All of a heavy tail is there: x² of a density that falls as x⁻⁶."""
    heavy = td.GeneralizedPareto(number(0.0), number(1.0), number(0.2))
    found = expect(lambda x: x * x, heavy, breaks=places)
    assert float(found.value) == pytest.approx(25 / 6, rel=1e-8)


def test_breaks_are_numbers():
    with pytest.raises(ValueError, match="`breaks` must not be NaN"):
        expect(lambda x: x, td.Normal(0.0, 1.0), breaks=[math.nan])


def test_declared_functions_need_no_integration():
    dist = td.Gamma(number(2.0, 3.0), number(1.0))
    result = expect(Moment(3), dist)
    torch.testing.assert_close(result.value, number(24.0, 60.0))
    assert result.method == "closed form"
    assert int(result.num_evals.sum()) == 0
    infinite = expect(Moment(2), td.StudentT(number(2.0)))
    assert infinite.value == math.inf
    assert infinite.error == 0
    assert infinite.ok
    with pytest.warns(EstimateWarning, match="looks infinite"):
        assert not expect(Moment(1), td.Cauchy(number(0.0), number(1.0))).ok


def test_float32_functions_see_float32():
    seen: set[torch.dtype] = set()

    def fn(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return x**2

    result = expect(fn, td.Normal(torch.tensor(0.0), torch.tensor(1.0)))
    assert seen == {torch.float32}
    assert result.value.dtype == torch.float32
    assert abs(float(result.value) - 1) <= float(result.error) < 1e-5


def test_families_without_quantiles_are_cut_by_draws():
    class Triangle(td.Distribution):
        """Density 2x on [0, 1], moved far out."""

        arg_constraints: dict = {}
        support = td.constraints.interval(1e6, 1e6 + 1)

        def log_prob(self, x: Tensor) -> Tensor:
            return (2 * (x - 1e6)).log()

        def sample(self, shape: tuple[int, ...] = ()) -> Tensor:
            return 1e6 + torch.rand(shape).double().sqrt()

    result = expect(lambda x: x - 1e6, Triangle(validate_args=False), dtype=torch.float64)
    assert result.ok
    assert float(result.value) == pytest.approx(2 / 3, rel=1e-8)


def test_many_dimensions_are_sampled(generator: torch.Generator):
    dist = td.Independent(td.Normal(torch.zeros(2, 150), 1.0), 1)
    result = expect(lambda x: x.square().sum(-1), dist, generator=generator, max_evals=20_000)
    assert "16 scrambles" in result.method
    assert result.std_error is not None
    assert_within(result, 150)
    assert result.error.max() < 0.5


HEAVY = {
    "no variance": (lambda x: x, td.Pareto(number(1.0), number(1.2)), Status.INFINITE_VARIANCE),
    "no mean": (lambda x: x, td.Cauchy(number(0.0), number(1.0)), Status.DIVERGENT),
    "nothing seen": (lambda x: (x > 9).double(), td.Normal(0.0, 1.0), Status.UNRESOLVED_MASS),
    "not finite": (lambda x: x.log(), td.Normal(0.0, 1.0), Status.NON_FINITE),
}


@pytest.mark.parametrize(("fn", "dist", "flag"), HEAVY.values(), ids=HEAVY.keys())
def test_monte_carlo_refuses_a_bar(fn, dist, flag: Status, generator: torch.Generator):
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist, method=MonteCarlo(20_000), generator=generator)
    assert flag in result.flags
    assert result.error == math.inf


def test_one_seed_one_answer():
    def once(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        method = MonteCarlo(1_000)
        return float(
            expect(torch.sin, td.Normal(1.0, 1.0), method=method, generator=generator).value
        )

    assert once(3) == once(3) != once(4)


LOGS = {
    "overflow": (lambda x: 1000 * x, td.Uniform(number(0.0), number(1.0)), 1000 - math.log(1000)),
    "far out": (lambda x: 50 * x, td.Normal(number(0.0), number(1.0)), 1250.0),
    "narrow": (
        lambda x: -1e12 * (x - 30) ** 2,
        td.Normal(number(0.0), number(1.0)),
        -0.5 * math.log(1 + 2e12) - 9e14 / (1 + 2e12),
    ),
    "counts": (lambda k: 3 * k, td.Poisson(number(4.0)), 4 * (math.exp(3) - 1)),
    "underflow": (lambda k: k - 800 - k, td.Poisson(number(4.0)), -800.0),
}


@pytest.mark.parametrize(("log_fn", "dist", "exact"), LOGS.values(), ids=LOGS.keys())
def test_logarithms_neither_overflow_nor_vanish(log_fn, dist, exact: float):
    result = log_expect(log_fn, dist)
    assert result.ok
    assert abs(float(result.value) - exact) <= max(float(result.error), 1e-8)
    assert float(result.error) < 1e-6


def test_log_evidence_of_a_batch_with_gradients():
    """Normal prior, normal likelihood: log N(y; m, 1 + s²)."""
    y, s = number(0.3, -2.0, 5.0), number(0.1, 1.0, 3.0)
    m = number(0.0, 1.0, 2.0).requires_grad_()

    def log_likelihood(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return td.Normal(x, s).log_prob(y)

    exact = td.Normal(m, (1 + s**2).sqrt()).log_prob(y)
    (slope,) = torch.autograd.grad(exact.sum(), m)
    for result in (
        log_expect(log_likelihood, td.Normal(m, 1.0), args=(y, s)),
        log_expect(lambda x: log_likelihood(x, y, s), td.Normal(m, 1.0)),
    ):
        torch.testing.assert_close(result.value, exact, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(torch.autograd.grad(result.value.sum(), m)[0], slope)


# name -> (distribution, lower, upper, exact)
PROBABILITIES = {
    "tail": (td.Normal(number(0.0), number(1.0)), 6.0, None, 9.865876450376981e-10),
    "far tail": (td.Normal(number(0.0), number(1.0)), 30.0, None, 4.906713927148187e-198),
    "left": (td.Normal(number(0.0), number(1.0)), None, -6.0, 9.865876450376981e-10),
    "middle": (td.Cauchy(number(0.0), number(1.0)), -1.0, 1.0, 0.5),
    "all": (td.Gamma(number(0.3), number(2.0)), None, None, 1.0),
    "outside": (td.Beta(number(2.0), number(3.0)), 1.0, 4.0, 0.0),
    "counts": (td.Poisson(number(2.0)), 39.0, None, 1.917158341594288e-37),
    "one count": (td.Binomial(10, number(0.3)), 2.0, 3.0, 0.266827932),
    "mixed up": (td.Normal(number(0.0), number(1.0)), 2.0, 1.0, 0.0),
}


@pytest.mark.parametrize(
    ("dist", "lower", "upper", "exact"), PROBABILITIES.values(), ids=PROBABILITIES.keys()
)
def test_probabilities_keep_their_digits(dist, lower, upper, exact: float):
    result = probability(dist, lower, upper)
    assert result.ok
    assert float(result.value) == pytest.approx(exact, rel=1e-8, abs=0.0)


def test_probabilities_of_batches_and_coordinates():
    lower, upper = number(-1.0, 0.0, 2.0), number(1.0, 3.0, INF)
    mean = number(0.0, 1.0, 2.0).requires_grad_()
    normal = td.Normal(mean, 1.0)
    exact = normal.cdf(upper) - normal.cdf(lower)
    each = probability(normal, lower, upper)
    torch.testing.assert_close(each.value, exact)
    together = probability(td.Independent(normal, 1), lower, upper)
    torch.testing.assert_close(together.value, exact.prod())
    assert abs(float(together.value.detach() - exact.detach().prod())) <= float(together.error)
    slopes = (torch.autograd.grad(p.prod(), mean)[0] for p in (each.value, exact))
    torch.testing.assert_close(*slopes)


def test_the_slope_of_a_probability_is_a_density():
    upper = number(0.7).requires_grad_()
    normal = td.Normal(number(0.0), number(1.0))
    (slope,) = torch.autograd.grad(probability(normal, upper=upper).value, upper)
    torch.testing.assert_close(slope, normal.log_prob(upper.detach()).exp())
    with pytest.raises(ValueError, match="must not be NaN"):
        probability(normal, math.nan)


def test_methods_may_be_named():
    named = expect(torch.exp, td.Normal(number(0.0), number(1.0)), method=GaussKronrod())
    assert float(named.value) == pytest.approx(math.exp(0.5), rel=1e-8)
    with pytest.raises(NotImplementedError, match="are not numbers"):
        expect(lambda x: x, td.Dirichlet(torch.ones(3)), method=GaussKronrod())


def test_rare_counts_agree_with_scipy():
    fn, dist, _ = DISCRETE["rare"]
    assert float(expect(fn, dist).value) == pytest.approx(scipy.stats.poisson(2).sf(39), rel=1e-12)


BAD = {
    "no distribution": (lambda: expect(torch.sin, 3.0), TypeError, "must be a torch Distribution"),
    "shape": (
        lambda: expect(lambda x: x.sum(), td.Normal(torch.zeros(2), 1.0)),
        ValueError,
        r"must return shape \(n, \*batch, \*out\)",
    ),
    "arguments": (
        lambda: expect(lambda x, a: a * x, td.Normal(torch.zeros(2), 1.0), args=(torch.ones(3),)),
        ValueError,
        r"`args\[0\]` must start with the batch shape \(2,\)",
    ),
    "order": (lambda: Moment(-1), ValueError, "`order` must be at least 0"),
    "draws": (lambda: MonteCarlo(1), ValueError, "at least 2"),
    "confidence": (
        lambda: expect(torch.sin, td.Normal(0.0, 1.0), confidence=1.0),
        ValueError,
        "`confidence` must lie between 0 and 1",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, error: type, text: str):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    checked = "Type-check error" in str(raised.value)  # by annotation, in other words
    assert checked or (isinstance(raised.value, error) and re.search(text, str(raised.value)))


@pytest.mark.parametrize("shape", [0.01, 0.03, 0.1])
def test_mass_over_many_powers_of_ten(shape: float):
    """E log x and its variance under Gamma(a): the bar says what lies below the least number."""
    a = number(shape)
    dist = td.Gamma(a, number(1.0))
    for fn, exact in [
        (torch.log, mpmath.psi(0, shape)),
        (lambda x: (x.log() - float(mpmath.psi(0, shape))) ** 2, mpmath.psi(1, shape)),
        (lambda x: x, shape),
    ]:
        result, exact = expect(fn, dist), float(exact)
        assert result.ok
        assert abs(float(result.value) - exact) <= float(result.error) + 1e-13 * abs(exact)
        assert float(result.error) <= (0.1 if shape == 0.01 else 1e-6) * abs(exact)

"""Plain Monte Carlo: an honest bar, in blocks, differentiable, and silent about nothing."""

from __future__ import annotations

import math

import laws
import pytest
import torch
from problems.expectations import NORMAL, number
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, MonteCarlo, QuasiMonteCarlo, Status, expect, log_expect
from probcalc.integration.running import Running, tail_length
from probcalc.integration.tails import pareto_khat

BLOCK = 2**14


def cube(d: int) -> td.Distribution:
    return td.MultivariateNormal(torch.zeros(d).double(), torch.eye(d).double())


# name -> (function, distribution, exact value)
CASES = {
    "squares": (lambda x: x.square().sum(dim=-1), cube(3), 3.0),
    "exponential": (lambda x: (0.5 * x[..., 0]).exp(), cube(3), math.exp(0.125)),
    "step": (lambda x: (x[..., 0] > 1).double(), cube(3), 0.15865525393145707),
    "wave": (lambda x: torch.exp(1j * x[..., 0]), cube(3), math.exp(-0.5)),
    "counts": (
        lambda x: x[..., 0] * x[..., 1],
        td.Multinomial(10, number(0.2, 0.3, 0.5)),
        90 * 0.06,
    ),
    "simplex": (
        lambda x: x[..., 0] * x[..., 1],
        td.Dirichlet(number(0.3, 0.5, 1.0)),
        0.15 / (1.8 * 2.8),
    ),
    "matrices": (
        lambda x: x.square().sum(dim=(-1, -2)),
        td.Independent(td.Normal(torch.zeros(2, 3).double(), number(1.0)), 2),
        6.0,
    ),
}


@pytest.mark.parametrize(("fn", "dist", "exact"), CASES.values(), ids=CASES.keys())
def test_the_bar_is_honest(fn, dist, exact: float):
    """z-scores over 100 independent runs behave like a standard normal."""
    generator = torch.Generator().manual_seed(0)
    method = MonteCarlo(2_000)
    runs = [expect(fn, dist, method=method, generator=generator) for _ in range(100)]
    assert all(r.ok for r in runs)
    z = torch.stack([(r.value.real - exact) / r.std_error for r in runs])
    assert abs(float(z.mean())) < 4 / 100**0.5
    assert z.std() < 1.3


@pytest.mark.parametrize("n", [2, 3_000, BLOCK + 1, 200_000])
def test_the_function_sees_blocks(n: int, generator: torch.Generator):
    """Never more points at once, however many there are."""
    seen: list[int] = []

    def fn(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.sum(dim=-1)

    with pytest.warns(EstimateWarning) if n < 100 else pytest.MonkeyPatch.context():
        result = expect(fn, cube(2), method=MonteCarlo(n), generator=generator)
    assert max(seen) <= BLOCK
    assert sum(seen) == int(result.num_evals)


def test_draws_depend_on_the_seed_alone():
    """Not on how many there are, nor on what the default generator did."""
    seen: list[Tensor] = []

    def fn(x: Tensor) -> Tensor:
        seen.append(x)
        return x.sum(dim=-1)

    for n in (BLOCK, 3 * BLOCK):
        torch.rand(n)
        generator = torch.Generator().manual_seed(5)
        expect(fn, cube(2), method=MonteCarlo(n), generator=generator)
    first, second = seen[0], seen[3]
    assert torch.equal(first, second)
    assert not torch.equal(seen[3], seen[4])


PARTS = {"one": [4_000], "halves": [2_000, 2_000], "uneven": [1, 10, 89, 3_900]}


@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("kind", ["normal", "heavy", "far", "complex"])
def test_a_stream_is_what_its_parts_are(kind: str, sizes: list[int], generator: torch.Generator):
    """Equal to the naive moments of all terms, however they were cut."""
    z = torch.randn(4_000, 2, 3, generator=generator, dtype=torch.float64)
    terms = {
        "normal": z,
        "heavy": (1.4 * z).exp(),
        "far": 1e8 + z,
        "complex": torch.complex(z, z.sin()),
    }[kind]
    top = tail_length(4_000) + 1
    parts = [Running.of(part, top) for part in terms.split(sizes)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part, top)
    size = terms.abs()
    torch.testing.assert_close(whole.mean, terms.mean(dim=0))
    torch.testing.assert_close(whole.std_error, terms.std(dim=0) / 4_000**0.5)
    torch.testing.assert_close(
        whole.effective, size.sum(dim=0).square() / size.square().sum(dim=0)
    )
    # the sum of |f − mean|, by which a tail may be too small to matter, is that of the parts
    torch.testing.assert_close(whole.khat(), Running.of(terms, top).khat(), rtol=1e-2, atol=1e-2)
    # as of all deviations at once, but that the largest third may say that there is no tail
    away = size - size.mean(dim=0) if terms.is_complex() else terms - terms.mean(dim=0)
    naive = pareto_khat(away.abs().log().movedim(0, -1))
    assert (whole.khat() <= naive + 1e-2).all()


@pytest.mark.parametrize("method", [MonteCarlo(), QuasiMonteCarlo()])
def test_heavy_tails_far_from_zero_are_seen(method, generator: torch.Generator):
    dist = td.Cauchy(number(1e5), number(0.1))
    with pytest.warns(EstimateWarning, match="no finite variance"):
        result = expect(lambda x: x, dist, method=method, generator=generator)
    assert Status.INFINITE_VARIANCE in result.flags


@pytest.mark.parametrize("fn", [lambda x: 1 / x, lambda x: x**3 / (1 + x**2)])
def test_infinities_that_cancel_in_pairs_are_no_mean(fn, generator: torch.Generator):
    dist = td.Uniform(number(-1.0), number(1.0))
    if not math.isinf(float(fn(number(0.0)))):
        dist = td.Cauchy(number(0.0), number(1.0))
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist, method=MonteCarlo(antithetic=True), generator=generator)
    assert float(result.error) == math.inf


CONSTANTS = {
    "one": lambda x: torch.ones(x.shape[:-1]),
    "third": lambda x: torch.full(x.shape[:-1], 1 / 3, dtype=torch.float64),
    "sum of shares": lambda x: x.softmax(dim=-1).sum(dim=-1),
    "other where there is no mass": lambda x: 1 + (x[..., 0] > 20).double(),
}


@pytest.mark.parametrize("fn", CONSTANTS.values(), ids=CONSTANTS.keys())
def test_constants_are_constant(fn, generator: torch.Generator):
    result = expect(fn, cube(3), method=MonteCarlo(), generator=generator)
    assert result.ok
    assert result.method == "Monte Carlo, all terms equal"
    exact = float(fn(torch.zeros(1, 3).double())[0])
    assert abs(float(result.value) - exact) <= float(result.error) < 1e-14


# name -> (function, distribution, flag)
UNSEEN = {
    "constant but for much": (
        lambda x: 1 + 1e6 * (x[..., 0] > 5).double(),
        cube(3),
        Status.UNRESOLVED_MASS,
    ),
    "nearly constant but for much": (
        lambda x: 1 + 1e-3 * x[..., 1] + 1e6 * (x[..., 0] > 5).double(),
        cube(3),
        Status.UNRESOLVED_MASS,
    ),
    "much below": (
        lambda x: 1 - 1e6 * (x[..., 0] > 5).double(),
        cube(3),
        Status.UNRESOLVED_MASS,
    ),
    "undefined far out": (
        lambda x: torch.where(x[..., 0] > 5, math.nan, 1.0),
        cube(3),
        Status.UNRESOLVED_MASS,
    ),
    "nothing met": (
        lambda x: (x[..., 0] > 5.5).double(),
        cube(3),
        Status.UNRESOLVED_MASS,
    ),
    "few met": (lambda x: (x[..., 0] > 3.8).double(), cube(3), Status.UNRESOLVED_MASS),
    "no variance": (lambda x: (0.4 * x[..., 0] ** 2).exp(), cube(3), Status.INFINITE_VARIANCE),
    "half a line": (
        lambda x: 1 + 1e7 * (x > 18).double(),
        td.Exponential(number(1.0)),
        Status.UNRESOLVED_MASS,
    ),
}


@pytest.mark.parametrize(("fn", "dist", "flag"), UNSEEN.values(), ids=UNSEEN.keys())
def test_what_was_not_met_is_looked_for(fn, dist, flag: Status, generator: torch.Generator):
    with pytest.warns(EstimateWarning):
        result = expect(fn, dist, method=MonteCarlo(), generator=generator)
    assert flag in result.flags
    assert result.error == math.inf


def test_each_element_has_its_own_flag(generator: torch.Generator):
    """The terms' tails have shapes 0.034 and 0.85: the second variance is infinite."""
    scale = number(1.0, 5.0)
    dist = td.Independent(td.Normal(torch.zeros(2, 3).double(), scale[:, None]), 1)
    with pytest.warns(EstimateWarning):
        result = expect(
            lambda x: (0.017 * x[..., 0] ** 2).exp(),
            dist,
            method=MonteCarlo(),
            generator=generator,
        )
    assert result.status[0] == 0
    assert result.status[1] != 0


# name -> (family of one parameter, function, exact derivative of E f in it, at 0.6)
SLOPES = {
    "pathwise": (
        lambda m: td.MultivariateNormal(m * torch.ones(2).double(), torch.eye(2).double()),
        lambda x: x.square().sum(dim=-1),
        2.4,
    ),
    "score": (
        lambda m: td.Independent(td.Poisson(m * torch.ones(2).double()), 1),
        lambda x: x.sum(dim=-1),
        2.0,
    ),
    "one number": (lambda m: td.Normal(m, 1.0), lambda x: x**2, 1.2),
}


@pytest.mark.parametrize(("family", "fn", "exact"), SLOPES.values(), ids=SLOPES.keys())
def test_derivatives_in_the_parameters(family, fn, exact: float, generator: torch.Generator):
    m, a = number(0.6).requires_grad_(), number(1.5).requires_grad_()
    for result in (
        expect(
            lambda x, a: a * fn(x), family(m), args=(a,), method=MonteCarlo(), generator=generator
        ),
        expect(lambda x: a * fn(x), family(m), method=MonteCarlo(), generator=generator),
    ):
        slope, own = torch.autograd.grad(result.value, (m, a))
        assert float(slope) == pytest.approx(1.5 * exact, abs=0.1)
        torch.testing.assert_close(own, result.value.detach() / 1.5)


def test_the_derivative_keeps_no_draws(generator: torch.Generator):
    """What is saved for the gradient does not grow with their number."""
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    m = torch.zeros(3).double().requires_grad_()
    dist = td.MultivariateNormal(m, torch.eye(3).double())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = expect(
            lambda x: x.exp().sum(dim=-1), dist, method=MonteCarlo(), generator=generator
        )
    assert sum(saved) < BLOCK
    slope = torch.autograd.grad(result.value, m)[0]
    torch.testing.assert_close(slope, torch.full_like(m, math.exp(0.5)), rtol=0.03, atol=0)


def test_logarithms_have_derivatives(generator: torch.Generator):
    """Of log E exp(a·x) = a²/2 in a."""
    a = number(0.5).requires_grad_()
    result = log_expect(lambda x: a * x[..., 0], cube(2), method=MonteCarlo(), generator=generator)
    value = result.value
    (slope,) = torch.autograd.grad(value, a)
    assert float(value.detach()) == pytest.approx(0.125, abs=0.01)
    assert float(slope) == pytest.approx(0.5, abs=0.02)


def test_draws_on_the_line_when_asked(generator: torch.Generator):
    result = expect(lambda x: x**2, NORMAL, method=MonteCarlo(50_000), generator=generator)
    laws.assert_within(result, 1)
    assert result.dof == math.inf


@pytest.mark.parametrize("method", [MonteCarlo(20_000), QuasiMonteCarlo(num_points=2**10)])
def test_values_that_are_not_finite_are_counted_and_one_is_shown(method):
    dist = td.Normal(torch.tensor([0.0, 5.0]).double(), torch.tensor([1.0, 1.0]).double())
    with pytest.warns(EstimateWarning, match="example"):
        result = expect(torch.log, dist, method=method, generator=laws.generator(0))
    assert (result.status & Status.NON_FINITE).tolist() == [Status.NON_FINITE, 0]
    told = result.diagnostics
    assert float(told["example"]) < 0
    share = told["non_finite"] / told["non_finite_among"]
    assert share == pytest.approx(0.25, abs=0.02)  # of two elements, half of the one's
    assert not expect(torch.cos, dist, method=method).diagnostics


NEARER_THAN_NUMBERS = {
    "gamma": (td.Gamma(number(1e-3), number(1.0)), torch.log),
    "beta": (td.Beta(number(1e-3), number(1.0)), torch.log),
    "beta at one": (td.Beta(number(1.0), number(1e-2)), lambda x: torch.log1p(-x)),
    "inverse gamma": (td.InverseGamma(number(1e-3), number(1.0)), torch.log),
    "one of two": (
        td.Independent(td.Gamma(number(1.0, 1e-3), number(1.0)), 1),
        lambda x: x.log().sum(dim=-1),
    ),
    "Dirichlet": (td.Dirichlet(number(1e-3, 2e-3, 1e-3)), lambda x: x.log().sum(dim=-1)),
}


@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
@pytest.mark.parametrize(
    ("dist", "log"), NEARER_THAN_NUMBERS.values(), ids=NEARER_THAN_NUMBERS.keys()
)
def test_mass_nearer_to_an_end_than_numbers_is_flagged(dist, log, generator: torch.Generator):
    """Draws are clipped there: half of them, and a mean of logarithms is half of what it is."""
    found = expect(log, dist, method=MonteCarlo(4096), generator=generator)
    assert Status.UNRESOLVED_MASS in found.flags
    assert found.error == math.inf


@pytest.mark.parametrize("shape", [0.02, 0.1])
def test_mass_that_does_not_count_is_not_flagged(shape: float, generator: torch.Generator):
    how = {"method": MonteCarlo(4096), "generator": generator}
    assert expect(lambda x: x / (1 + x), td.Beta(number(shape), number(1.0)), **how).ok
    assert expect(torch.log, td.Gamma(number(0.1 + shape), number(1.0)), **how).ok


@pytest.mark.parametrize("shape", [3e-3, 1e-3])
def test_bars_of_integrals_hold_what_is_nearer_to_zero_than_numbers(shape: float):
    dist = td.Gamma(number(shape), number(1.0))
    found = expect(torch.log, dist)
    laws.assert_within(found, float(torch.digamma(number(shape))))

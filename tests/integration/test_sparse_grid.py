"""Sparse grids: exact for polynomials, sharp for smooth functions, honest for all."""

from __future__ import annotations

import math

import laws
import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributions as td

from probcalc import EstimateWarning, SparseGrid, Status, expect, integrate
from probcalc.integration.interpolant import grown
from probcalc.integration.leja import LEVELS, leja
from probcalc.integration.orthogonal import HERMITE, LEGENDRE, Weight, gauss

WEIGHTS = [LEGENDRE, HERMITE, Weight("laguerre", (0.5,)), Weight("jacobi", (2.0, 0.5))]
CPU = torch.device("cpu")


def falling(d: int) -> Tensor:
    return 1 / torch.arange(1, d + 1, dtype=torch.float64)


def normals(d: int) -> td.Distribution:
    return td.Independent(td.Normal(torch.zeros(d, dtype=torch.float64), 1.0), 1)


def cube(d: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: w.name)
def test_newton_polynomials_vanish_at_earlier_points(weight: Weight):
    rule = leja(weight)
    assert len(set(rule.points.tolist())) == LEVELS
    h = np.stack(rule.newton(rule.points, LEVELS))
    np.testing.assert_array_equal(np.tril(h, -1).T[np.triu_indices(LEVELS, 1)], 0.0)
    np.testing.assert_allclose(np.diag(h), 1.0, rtol=1e-12)
    x, w = gauss(weight, 64)
    values = np.stack(rule.newton(x, LEVELS))
    np.testing.assert_allclose(values @ w, rule.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values**2 @ w, rule.norm**2, rtol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_interpolants_meet_their_nodes(dim: int):
    def at(z: Tensor) -> Tensor:
        return torch.stack([z.sum(dim=1).sin(), (z * falling(dim)).sum(dim=1).exp()], dim=1)

    nodes = grown(at, (HERMITE, LEGENDRE, *WEIGHTS)[:dim], 60, lambda mean, rest: True, CPU)
    assert nodes.levels.shape[1] == dim
    assert len(np.unique(nodes.levels, axis=0)) == len(nodes.levels)
    f = at(nodes.points)
    alpha = nodes.coefficients(f)
    torch.testing.assert_close(nodes.polynomials(nodes.points) @ alpha, f)


def test_the_axes_that_matter_get_the_nodes():
    def at(z: Tensor) -> Tensor:
        return (3 * z[:, :1] + 1e-3 * z[:, 1:2]).cos()

    nodes = grown(at, (HERMITE,) * 4, 40, lambda mean, rest: True, CPU)
    assert nodes.levels.max(axis=0).tolist()[0] > 10
    assert nodes.levels[:, 2:].max() == 1


# name -> (function, distribution, value)
POLYNOMIALS = {
    "squares of normals": (lambda x: x.square() @ falling(8), normals(8), float(falling(8).sum())),
    "squares of many": (lambda x: x.square().sum(-1), normals(30), 30.0),
    "gammas": (
        lambda x: x[..., 0] * x[..., 1] + x.sum(-1) ** 2,
        td.Independent(td.Gamma(torch.full((9,), 0.5).double(), 2.0), 1),
        0.0625 + (9 * 0.125 + 2.25**2),
    ),
    "betas": (
        lambda x: x.prod(-1)[..., None] * 0 + x[..., :2].cumprod(-1),
        td.Independent(td.Beta(torch.ones(8).double(), 3.0), 1),
        [0.25, 0.0625],
    ),
}


@pytest.mark.parametrize(("fn", "dist", "exact"), POLYNOMIALS.values(), ids=POLYNOMIALS.keys())
def test_polynomials_of_low_degree_are_exact(fn, dist, exact):
    generator = torch.Generator().manual_seed(0)
    result = expect(fn, dist, confidence=1 - laws.ALPHA, generator=generator)
    assert result.ok
    assert "sparse grid" in result.method
    error = (result.value - torch.tensor(exact, dtype=torch.float64)).abs()
    assert (error <= result.error).all()
    assert (result.error <= 1e-11 * result.value.abs()).all()


def peak(a: Tensor) -> float:
    root = a.sqrt()
    return float((((0.7 * root).atan() + (0.3 * root).atan()) / root).prod())


# name -> (function of (x, a), d, value, least gain of the bar on that of as many draws)
ON_CUBES = {
    "exponential, 8": (
        lambda x, a: (-x @ a).exp(),
        8,
        lambda a: ((1 - (-a).exp()) / a).prod(),
        5,
    ),
    "exponential, 30": (
        lambda x, a: (-x @ a).exp(),
        30,
        lambda a: ((1 - (-a).exp()) / a).prod(),
        5,
    ),
    "product peak, 10": (lambda x, a: (1 / (1 + a * (x - 0.3) ** 2)).prod(-1), 10, peak, 20),
    "kink, 8": (lambda x, a: (x[..., 0] - 0.5).abs() * 4, 8, lambda a: 1.0, 1),
    "half, 12": (lambda x, a: (x[..., 0] > x[..., 1]).double(), 12, lambda a: 0.5, 1),
}


@pytest.mark.parametrize(("fn", "d", "exact", "gain"), ON_CUBES.values(), ids=ON_CUBES.keys())
def test_smooth_functions_get_sharp_bars(fn, d: int, exact, gain: float, generator):
    a = falling(d)
    result = integrate(lambda x: fn(x, a), *cube(d), event_dim=1, generator=generator)
    assert result.ok
    error = abs(float(result.value) - float(exact(a)))
    # twice a bar of 99 % is missed with probability 3e-7
    assert error <= 2 * float(result.error)
    with torch.no_grad():
        f = fn(torch.rand(2**14, d, dtype=torch.float64, generator=generator), a)
    plain = 2.6 * float(f.std()) / float(result.num_evals) ** 0.5
    # half of the budget is kept for another try
    assert float(result.error) * gain <= 1.6 * plain


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::probcalc.EstimateWarning")
def test_intervals_cover():
    """Those that are not refused: from few terms a tail may look heavy that is not."""
    exact = math.exp(0.125 * float(falling(6).square().sum()))
    hits = []
    for seed in range(800):
        result = expect(
            lambda x: (0.5 * x @ falling(6)).exp(),
            normals(6),
            method=SparseGrid(20),
            max_evals=2**11,
            confidence=0.95,
            generator=laws.generator(seed),
        )
        if result.ok:
            hits.append(abs(float(result.value) - exact) <= float(result.error))
    assert len(hits) >= 700
    laws.assert_covers(torch.tensor(hits), 0.95, caught=0.865)


def test_a_batch_shares_nodes_and_draws(generator):
    a = torch.stack([falling(8), 0.1 * falling(8)])
    lower, upper = (t.expand(2, 8) for t in cube(8))
    exact = ((1 - (-a).exp()) / a).prod(-1)
    gathered = integrate(
        lambda x, a: (-(x * a).sum(-1)).exp(), lower, upper, args=(a,), event_dim=1, rtol=1e-3
    )
    closed = integrate(lambda x: (-(x * a).sum(-1)).exp(), lower, upper, event_dim=1, rtol=1e-3)
    for result in (gathered, closed):
        assert result.ok
        laws.assert_within(result, exact)
        assert (result.error <= 1e-3 * exact).all()
        assert (result.num_evals < 20_000).all()
    # opposite limits
    flipped = integrate(lambda x: (-(x * a[0]).sum(-1)).exp(), *cube(8)[::-1], event_dim=1)
    odd = integrate(
        lambda x: (-(x * falling(9)).sum(-1)).exp(), *cube(9)[::-1], event_dim=1, rtol=1e-3
    )
    assert float(flipped.value) > 0 > float(odd.value)


def test_infinite_boxes():
    ends = torch.full((8,), math.inf, dtype=torch.float64)
    result = integrate(lambda x: (-x.square().sum(-1)).exp(), -ends, ends, event_dim=1)
    assert result.ok
    laws.assert_within(result, math.pi**4)
    assert float(result.error) < math.pi**4


def test_derivatives_are_those_of_the_estimate(generator: torch.Generator):
    a = falling(8).requires_grad_()
    mean = (0.5 * torch.ones(8, dtype=torch.float64)).requires_grad_()
    dist = td.Independent(td.Normal(mean, 1.0), 1)
    value = expect(lambda x: (x @ a).square(), dist, generator=generator).value
    exact = a.square().sum() + (mean @ a) ** 2
    for ours, theirs in zip(
        torch.autograd.grad(value, [a, mean], create_graph=True),
        torch.autograd.grad(exact, [a, mean], create_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        second = [
            torch.autograd.grad(t.sum(), [a, mean], retain_graph=True) for t in (ours, theirs)
        ]
        for one, other in zip(*second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_what_is_not_seen_is_flagged():
    lower, upper = cube(9)
    with pytest.warns(EstimateWarning, match="mass may lie where nobody looked"):
        result = integrate(
            lambda x: ((x - 0.7).abs() < 1e-2).all(-1).double(), lower, upper, event_dim=1
        )
    assert result.flags == Status.UNRESOLVED_MASS


def test_nodes_at_which_a_function_is_not_finite_do_no_harm(generator: torch.Generator):
    """Gamma functions of one sign, a function that ends: plain draws remain."""

    def fn(x: Tensor) -> Tensor:
        f = x.sum(-1)
        return torch.where(x[..., 0] > 0.9999, math.nan, f)

    nodes = grown(lambda z: fn(z)[:, None], (LEGENDRE,) * 9, 50, lambda mean, rest: True, CPU)
    assert len(nodes.levels) <= 50
    a = torch.full((9,), 0.999, dtype=torch.float64)
    result = integrate(fn, torch.zeros_like(a), a, event_dim=1, generator=generator)
    assert result.ok
    assert abs(float(result.value / a.prod()) - 4.4955) <= 2 * float(result.error / a.prod())


def test_refusals():
    with pytest.raises(ValueError, match="num_nodes"):
        SparseGrid(0)
    with pytest.raises(NotImplementedError, match="at most 100 coordinates, got 101"):
        expect(lambda x: x.sum(-1), normals(101), method=SparseGrid())
    lower, upper = cube(8)
    with pytest.raises(NotImplementedError, match="derivatives in the limits"):
        integrate(
            lambda x: x.sum(-1), lower, upper.requires_grad_(), event_dim=1, method=SparseGrid()
        )

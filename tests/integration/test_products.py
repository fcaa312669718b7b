"""Gauss rules of the classical weights, and products of them whose orders follow the integrand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special as sp
import torch

from probcalc.integration.goal import Goal
from probcalc.integration.grids import code_of, grid, orders_of, predicted, spectrum
from probcalc.integration.orthogonal import HERMITE, LEGENDRE, Weight, gauss, modes, prediction
from probcalc.integration.products import products

CPU = torch.device("cpu")


def _beta_moment(k: int, a: float, b: float) -> float:
    return float(np.prod([(a + j) / (a + b + j) for j in range(k)]))


# weight -> its raw moments
WEIGHTS = {
    "uniform": (LEGENDRE, lambda k: 1 / (k + 1)),
    "normal": (HERMITE, lambda k: 0.0 if k % 2 else float(math.prod(range(1, k, 2)))),
    "gamma": (Weight("laguerre", (2.5,)), lambda k: sp.poch(2.5, k)),
    "thin gamma": (Weight("laguerre", (0.1,)), lambda k: sp.poch(0.1, k)),
    "beta": (Weight("jacobi", (0.3, 2.5)), lambda k: _beta_moment(k, 0.3, 2.5)),
    "arcsine": (Weight("jacobi", (0.5, 0.5)), lambda k: _beta_moment(k, 0.5, 0.5)),
}


@pytest.mark.parametrize(("weight", "moment"), WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_exact_to_degree_2n_minus_1(weight: Weight, moment, n: int):
    x, w = gauss(weight, n)
    assert (np.diff(x) > 0).all()
    assert w.sum() == pytest.approx(1.0, rel=1e-12)
    for k in range(min(2 * n, 16)):
        assert abs(w @ x**k - moment(k)) <= 1e-11 * (w @ np.abs(x) ** k)
    size = w @ np.abs(x) ** (2 * n)
    if n < 8:
        assert abs(w @ x ** (2 * n) - moment(2 * n)) > 1e-9 * size


@pytest.mark.parametrize("weight", [weight for weight, _ in WEIGHTS.values()], ids=WEIGHTS)
def test_interpolants_reproduce_polynomials(weight: Weight):
    x, there = gauss(weight, 6)[0], gauss(weight, 9)[0]
    f = lambda x: 1 - x + 0.1 * x**5  # noqa: E731
    np.testing.assert_allclose(prediction(weight, 6, 9) @ f(x), f(there), rtol=1e-9, atol=1e-9)
    coefficients = modes(weight, 6) @ x**2
    assert np.abs(coefficients[3:]).max() < 1e-12 * np.abs(coefficients).max()


def test_far_nodes_keep_their_weight():
    """Of 200 normal nodes the outermost weighs 1e-160 or so, to all digits."""
    x, w = gauss(HERMITE, 200)
    log_w = -np.log(200) - 2 * np.log(np.abs(_hermite(199, x[-1])))
    assert np.log(w[-1]) == pytest.approx(log_w, rel=1e-10)
    assert w[-1] < 1e-100


def _hermite(n: int, x: float) -> float:
    """Orthonormal, by its own recurrence."""
    before, p = 0.0, 1.0
    for k in range(n):
        before, p = p, (x * p - math.sqrt(k) * before) / math.sqrt(k + 1)
    return p


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_grids_of_arrays_and_of_tensors(kind: str):
    """Weights, interpolants and spectra are the same for both."""
    weights, coarse, fine = (LEGENDRE, HERMITE), (4, 5), (6, 7)
    f = lambda x: (x[:, 0] ** 3 * x[:, 1] ** 2)[:, None]  # noqa: E731
    values = [f(grid(weights, orders, CPU).points) for orders in (coarse, fine)]
    if kind == "numpy":
        values = [v.numpy() for v in values]
    mass = grid(weights, fine, values[1]).mass
    assert float((mass @ values[1])[0]) == pytest.approx(0.25)
    there = predicted(weights, coarse, fine, values[0])
    np.testing.assert_allclose(np.asarray(there), np.asarray(values[1]), atol=1e-12)
    size = np.asarray(spectrum(LEGENDRE, 4, values[0].reshape(1, 4, -1), 1))
    assert size.shape == (4, 1)
    assert (size > 1e-6).all()


def test_codes_of_orders():
    for orders in [(3, 99), (1,), (127, 1, 50, 2, 3, 4, 5)]:
        assert orders_of(code_of(orders), len(orders)) == orders


SMOOTH = {
    "ridge": (lambda x: (x @ x.new_tensor([5.0, 1.0, 0.2])).cos()[:, None, None], 3),
    "one axis": (lambda x: (9 * x[:, 2]).exp()[:, None, None], 4),
    "product": (lambda x: (1 / (0.3 + x)).prod(-1)[:, None, None], 2),
}


@pytest.mark.parametrize(("fn", "dim"), SMOOTH.values(), ids=SMOOTH.keys())
def test_orders_follow_the_integrand(fn, dim: int):
    """An axis along which nothing happens gets few points; the bar covers the error."""
    outcome = products(
        lambda x, elem: fn(x),
        (LEGENDRE,) * dim,
        torch.zeros(1).long(),
        Goal(1e-8, 0.0, 2**17),
        0.0,
    )
    (done,) = outcome.done
    big = grid((LEGENDRE,) * dim, (20,) * dim, CPU)
    exact = float((big.mass @ fn(big.points)[:, 0])[0])
    assert abs(float(done.sums.value) - exact) <= float(done.sums.error) + 1e-14
    assert float(done.sums.error) <= 1e-8 * abs(exact)
    if dim == 4:
        assert max(done.orders[:2]) == 7 < done.orders[2]


REFUSED = {
    "kink": lambda x: (x[:, 0] - 0.4321).abs(),
    "jump": lambda x: (x.sum(-1) > 1.1).double(),
    "needle": lambda x: 1 + 10 * (-(((x - 0.4) / 0.03) ** 2).sum(-1)).exp(),
    "NaN": lambda x: (x[:, 0] - 0.2).sqrt(),
    "zero": lambda x: 0 * x[:, 0],
}


@pytest.mark.parametrize("fn", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("dim", [2, 3])
def test_what_is_not_smooth_is_left_to_others(fn, dim: int):
    outcome = products(
        lambda x, elem: fn(x)[:, None, None],
        (LEGENDRE,) * dim,
        torch.zeros(1).long(),
        Goal(1e-8, 0.0, 2**17),
        0.0,
    )
    assert len(outcome.left) == 1
    assert not outcome.done


def test_elements_leave_when_they_are_done():
    """A batch of easy and hard ones: each as alone, and the easy ones cost less."""
    a = torch.tensor([0.1, 2.0, 9.0, 0.3], dtype=torch.float64)

    def at(x: torch.Tensor, elem: torch.Tensor) -> torch.Tensor:
        return (a[elem] * x.sum(-1)[:, None]).cos()[..., None]

    outcome = products(at, (LEGENDRE,) * 2, torch.arange(4), Goal(1e-9, 0.0, 2**17), 1e-16)
    assert not len(outcome.left)
    value = torch.zeros(4, dtype=torch.float64)
    for one in outcome.done:
        value[one.elem] = one.sums.value[:, 0]
    exact = ((torch.polar(torch.ones_like(a), a) - 1) / (1j * a)).square().real
    torch.testing.assert_close(value, exact, rtol=1e-8, atol=1e-12)
    assert len(outcome.spent) > 1
    assert len(outcome.spent[-1][0]) < 4

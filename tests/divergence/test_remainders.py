"""Remainders against mpmath: all their digits, near and far."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch

from probcalc.divergence import remainders

PLACES = [1e-3, 0.3, 2.0, 11.9, 50.0, 1e6]
STEPS = [1e-9, 1e-6, 1e-3, 0.1, 0.24, 0.26, 2.0, 100.0, -1e-7, -0.15, -0.5, -0.99]

# f and its derivative
CONVEX = {
    "lgamma_gap": (mp.loggamma, mp.digamma),
    "shape_gap": (
        lambda a: mp.loggamma(a) - a * mp.log(a) + a,
        lambda a: mp.digamma(a) - mp.log(a),
    ),
    "scaled_gap": (lambda a: a * mp.log(a) - a, mp.log),
}


@pytest.mark.parametrize("name", CONVEX)
@pytest.mark.parametrize("place", PLACES)
def test_what_a_convex_function_is_above_its_tangent(name: str, place: float):
    f, slope = CONVEX[name]
    a = torch.full((len(STEPS),), place, dtype=torch.float64)
    b = a * (1 + torch.tensor(STEPS, dtype=torch.float64))
    found = getattr(remainders, name)(a, b)
    with mp.workdps(40):
        for x, y, value in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
            truth = f(mp.mpf(y)) - f(mp.mpf(x)) - slope(mp.mpf(x)) * (mp.mpf(y) - mp.mpf(x))
            # of a ratio of two doubles no more is known than its rounding over its distance to one
            slack = 1e-11 if name != "scaled_gap" else 1e-11 + 1e-15 / abs(y / x - 1)
            assert abs(value / truth - 1) <= slack


@pytest.mark.parametrize("name", CONVEX)
def test_remainders_have_their_derivatives(name: str):
    a = torch.tensor([0.3, 2.0, 2.0, 40.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.31, 2.5, 9.0, 41.0], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(getattr(remainders, name), (a, b))


@pytest.mark.parametrize("name", CONVEX)
def test_nothing_is_left_at_one_place(name: str):
    a = torch.tensor(PLACES, dtype=torch.float64, requires_grad=True)
    found = getattr(remainders, name)(a, a.detach())
    assert (found == 0).all()
    assert (torch.autograd.grad(found.sum(), a)[0] == 0).all()


@pytest.mark.parametrize("x", [-30.0, -0.5, -1e-4, -1e-9, 1e-9, 1e-4, 0.5, 30.0])
def test_exponentials_and_ratios(x: float):
    number = torch.tensor(x, dtype=torch.float64)
    ratio = number.exp()
    with mp.workdps(40):
        t = mp.mpf(float(ratio))
        exp_truth, ratio_truth = mp.expm1(mp.mpf(x)) - mp.mpf(x), t - 1 - mp.log(t)
    slack = 1e-15 + 4e-16 / abs(x)
    assert abs(float(remainders.exp_gap(number)) / exp_truth - 1) <= slack
    assert abs(float(remainders.ratio_gap(ratio)) / ratio_truth - 1) <= slack

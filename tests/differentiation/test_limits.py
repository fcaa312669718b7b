"""Limits, continuity and differentiability at a point: right, or not claimed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from probcalc import Status, continuity, differentiability, limit

INF = math.inf
Function = Callable[[Tensor], Tensor]

# function, where, from which side, limit
EXIST: dict[str, tuple[Function, float, str | None, float]] = {
    "sine": (lambda x: x.sin() / x, 0.0, None, 1.0),
    "cosine": (lambda x: (1 - x.cos()) / x**2, 0.0, None, 0.5),
    "what cancels twice": (lambda x: (x - x.sin()) / x**3, 0.0, None, 1 / 6),
    "exponential": (lambda x: (x.exp() - 1) / x, 0.0, None, 1.0),
    "root": (lambda x: ((1 + x).sqrt() - 1) / x, 0.0, None, 0.5),
    "hole": (lambda x: (x * x - 4) / (x - 2), 2.0, None, 4.0),
    "continuous": (lambda x: x**2 - 3 * x, 1e5, None, 1e10 - 3e5),
    "constant": (lambda x: 0 * x + 3, 0.0, None, 3.0),
    "e": (lambda x: (1 + 1 / x) ** x, INF, None, math.e),
    "roots at infinity": (lambda x: (x * x + x).sqrt() - x, INF, None, 0.5),
    "arc tangent": (torch.atan, INF, None, math.pi / 2),
    "arc tangent, below": (torch.atan, -INF, None, -math.pi / 2),
    "falls faster than any power": (lambda x: x**2 * (-x).exp(), INF, None, 0.0),
    "logarithm over power": (lambda x: x.log() / x, INF, None, 0.0),
    "digamma": (lambda x: torch.digamma(x) - x.log(), INF, None, 0.0),
    "power times logarithm": (lambda x: x * x.log(), 0.0, "right", 0.0),
    "power of itself": (lambda x: x**x, 0.0, "right", 1.0),
    "square root": (torch.sqrt, 0.0, "right", 0.0),
    "cube root": (lambda x: x.sgn() * x.abs() ** (1 / 3), 0.0, None, 0.0),
    "flat": (lambda x: (-1 / x**2).exp(), 0.0, None, 0.0),
    "sign, right": (torch.sign, 0.0, "right", 1.0),
    "sign, left": (torch.sign, 0.0, "left", -1.0),
}


@pytest.mark.parametrize(("fn", "at", "side", "truth"), EXIST.values(), ids=EXIST.keys())
def test_limits_that_exist(fn: Function, at: float, side: str | None, truth: float):
    found = limit(fn, at, side=side)
    assert found.ok
    assert found.diagnostics["verdict"] == "exists"
    assert abs(float(found) - truth) <= float(found.error) <= 1e-10 * max(1.0, abs(truth))


INFINITE = {
    "pole": (lambda x: 1 / x**2, 0.0, None, INF),
    "pole, from one side": (lambda x: 1 / x, 0.0, "left", -INF),
    "logarithm": (torch.log, 0.0, "right", -INF),
    "logarithm at infinity": (torch.log, INF, None, INF),
    "slow power": (lambda x: x**0.1, INF, None, INF),
    "exponential": (torch.exp, INF, None, INF),
    "essential": (lambda x: (1 / x).exp(), 0.0, "right", INF),
}


@pytest.mark.parametrize(("fn", "at", "side", "truth"), INFINITE.values(), ids=INFINITE.keys())
def test_values_that_run_off(fn: Function, at: float, side: str | None, truth: float):
    """What is not proved is flagged."""
    found = limit(fn, at, side=side)
    assert found.flags == Status.DIVERGENT
    assert found.diagnostics["verdict"] == "infinite"
    assert found.value == truth


MISSING = {
    "jump": (torch.sign, 0.0, "does not exist"),
    "poles of two signs": (lambda x: 1 / x, 0.0, "does not exist"),
    "tangent": (torch.tan, math.pi / 2, "does not exist"),
    "ever faster": (lambda x: (1 / x).sin(), 0.0, "not found"),
    "wave": (torch.sin, INF, "not found"),
    "too slow to be seen": (lambda x: 1 / x.log().log(), INF, "not found"),
}


@pytest.mark.parametrize(("fn", "at", "verdict"), MISSING.values(), ids=MISSING.keys())
def test_no_limit_is_no_number(fn: Function, at: float, verdict: str):
    found = limit(fn, at)
    assert Status.NOT_SMOOTH in found.flags
    assert found.diagnostics["verdict"] == verdict
    assert found.error == INF
    if at != INF:
        assert math.isnan(found.value)


def test_both_sides_of_a_jump_are_told():
    sides = limit(lambda x: torch.where(x > 0, x + 2, x - 1), 0.0).diagnostics
    assert float(sides["left"]) == pytest.approx(-1)
    assert float(sides["right"]) == pytest.approx(2)


def test_batches_are_what_their_points_are():
    at = torch.tensor([[0.0, 1.0], [INF, -3.0]], dtype=torch.float64)
    falls = lambda x: -torch.expm1(-x) / x  # noqa: E731
    found = limit(falls, at)
    for i in range(2):
        for j in range(2):
            one = limit(falls, float(at[i, j]))
            assert found.value[i, j] == one.value
            assert found.error[i, j] == one.error
    assert found.diagnostics["verdict"] == [["exists"] * 2] * 2
    scaled = limit(lambda x, a: (a * x).sin() / x, 0.0, args=(torch.tensor(3.0),))
    assert float(scaled) == pytest.approx(3)


@pytest.mark.parametrize(
    ("fn", "at", "truth"),
    [
        (torch.sign, 0.0, False),
        (torch.relu, 0.0, True),
        (torch.exp, 1.0, True),
        (lambda x: torch.where(x == 0, 2.0, x.sin() / x), 0.0, False),
        (lambda x: torch.where(x == 0, 1.0, x.sin() / x), 0.0, True),
        (torch.floor, 2.0, False),
    ],
)
def test_continuity(fn: Function, at: float, truth: bool):
    assert continuity(fn, at).continuous is truth


KINKS = {
    "relu": (torch.relu, 0.0, 1.0, 0.0),
    "absolute value": (torch.abs, -1.0, 1.0, 0.0),
    "leaky relu": (lambda x: torch.nn.functional.leaky_relu(x, 0.1), 0.1, 1.0, 0.1),
    "hinge": (lambda x: (1 + x).clamp(min=0.0) * 0 + x.clamp(min=0.0), 0.0, 1.0, 1.0),
}


@pytest.mark.parametrize(("fn", "left", "right", "chosen"), KINKS.values(), ids=KINKS.keys())
def test_a_kink_has_two_derivatives_and_autograd_one(
    fn: Function, left: float, right: float, chosen: float
):
    found = differentiability(fn, 0.0)
    assert not found.differentiable
    assert float(found.left) == pytest.approx(left, abs=1e-12)
    assert float(found.right) == pytest.approx(right, abs=1e-12)
    assert found.autograd == pytest.approx(chosen)


def test_smooth_functions_are_differentiable():
    for fn, at in ((torch.tanh, 0.3), (torch.nn.functional.softplus, 0.0), (torch.exp, -5.0)):
        found = differentiability(fn, at)
        assert found.differentiable
        assert found.autograd == pytest.approx(float(found.left), rel=1e-7)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: limit(torch.sin, math.nan), "`at` must not be NaN"),
        (lambda: limit(torch.sin, 0.0, side="above"), "`side`"),
        (lambda: limit(lambda x: x.sum(), 0.0), "elementwise"),
    ],
)
def test_what_has_no_limit(call: Callable[[], object], text: str):
    with pytest.raises(ValueError, match=text):
        call()

"""Derivatives from values: within their bars, and flagged where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probcalc import ComplexStep, Richardson, Status, derivative

Function = Callable[[Tensor], Tensor]

# function, point, order, derivative, relative error to be had
CASES: dict[str, tuple[Function, float, int, float, float]] = {
    "exponential": (torch.exp, 0.0, 1, 1.0, 1e-12),
    "sine": (torch.sin, 1.0, 1, math.cos(1), 1e-12),
    "sine twice": (torch.sin, 1.0, 2, -math.sin(1), 1e-9),
    "sine three times": (torch.sin, 1.0, 3, -math.cos(1), 1e-7),
    "sine four times": (torch.sin, 1.0, 4, math.sin(1), 1e-4),
    "root next to its end": (torch.sqrt, 1e-3, 1, 0.5 * 1e-3**-0.5, 1e-10),
    "logarithm next to its end": (torch.log, 1e-6, 1, 1e6, 1e-9),
    "far out": (lambda x: 1 / x, 1e8, 1, -1e-16, 1e-9),
    "fast": (lambda x: (50 * x).sin(), 0.3, 1, 50 * math.cos(15), 1e-11),
    "flat": (lambda x: x**3, 0.0, 1, 0.0, 1e-12),
    "constant": (lambda x: 0 * x + 5, 2.0, 1, 0.0, 1e-12),
}


@pytest.mark.parametrize(("fn", "x", "order", "truth", "rtol"), CASES.values(), ids=CASES.keys())
def test_within_its_bar(fn: Function, x: float, order: int, truth: float, rtol: float):
    found = derivative(fn, x, order=order)
    assert found.ok
    assert abs(float(found) - truth) <= float(found.error) <= rtol * max(1.0, abs(truth)) * 10


@given(x=st.floats(-3, 3), rate=st.floats(0.1, 5), phase=st.floats(0, 6), shift=st.floats(-10, 10))
def test_bars_hold_of_waves(x: float, rate: float, phase: float, shift: float):
    found = derivative(lambda t: (rate * t + phase).sin() + shift, x)
    truth = rate * math.cos(rate * x + phase)
    # the point and the phase are rounded, and so is the truth
    assert abs(float(found) - truth) <= float(found.error) + 1e-14 * rate * (1 + rate)


ONE_SIDED = {
    "relu, right": (torch.relu, "right", 1.0),
    "relu, left": (torch.relu, "left", 0.0),
    "exponential, right": (torch.exp, "right", 1.0),
    "power of 3/2": (lambda x: x.clamp(min=0.0) ** 1.5, "right", 0.0),
}


@pytest.mark.parametrize(("fn", "side", "truth"), ONE_SIDED.values(), ids=ONE_SIDED.keys())
def test_from_one_side(fn: Function, side: str, truth: float):
    found = derivative(fn, 0.0, side=side)
    assert found.ok
    assert abs(float(found) - truth) <= float(found.error) < 1e-3


NOT_SMOOTH = {
    "kink": (torch.relu, None),
    "symmetric kink": (torch.abs, None),
    "root": (torch.sqrt, "right"),
    "logarithm": (lambda x: torch.xlogy(x, x), "right"),
    "ever faster": (lambda x: torch.where(x == 0, 0.0, x * (1 / x).sin()), None),
    "jump": (torch.sign, None),
}


@pytest.mark.parametrize(("fn", "side"), NOT_SMOOTH.values(), ids=NOT_SMOOTH.keys())
def test_no_derivative_is_flagged(fn: Function, side: str | None):
    found = derivative(fn, 0.0, side=side)
    assert Status.NOT_SMOOTH in found.flags
    assert found.error == math.inf


def test_sides_of_a_kink_are_told():
    sides = derivative(torch.abs, 0.0).diagnostics
    assert float(sides["left"]) == pytest.approx(-1)
    assert float(sides["right"]) == pytest.approx(1)


def test_outside_of_the_domain_is_flagged():
    found = derivative(torch.log, -1.0)
    assert Status.NON_FINITE in found.flags


def test_complex_steps_are_exact():
    x = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    found = derivative(lambda t: t.exp() * t.sin(), x, method=ComplexStep())
    truth = x.exp() * (x.sin() + x.cos())
    torch.testing.assert_close(found.value, truth, rtol=1e-15, atol=0)
    both = derivative(lambda t: t.exp() * t.sin(), x)
    assert ((both.value - truth).abs() <= both.error).all()


def test_batches_and_outputs():
    """Each element its own steps; a flag is of an element, whichever output it comes from."""
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = derivative(lambda t: torch.stack([t.sin(), t.abs()], dim=-1), x)
    assert found.value.shape == (2, 2)
    assert [bool(s) for s in found.status.tolist()] == [True, False]
    for i in range(2):
        one = derivative(torch.sin, float(x[i]))
        assert found.value[i, 0] == one.value


def test_steps_may_be_given():
    found = derivative(torch.sin, 0.5, method=Richardson(step=1e-2, levels=6))
    assert abs(float(found) - math.cos(0.5)) <= float(found.error) < 1e-10
    assert int(found.num_evals) == 6 * (3 + 2 + 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: derivative(torch.sin, 0.0, order=5), "`order`"),
        (lambda: derivative(torch.sin, 0.0, side="up"), "`side`"),
        (lambda: Richardson(step=0.0), "`step`"),
        (lambda: Richardson(levels=1), "`levels`"),
        (lambda: derivative(torch.sin, 0.0, order=2, method=ComplexStep()), "first derivatives"),
        (lambda: derivative(lambda z: z.real, 0.0, method=ComplexStep()), "complex"),
    ],
)
def test_what_cannot_be(call: Callable[[], object], text: str):
    with pytest.raises(ValueError, match=text):
        call()

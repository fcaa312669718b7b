"""Four ways to one derivative agree."""

from __future__ import annotations

import math

import pytest
import sympy
import torch

from probcalc import compare_differentiation

t = sympy.Symbol("t")
CASES = {
    "sine": (torch.sin, sympy.sin(t), math.cos, 1.3),
    "logistic": (
        torch.sigmoid,
        1 / (1 + sympy.exp(-t)),
        lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2,
        0.4,
    ),
    "tanh": (torch.tanh, sympy.tanh(t), lambda x: 1 - math.tanh(x) ** 2, -2.0),
    "softplus": (
        torch.nn.functional.softplus,
        sympy.log(1 + sympy.exp(t)),
        lambda x: 1 / (1 + math.exp(-x)),
        0.0,
    ),
    "composition": (
        lambda x: (x.square().sin() / (1 + x**2)).exp(),
        sympy.exp(sympy.sin(t**2) / (1 + t**2)),
        None,
        0.7,
    ),
}


@pytest.mark.parametrize(("fn", "expression", "manual", "x"), CASES.values(), ids=CASES.keys())
def test_all_ways_are_one(fn, expression, manual, x: float):
    ways = compare_differentiation(fn, x, manual=manual, expression=expression)
    names = {"autodiff", "numeric", "symbolic"} | ({"manual"} if manual else set())
    assert set(ways) == names
    for name, way in ways.items():
        assert way.seconds > 0
        if name == "numeric":
            assert way.error <= way.claimed < 1e-9
        else:
            assert way.error < 1e-14


def test_a_wrong_derivation_shows():
    ways = compare_differentiation(torch.sin, 1.0, manual=lambda x: -math.cos(x))
    assert ways["manual"].error == pytest.approx(2 * math.cos(1.0))
    assert ways["autodiff"].error == 0


@pytest.mark.parametrize(
    ("expression", "text"),
    [(sympy.cos(t), "the same function"), (t * sympy.Symbol("a"), "one symbol")],
)
def test_expressions_that_are_not_the_function(expression: sympy.Expr, text: str):
    with pytest.raises(ValueError, match=text):
        compare_differentiation(torch.sin, 1.0, expression=expression)

"""Four ways to one derivative: by hand, by symbols, from values, and by the chain rule.

Each with its error against the truth, which is the symbolic derivative to 30 digits where there is
one and else autodiff's, and with the time that it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor

from probcalc.differentiation.autodiff import grad
from probcalc.differentiation.derivative import derivative

_DIGITS = 30
_ROUNDS = 5  # of which the fastest counts


@dataclass(frozen=True)
class Way:
    """One way to the derivative.

    Args:
        value: Of the derivative.
        error: Its distance from the truth.
        claimed: The error that it claims for itself; None where it claims none.
        seconds: That one derivative takes, ready to be evaluated.
    """

    value: float
    error: float
    claimed: float | None
    seconds: float


def compare_differentiation(
    fn: Callable[[Tensor], Tensor],
    x: float,
    *,
    manual: Callable[[float], float] | None = None,
    expression: sympy.Expr | None = None,
) -> dict[str, Way]:
    """The derivative of a function of one variable, in all ways that are known.

    Args:
        fn: Elementwise, of tensors.
        x: Where.
        manual: The derivative as derived by hand.
        expression: The same function in one symbol of sympy's.

    Returns:
        By name: "autodiff", "numeric", and "manual" and "symbolic" where they are given.

    Raises:
        ValueError: If the expression does not have one symbol, or is another function: its value
            at the point is not that of `fn`.

    >>> t = sympy.Symbol("t")
    >>> ways = compare_differentiation(torch.sin, 1.0, expression=sympy.sin(t))
    >>> max(way.error for way in ways.values()) < 1e-12
    True
    """
    point = torch.tensor(float(x), dtype=torch.float64)
    ways = {"autodiff": (lambda: float(grad(lambda t: fn(t[None])[0], point)), None)}
    numeric = derivative(fn, x)
    ways["numeric"] = (lambda: float(derivative(fn, x)), float(numeric.error))
    if manual is not None:
        ways["manual"] = (lambda: float(manual(x)), None)
    truth = ways["autodiff"][0]()
    if expression is not None:
        slope, truth = _symbolic(expression, x, float(fn(point[None])[0]))
        ways["symbolic"] = (slope, None)
    return {name: _timed(way, claimed, truth) for name, (way, claimed) in ways.items()}


def _symbolic(expression: sympy.Expr, x: float, value: float) -> tuple[Callable[[], float], float]:
    """The derivative as a function, and to 30 digits."""
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) != 1:
        raise ValueError(f"`expression` must have one symbol, got {[str(s) for s in symbols]}.")
    exact = {symbols[0]: sympy.Float(x, _DIGITS)}
    same = float(expression.evalf(_DIGITS, subs=exact))
    if not abs(same - value) <= 1e-8 * max(1.0, abs(value)):
        raise ValueError(
            f"`expression` must be the same function as `fn`, got {same} and {value} at {x}."
        )
    slope = sympy.diff(expression, symbols[0])
    compiled = sympy.lambdify(symbols[0], slope, "math")
    return lambda: float(compiled(x)), float(slope.evalf(_DIGITS, subs=exact))


def _timed(way: Callable[[], float], claimed: float | None, truth: float) -> Way:
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        value = way()
        seconds.append(time.perf_counter() - start)
    return Way(value, abs(value - truth), claimed, min(seconds))

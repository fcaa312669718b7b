"""Quantiles as roots of the logarithm of a tail: Newton's steps inside a shrinking bracket.

A step that leaves the bracket, or is not half the one before, is replaced by a bisection of the
numbers of float64 in their order, of which no bracket holds more than 2^64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MOST = 200
_EPS = torch.finfo(torch.float64).eps
_SIGN = torch.iinfo(torch.int64).min


def root_of_tail(
    tail: Callable[[Tensor], Tensor],
    density: Callable[[Tensor], Tensor],
    p: Float[Tensor, "*x"],
    lower: Float[Tensor, "*x"],
    upper: Float[Tensor, "*x"],
    falling: bool,
) -> Float[Tensor, "*x"]:
    """The x of [lower, upper] with tail(x) = p.

    Args:
        tail: A tail of a continuous distribution.
        density: Its density.
        p: Levels.
        lower: Where the root is at or above.
        upper: Where it is at or below.
        falling: Whether the tail is the upper one.
    """
    low, high, x = lower, upper, _between(lower, upper)
    last = torch.full_like(x, torch.inf)
    for _ in range(_MOST):
        value = tail(x)
        beyond = value <= p if falling else value >= p
        low, high = torch.where(beyond, low, x), torch.where(beyond, x, high)
        step = (value.log() - p.log()) * value / density(x)
        step = step if falling else -step
        done = (step.abs() <= _EPS * x.abs()) | (_order(high) - _order(low) <= 1)
        good = (x + step > low) & (x + step < high) & (2 * step.abs() <= last)
        new = torch.where(good, x + step, _between(low, high))
        last = torch.where(good, step.abs(), torch.inf)
        x = torch.where(done, x, new)
        if bool(done.all()):
            break
    return x


def _order(x: Tensor) -> Tensor:
    """Integers in the order of the numbers."""
    bits = (x + 0.0).view(torch.int64)  # minus zero is zero
    return torch.where(bits < 0, _SIGN - bits, bits)


def _between(low: Tensor, high: Tensor) -> Tensor:
    """The mean where the ends are of one size, else the middle of the numbers between them."""
    mean = 0.5 * low + 0.5 * high
    a, b = _order(low), _order(high)
    middle = (a >> 1) + (b >> 1) + (a & b & 1)
    number = torch.where(middle < 0, _SIGN - middle, middle).view(torch.float64)
    near = (high - low) <= torch.maximum(low.abs(), high.abs())
    return torch.where(near, mean, number)

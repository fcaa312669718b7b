r"""Derivatives from values alone, with an error estimate.

    D(h) = (f(x + h) − f(x − h)) / 2h = f′(x) + c₂ h² + c₄ h⁴ + …

Halving h and combining takes one power off after the other (Richardson; Ridders, 1982, Advances in
Engineering Software 4), until the rounding of f, over h, is what is left: the entry of the table
that changed least is taken. One-sided quotients have all powers of h, and are treated alike. Of
functions that take complex numbers f′(x) = Im f(x + ih)/h has no difference to lose digits in
(Squire & Trapp, 1998, SIAM Review 40).

Where f is not smooth within the first step, as next to a kink, the estimate is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.differentiation.extrapolation import extrapolated, grows, vague
from probcalc.result import Estimate
from probcalc.status import Status

Function = Callable[..., Tensor]  # (n, *batch) to (n, *batch, *out)

_METHOD = "Richardson extrapolation"
_SURE = 4.0  # bars, that tell sides apart
_TINY_STEP = 1e-100  # whose square is zero beside it


@runtime_checkable
class Difference(Protocol):
    """How values make a derivative."""

    def derivative(
        self, fn: Function, x: Float[Tensor, "*batch"], order: int, side: str | None
    ) -> Estimate:
        """Of that order at the points, in float64."""
        ...


@dataclass(frozen=True)
class Richardson:
    """Difference quotients of halving steps, extrapolated to none.

    Args:
        step: The longest, over which the function is smooth; None: a tenth of |x|, or of 1.
        levels: How often it is halved.
    """

    step: float | None = None
    levels: int = 24

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.step is not None and not self.step > 0:
            raise ValueError(f"`step` must be positive, got {self.step}.")
        if self.levels < 2:
            raise ValueError(f"`levels` must be at least 2, got {self.levels}.")

    def derivative(
        self, fn: Function, x: Float[Tensor, "*batch"], order: int, side: str | None
    ) -> Estimate:
        """By the best entry of the table."""
        found = self._table(fn, x, order, side)
        if order > 1 or side is not None:
            return found
        left, right = (self._table(fn, x, 1, one) for one in ("left", "right"))
        return _joined(found, left, right)

    def _table(self, fn: Function, x: Tensor, order: int, side: str | None) -> Estimate:
        offsets, weights = (t.to(x) for t in _stencil(order, side))
        h = (0.1 * x.abs().clamp(min=1.0)) if self.step is None else torch.full_like(x, self.step)
        halves = 0.5 ** torch.arange(self.levels, dtype=torch.float64, device=x.device)
        steps = halves.reshape(-1, *[1] * x.ndim) * h  # (k, *batch)
        points = x + offsets.reshape(-1, *[1] * steps.ndim) * steps  # (m, k, *batch)
        f = fn(points.reshape(-1, *x.shape)).double()
        f = f.reshape(len(offsets), self.levels, *f.shape[1:])
        out = f.ndim - 1 - steps.ndim
        steps, at = (t.reshape([*t.shape, *[1] * out]) for t in (steps, x))
        shares = weights.reshape(-1, *[1] * (f.ndim - 1))
        quotients = (shares * f).sum(dim=0) / steps**order
        # of values, and of the points at which they are
        spread = f.amax(dim=0) - f.amin(dim=0)
        size = (shares.abs() * f.abs()).sum(dim=0) + at.abs() / steps * spread
        noise = torch.finfo(x.dtype).eps * size / steps**order
        value, error = extrapolated(quotients, noise, 2 if side is None else 1)
        endless = grows(quotients, noise) | vague(quotients, noise, error)
        status = torch.where(value.isfinite(), 0, int(Status.NON_FINITE))
        status = status | torch.where(endless, int(Status.NOT_SMOOTH), 0)
        error = torch.where(status == 0, error, math.inf)
        flags = _any_of(status, x.ndim)
        count = torch.full_like(flags, f.shape[0] * f.shape[1])
        return Estimate(value, error, status=flags, num_evals=count, method=_METHOD)


@dataclass(frozen=True)
class ComplexStep:
    """The imaginary part of the function, a step off the real line: first derivatives only."""

    def derivative(
        self, fn: Function, x: Float[Tensor, "*batch"], order: int, side: str | None
    ) -> Estimate:
        """Exact to rounding, of functions that are analytic at the point.

        Raises:
            ValueError: Of other orders, of one side, or where values are not complex.
        """
        if order != 1 or side is not None:
            raise ValueError("a complex step gives two-sided first derivatives only.")
        f = fn(torch.complex(x, torch.full_like(x, _TINY_STEP))[None])[0]
        if not f.is_complex():
            raise ValueError(f"the function must be complex at complex points, got {f.dtype}.")
        value = f.imag / _TINY_STEP
        error = 16 * torch.finfo(x.dtype).eps * value.abs()
        return Estimate(value, error, num_evals=1, method="complex step")


def derivative(
    fn: Function,
    x: Float[Tensor, "*batch"] | float,
    *,
    order: int = 1,
    side: str | None = None,
    args: tuple[Any, ...] = (),
    method: Difference | None = None,
) -> Estimate:
    """Derivative of a function of one variable, from its values.

    Args:
        fn: ``fn(x, *args)`` of points ``(n, *batch)``, elementwise, to ``(n, *batch, *out)``.
        x: Where; a batch at once.
        order: 1 to 4.
        side: "left" or "right": from values on that side only, and at the point.
        args: Passed on.
        method: `Richardson()` or `ComplexStep()`.

    Returns:
        Estimate of shape ``(*batch, *out)`` in float64, without derivatives. Flagged where values
        around the point are not finite, where quotients grow without end, and where both sides
        differ: their derivatives are then in the diagnostics, and their mean is the value.

    Raises:
        ValueError: If the order or the side is none of those.

    >>> derivative(torch.exp, 0.0).value.round(decimals=9)
    tensor(1., dtype=torch.float64)
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"`order` must be from 1 to 4, got {order}.")
    if side not in (None, "left", "right"):
        raise ValueError(f"`side` must be 'left', 'right' or None, got {side!r}.")
    at = torch.as_tensor(x, dtype=torch.float64).detach()
    with torch.no_grad():
        return (method or Richardson()).derivative(lambda z: fn(z, *args), at, order, side)


def _stencil(order: int, side: str | None) -> tuple[Tensor, Tensor]:
    """Places in steps, and weights: binomial coefficients with alternating signs."""
    sign = [(-1.0) ** (order - k) * math.comb(order, k) for k in range(order + 1)]
    places = torch.arange(order + 1, dtype=torch.float64)
    weights = torch.tensor(sign, dtype=torch.float64)
    if side == "right":
        return places, weights
    if side == "left":
        return places - order, weights
    if order % 2 == 0:
        return places - order / 2, weights
    # the mean of two steps apart, so that only even powers are left
    here = torch.nn.functional.pad(weights, (0, 1))
    there = torch.nn.functional.pad(weights, (1, 0))
    places = torch.arange(order + 2, dtype=torch.float64) - (order + 1) / 2
    return places, 0.5 * (here + there)


def _joined(found: Estimate, left: Estimate, right: Estimate) -> Estimate:
    """Flagged where the derivatives on both sides are not one."""
    apart = (left.value - right.value).abs()
    differ = apart > _SURE * (left.error + right.error)
    differ = (differ & apart.isfinite()) | _no_limit(left) | _no_limit(right)
    error = torch.where(differ, math.inf, found.error)
    where = torch.where(differ, int(Status.NOT_SMOOTH), 0)
    assert torch.is_tensor(found.status)
    status = found.status | _any_of(where, found.status.ndim)
    sides = {"left": left.value, "right": right.value} if bool(differ.any()) else {}
    count = found.num_evals + left.num_evals + right.num_evals
    return replace(found, error=error, status=status, num_evals=count, diagnostics=sides)


def _no_limit(one: Estimate) -> Tensor:
    """On a side, though values are finite."""
    return one.error.isinf() & one.value.isfinite()


def _any_of(bits: Tensor, ndim: int) -> Tensor:
    """Flags of outputs, joined for each element of the batch."""
    joined = bits.reshape(*bits.shape[:ndim], -1)
    flags = joined[..., 0]
    for i in range(1, joined.shape[-1]):
        flags = flags | joined[..., i]
    return flags

r"""Limits of functions of one variable, with an error estimate and a verdict.

    lim_{x→a} f(x) = L:    |f(x) − L| < ε wherever 0 < |x − a| < δ(ε)

Values at halving distances are extrapolated to none, at infinity those at doubling ones, by powers
of the distance and by Wynn's ε algorithm (1956, Math. Tables Aids Comput. 10), which finds other
powers by itself; what settles better is taken. Distances stop at a few millionths, before what
cancels in f is all that is left of it: (1 − cos x)/x² is 0 in float64 next to zero.

Values never prove a limit: a function may do something else nearer to the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from probcalc.differentiation.derivative import derivative
from probcalc.differentiation.extrapolation import extrapolated, grows, vague
from probcalc.result import Estimate
from probcalc.status import Status

Function = Callable[..., Tensor]  # elementwise, (n, *batch) to (n, *batch)

_LEVELS = 18
_SURE = 4.0  # bars, that tell sides apart
_ROUNDING = 16 * torch.finfo(torch.float64).eps  # of the largest value
_SLOW, _CLEAR = -0.3, 1e-6  # steps that fall so slowly that all but small errors are doubted
_METHOD = "extrapolated values"


def limit(
    fn: Function,
    at: Float[Tensor, "*batch"] | float,
    *,
    side: str | None = None,
    args: tuple[Any, ...] = (),
) -> Estimate:
    """Limit of a function of one variable; its value at the point does not count.

    Args:
        fn: ``fn(x, *args)`` of points ``(n, *batch)``, elementwise.
        at: Where; ∞ and −∞ too.
        side: "left" or "right"; None: both, of which the limits must be one.
        args: Passed on.

    Returns:
        Estimate of shape ``(*batch)`` in float64. `diagnostics["verdict"]` says "exists",
        "infinite" (flagged as divergent, the value ±∞), "does not exist" (flagged; limits from
        both sides, which differ, are in the diagnostics) or "not found" (flagged), of a batch in a
        list.

    Raises:
        ValueError: If the point is NaN, or the side is neither.

    >>> limit(lambda x: x.sin() / x, 0.0).value.round(decimals=9)
    tensor(1., dtype=torch.float64)
    """
    if side not in (None, "left", "right"):
        raise ValueError(f"`side` must be 'left', 'right' or None, got {side!r}.")
    a = torch.as_tensor(at, dtype=torch.float64).detach()
    if bool(a.isnan().any()):
        raise ValueError("`at` must not be NaN.")
    sides = [-1.0, 1.0] if side is None else [-1.0 if side == "left" else 1.0]
    with torch.no_grad():
        found = [_one_sided(lambda x: fn(x, *args), a, s) for s in sides]
    # infinity has one side only
    whole = _both(*found, a.isinf()) if side is None else found[0]
    return replace(whole, diagnostics={**whole.diagnostics, "verdict": _verdict(whole)})


@dataclass(frozen=True, eq=False)
class Continuity:
    """Of a function at a point.

    Args:
        value: Of the function there.
        left: Limit from the left.
        right: Limit from the right.
        continuous: Whether the three are one, as far as the bars tell.
    """

    value: float
    left: Estimate
    right: Estimate
    continuous: bool


def continuity(fn: Function, at: float, *, args: tuple[Any, ...] = ()) -> Continuity:
    """Whether a function is continuous at a point: both limits, and its value.

    >>> continuity(torch.sign, 0.0).continuous
    False
    """
    value = float(fn(torch.tensor([at], dtype=torch.float64), *args)[0])
    left, right = (limit(fn, at, side=side, args=args) for side in ("left", "right"))
    one = all(
        _settled(s) and abs(float(s.value) - value) <= _SURE * float(s.error) + _tiny(value)
        for s in (left, right)
    )
    return Continuity(value, left, right, one)


@dataclass(frozen=True, eq=False)
class Differentiability:
    """Of a function at a point.

    Args:
        left: Derivative from the left.
        right: Derivative from the right.
        autograd: What autograd takes for the derivative: of a kink one subgradient.
        differentiable: Whether both sides are one, as far as the bars tell.
    """

    left: Estimate
    right: Estimate
    autograd: float
    differentiable: bool


def differentiability(fn: Function, at: float, *, args: tuple[Any, ...] = ()) -> Differentiability:
    """Whether a function has a derivative at a point, and what autograd says.

    >>> relu = differentiability(torch.relu, 0.0)
    >>> float(relu.left.value), float(relu.right.value), relu.autograd, relu.differentiable
    (0.0, 1.0, 0.0, False)
    """
    left, right = (derivative(fn, at, side=side, args=args) for side in ("left", "right"))
    both = derivative(fn, at, args=args)
    point = torch.tensor(float(at), dtype=torch.float64)
    slope = float(grad(lambda x: fn(x[None], *args)[0])(point))
    return Differentiability(left, right, slope, not bool(torch.as_tensor(both.status).any()))


def _one_sided(fn: Function, a: Tensor, sign: float) -> Estimate:
    far = a.isinf()
    k = torch.arange(1, _LEVELS + 1, dtype=torch.float64, device=a.device)
    h = (0.5**k).reshape(-1, *[1] * a.ndim)
    finite = torch.where(far, 0.0, a)
    scale = finite.abs().clamp(min=1.0)
    x = torch.where(far, a.sgn() / h, finite + sign * scale * h)
    f = fn(x).double()
    if f.shape != x.shape:
        raise ValueError(
            f"the function must be elementwise: of {tuple(x.shape)} it gave {tuple(f.shape)}."
        )
    spread = (f[1:] - f[:-1]).abs()
    spread = torch.cat([spread, spread[-1:]]).nan_to_num(math.inf, math.inf)
    blur = torch.where(far, 1.0, finite.abs() / (scale * h))  # of x, in distances to the point
    noise = torch.finfo(torch.float64).eps * (f.abs() + blur * spread)
    value, error = extrapolated(f, noise, 1)
    for other, bar in (_by_epsilon(f, noise), _as_they_are(f)):
        value, error = torch.where(bar < error, other, value), torch.minimum(bar, error)
    largest = torch.where(f.isfinite(), f.abs(), 0.0).amax(dim=0)
    error = error + _ROUNDING * largest
    lost = vague(f, noise, error) | (grows(f, noise, _SLOW) & (error > _CLEAR * largest))
    infinite = (grows(f, noise) | lost | ~error.isfinite()) & _runs_off(f)
    missing = (lost | ~error.isfinite()) & ~infinite
    status = torch.where(infinite, int(Status.DIVERGENT), 0)
    status = status | torch.where(missing, int(Status.NOT_SMOOTH), 0)
    last = f.gather(0, _last_number(f)[None])[0]
    value = torch.where(infinite, last.sgn() * math.inf, value)
    error = torch.where(status == 0, error, math.inf)
    count = torch.full_like(status, len(x))
    return Estimate(value, error, status=status, num_evals=count, method=_METHOD)


def _both(left: Estimate, right: Estimate, same: Tensor) -> Estimate:
    """From both sides, of which the better is taken where they are one."""
    ok = (left.status == 0) & (right.status == 0)
    apart = (left.value - right.value).abs()
    differ = ok & ~(apart <= _SURE * (left.error + right.error)) & ~same
    infinite = (left.value.isinf() & (left.value == right.value)) | (same & left.value.isinf())
    missing = (~ok & ~infinite) | differ
    better = left.error <= right.error
    value = torch.where(better, left.value, right.value)
    error = torch.maximum(torch.minimum(left.error, right.error), torch.where(ok, apart, 0.0))
    status = torch.where(missing, int(Status.NOT_SMOOTH), 0)
    status = status | torch.where(infinite, int(Status.DIVERGENT), 0)
    value = torch.where(missing, math.nan, value)
    error = torch.where(missing | infinite, math.inf, error)
    one = (left.status | right.status) & int(Status.NOT_SMOOTH) == 0
    sides = {"left": left.value, "right": right.value} if bool((missing & one).any()) else {}
    count = left.num_evals + right.num_evals
    return Estimate(
        value, error, status=status, num_evals=count, method=_METHOD, diagnostics=sides
    )


def _by_epsilon(f: Float[Tensor, " k *batch"], noise: Tensor) -> tuple[Tensor, Tensor]:
    """Wynn's algorithm: even columns of its table, the entry that moved least."""
    before, column = torch.zeros_like(f), f
    values, errors = [], []
    for j in range(1, len(f) - 1):
        step = column[1:] - column[:-1]
        above = before[1 : len(step) + 1] + 1 / torch.where(step == 0, math.nan, step)
        before, column = column, above
        if j % 2 == 0 and len(column) > 2:
            moved = torch.maximum(
                (column[2:] - column[1:-1]).abs(), (column[1:-1] - column[:-2]).abs()
            )
            floor = noise[len(f) - len(moved) :]
            smallest, at = (moved + floor).nan_to_num(math.inf, math.inf).min(dim=0)
            values.append(column[2:].gather(0, at[None])[0])
            errors.append(smallest)
    error, order = torch.stack(errors).sort(dim=0)
    value = torch.stack(values).gather(0, order)
    apart = (value[1] - value[0]).abs().nan_to_num(math.inf)
    return value[0], 3 * torch.maximum(error[0], apart)


def _as_they_are(f: Float[Tensor, " k *batch"]) -> tuple[Tensor, Tensor]:
    """The last value, where what is around it shrinks, as x sin(1/x) does without any order."""
    around = (f - f[-1]).abs()
    late, early = around[-5:-1].amax(dim=0), around[-9:-5].amax(dim=0)
    ratio = (late / early.clamp(min=torch.finfo(f.dtype).tiny)).nan_to_num(math.inf)
    return f[-1], torch.where(ratio < 0.5, 3 * late / (1 - ratio), math.inf)


def _runs_off(f: Float[Tensor, " k *batch"]) -> Tensor:
    """Whether values get larger and larger, of one sign."""
    known = ~f.isnan()
    size = torch.where(known, f.abs(), 0.0)
    larger = (size[1:] > size[:-1]) | (size[1:].isinf() & size[:-1].isinf())
    same = (f[1:].sgn() == f[:-1].sgn()) & known[1:] & known[:-1]
    late = (larger & same)[len(f) // 2 :]
    pairs = (known[1:] & known[:-1])[len(f) // 2 :]
    return (late | ~pairs).all(dim=0) & pairs.any(dim=0)


def _last_number(f: Float[Tensor, " k *batch"]) -> Tensor:
    """Index of the last value that is not NaN."""
    k = torch.arange(len(f), device=f.device).reshape(-1, *[1] * (f.ndim - 1))
    return torch.where(f.isnan(), 0, k).amax(dim=0)


def _verdict(found: Estimate) -> Any:
    words = {0: "exists", int(Status.DIVERGENT): "infinite"}
    missing = "does not exist" if "left" in found.diagnostics else "not found"

    def say(bits: Any) -> Any:
        return [say(b) for b in bits] if isinstance(bits, list) else words.get(bits, missing)

    return say(torch.as_tensor(found.status).tolist())


def _settled(found: Estimate) -> bool:
    return not bool(torch.as_tensor(found.status).any())


def _tiny(value: float) -> float:
    return 1e-12 * abs(value)

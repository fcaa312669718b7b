"""Quotients of two means over the same draws.

    E[a] / E[b] ≈ R = A/B,   standard error  s(a − R b) / (|B| √n)

A first look gives R₀, near enough for one pass over the draws: the scatter of a − R b is at most
that of a − R₀ b and |R − R₀| times that of b. A denominator that is not known well widens the bar
as in Fieller (1954), Some problems in interval estimation. Owen (2013), Monte Carlo theory,
methods and examples, section 2.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import draw_seed
from probcalc.integration.expectation import Expectation, expectation
from probcalc.integration.monte_carlo import Draws, judged
from probcalc.integration.problem import Solved, Tolerance, refuse_transforms
from probcalc.integration.running import Running
from probcalc.result import Estimate, half_width
from probcalc.status import Status

_MAX_EVALS = 2**17
_PILOT = 2**10  # draws of the first look
_WEAK = 0.5  # bar of the denominator over itself, from which it may be zero
_ROUNDING = 4.0  # units in the last place of a mean


@dataclass(frozen=True, eq=False)
class Quotient:
    """A quotient of means.

    Args:
        value: Differentiable, ``(b, *out)``.
        std_error: Its standard error.
        bar: Half width of its interval.
        status: Flags of both means.
        below: What the denominator's terms were like.
        num: Draws.
    """

    value: Inexact[Tensor, " b *out"]
    std_error: Float[Tensor, " b *out"]
    bar: Float[Tensor, " b *out"]
    status: Int[Tensor, " b"]
    below: Running
    num: int


def ratio(
    fn_a: Callable[..., Tensor],
    fn_b: Callable[..., Tensor],
    dist: Distribution,
    *,
    args: tuple[Any, ...] = (),
    rtol: float | None = None,
    atol: float | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E[fn_a(x)] / E[fn_b(x)] over the same draws, so that what they share cancels.

    Args:
        fn_a: As for `expect`; both return shapes that broadcast.
        fn_b: Of the denominator.
        dist: Any torch distribution.
        args: Further arguments of both.
        rtol: Relative tolerance; a miss is flagged.
        atol: Absolute tolerance; of the two the looser holds.
        max_evals: Draws, default 131,072.
        confidence: Level of the bar.
        dtype: Precision of the draws.
        generator: Of the draws.

    Returns:
        Estimate, differentiable as that of `expect`; flagged where the denominator may be zero.

    Raises:
        TypeError: If a function or the distribution is not what it should be.
        ValueError: If shapes do not fit.

    >>> normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    >>> result = ratio(lambda x: x**4, lambda x: x**2, normal)
    >>> bool((result.value - 3).abs() < 0.1)
    True
    """
    refuse_transforms()
    for fn in (fn_a, fn_b):
        if not callable(fn):
            raise TypeError(f"the functions must be callable, got {type(fn).__name__}.")
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)

    def both(x: Tensor, *own: Any) -> Tensor:
        return torch.stack(torch.broadcast_tensors(fn_a(x, *own), fn_b(x, *own)), dim=-1)

    posed = expectation(both, dist, args=args, breaks=None, dtype=dtype)
    found = quotient(posed, draw_seed(generator), max_evals or _MAX_EVALS, confidence)
    count = torch.full_like(found.status, found.num)
    method = "quotient of two means over the same draws"
    solved = Solved(found.value, found.bar, found.status, count, method, found.std_error, math.inf)
    return solved.estimate(posed.batch, posed.dtype, tolerance, stacklevel=2)


def quotient(posed: Expectation, seed: int, num: int, confidence: float) -> Quotient:
    """Of the two functions along the last axis of a function's values."""
    few = max(2, min(_PILOT, num // 8))
    with torch.no_grad():
        first = Draws(posed, seed + 1).averaged(few)[0]
        near = first[..., 0] / first[..., 1]
        near = torch.where(near.isfinite(), near, 0.0)

    def triple(x: Tensor, *own: Any) -> Tensor:
        pair = posed.fn(x, *own)
        a, b = pair[..., 0], pair[..., 1]
        lead = near.reshape([*posed.batch, *near.shape[1:]]).to(pair.dtype)
        return torch.stack([a, b, a - lead * b], dim=-1)

    value, terms = Draws(replace(posed, fn=triple), seed).averaged(max(2, num - few))
    return _joined(value, terms, near, posed, confidence, num)


def _joined(
    value: Tensor,
    terms: Running,
    near: Tensor,
    posed: Expectation,
    confidence: float,
    num: int,
) -> Quotient:
    quotient, below, rest = value[..., 0] / value[..., 1], terms.column(1), terms.column(2)
    size = below.mean.abs()
    moved = (quotient.detach() - near).abs()
    scatter = (rest.std_error + moved * below.std_error) / size
    weak = half_width(below.std_error, None, confidence) / size
    eps = torch.finfo(posed.dtype).eps
    rounding = _ROUNDING * eps * (terms.column(0).size + quotient.detach().abs() * below.size)
    rounding = rounding / terms.num / size
    bar = half_width(scatter, None, confidence) / (1 - weak).clamp(min=0.0) + rounding
    # one a multiple of the other: nothing is left to judge
    same = rest.size / terms.num <= rounding * size
    status = judged(below, torch.zeros_like(same)) | judged(rest, torch.zeros_like(same), same)
    unknown = (~(weak < _WEAK)).reshape(len(status), -1).any(dim=1)
    status = status | torch.where(unknown, int(Status.DIVERGENT), 0)
    wide = (status != 0).reshape(-1, *[1] * (bar.ndim - 1))
    return Quotient(quotient, scatter, bar.where(~wide, math.inf), status, below, num)

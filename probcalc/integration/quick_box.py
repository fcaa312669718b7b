"""One look at one easy box: the products of `cubature`, with nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.integration.goal import Goal
from probcalc.integration.integrand import CHANGED, version_of
from probcalc.integration.orthogonal import LEGENDRE
from probcalc.integration.problem import DEFAULT_RTOL, Tolerance
from probcalc.integration.products import products
from probcalc.result import Estimate

METHOD = "adaptive cubature"
MAX_EVALS = 2**20  # of a box


class _Hard(Exception):
    """Not for one look."""


def quick_box(
    fn: Callable[..., Tensor],
    lower: Float[Tensor, " d"],
    upper: Float[Tensor, " d"],
    args: tuple[Any, ...],
    dtype: torch.dtype,
    tolerance: Tolerance,
) -> Estimate | None:
    """The integral if products of Gauss rules give it; None where it takes more, or gradients."""
    width = (upper - lower).double()
    volume = float(width.prod())
    if not 0 < volume < float("inf") or bool((width <= 0).any()):
        return None

    def at(points: Tensor, elem: Tensor) -> Tensor:
        x = torch.addcmul(lower, width, points).to(dtype)
        version = version_of(x)
        f = fn(x, *args)
        if version_of(x) != version:
            raise ValueError(CHANGED)
        plain = torch.is_tensor(f) and f.shape == x.shape[:1] and not f.is_complex()
        if not plain or f.requires_grad:
            raise _Hard
        return (f.double() * volume)[:, None, None]

    rtol = (tolerance.rtol or 0.0) if tolerance.asked else DEFAULT_RTOL
    goal = Goal(rtol, tolerance.atol or 0.0, tolerance.max_evals or MAX_EVALS)
    rounding = torch.finfo(dtype).eps
    try:
        found = products(at, (LEGENDRE,) * len(lower), _one(lower.device), goal, rounding)
    except _Hard:
        return None
    if not found.done:
        return None
    sums = found.done[0].sums
    value, error = sums.value[0, 0], (sums.error + sums.noise)[0, 0]
    if tolerance.asked and bool(tolerance.missed(value, error)):
        return None
    return Estimate(
        value.to(dtype),
        error.to(dtype),
        confidence=tolerance.confidence,
        num_evals=sum(n for _, n in found.spent),
        method=METHOD,
    )


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=device)

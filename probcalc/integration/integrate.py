"""Integrals over intervals and boxes, one or many, each with its error bar.

    I = ∫ f(x, θ) dx

Every element of a batch has its own limits, parameters and convergence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probcalc.integration.choose import IntegrationMethod, box_ladder, climbed
from probcalc.integration.gauss_quadrature import GaussQuadrature
from probcalc.integration.problem import (
    Limit,
    Tolerance,
    common_device,
    common_dtype,
    problem,
    refuse_transforms,
)
from probcalc.integration.quick import quick
from probcalc.integration.quick_box import quick_box
from probcalc.result import Estimate

_CPU = torch.device("cpu")


def integrate(
    fn: Callable[..., Tensor],
    lower: Limit,
    upper: Limit,
    *,
    args: tuple[Any, ...] = (),
    event_dim: int = 0,
    breaks: Tensor | Sequence[float] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    method: IntegrationMethod | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Integrate a function over an interval, or a batch of them at once.

    The error bar is the rule's own estimate. Where it cannot be trusted (a divergence is
    suspected, values are not finite, no mass was found) the status says so, the bar is infinite
    and a warning is raised. A narrow peak on a smooth background is seen if it is wider than
    about 1/4,000 of the interval, in a batch of many thousands 1/50, in a box if it fills about
    1/1,000 of it; name its place in `breaks` if it may be narrower.

    Args:
        fn: ``fn(x, *args)`` takes points ``(n, *batch)`` and returns ``(n, *batch, *out)``, real
            or complex. With tensors in `args` it is called on some elements of the batch at a
            time, as ``(n, k)``. Without, it may close over tensors of the batch shape.
        lower: Lower limits ``(*batch)``, numbers or infinite.
        upper: Upper limits.
        args: Tensors ``(*batch, ...)``, and anything else, which is handed on as it is.
        event_dim: 0 for intervals; 1 for boxes, whose limits are ``(*batch, d)`` and whose points
            come as ``(n, *batch, d)``.
        breaks: Points ``(s)`` or ``(*batch, s)`` where the integrand is rough or narrow.
        rtol: Relative tolerance; 1e-8 is tried for where none is given.
        atol: Absolute tolerance; of the two the looser holds.
        method: Default `GaussKronrod()`, for boxes `Cubature()`, in more than seven dimensions
            `SparseGrid()`, or `Vegas()` where that is rough.
        max_evals: Points that each element may spend (default 131,072; boxes 1,048,576).
        confidence: Level of the bar of random methods.
        dtype: Precision of the points; default that of the tensors given, else float64.
        generator: For random methods.

    Returns:
        Estimate of shape ``(*batch, *out)``, differentiable in `args`, in the limits and in what
        `fn` closes over.

    Raises:
        TypeError: If `fn` is not a function, a limit not real or in half precision; inside `vmap`
            or a compiled graph, but with `GaussQuadrature`.
        ValueError: If limits are NaN, or shapes or devices do not fit.

    >>> integrate(lambda x: (-x * x).exp(), -float("inf"), float("inf"), rtol=1e-6).value
    tensor(1.7725, dtype=torch.float64)
    """
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)
    if not isinstance(method, GaussQuadrature):
        refuse_transforms()
    if method is None and breaks is None and event_dim in (0, 1):
        glance = _box_at_a_glance if event_dim == 1 else _at_a_glance
        easy = glance(fn, lower, upper, args, dtype, tolerance)
        if easy is not None:
            return easy
    reads = not isinstance(method, GaussQuadrature)
    posed = problem(
        fn,
        lower,
        upper,
        args=args,
        event_dim=event_dim,
        breaks=breaks,
        dtype=dtype,
        reads=reads,
    )
    if method is None:
        solved = climbed(box_ladder(posed), lambda rung: rung.solve(posed, tolerance), tolerance)
    else:
        solved = method.solve(posed, tolerance)
    return solved.estimate(posed.batch, posed.dtype, tolerance, stacklevel=2, reads=reads)


def _at_a_glance(
    fn: Callable[..., Tensor],
    lower: Limit,
    upper: Limit,
    args: tuple[Any, ...],
    dtype: torch.dtype | None,
    tolerance: Tolerance,
) -> Estimate | None:
    """One integral between plain numbers, if it is easy."""
    for limit in (lower, upper):
        if torch.is_tensor(limit):
            if limit.ndim or limit.requires_grad or limit.is_complex():
                return None
        elif not isinstance(limit, (float, int)):
            return None
    if not callable(fn) or not isinstance(args, tuple):
        return None
    if args or torch.is_tensor(lower) or torch.is_tensor(upper):
        device = common_device({"lower": lower, "upper": upper}, args)
        evaluated = dtype or common_dtype((lower, upper, *args))
    else:
        device, evaluated = _CPU, dtype or torch.float64
    return quick(fn, float(lower), float(upper), args, evaluated, device, tolerance)


def _box_at_a_glance(
    fn: Callable[..., Tensor],
    lower: Limit,
    upper: Limit,
    args: tuple[Any, ...],
    dtype: torch.dtype | None,
    tolerance: Tolerance,
) -> Estimate | None:
    """One finite box, if it is easy."""
    for limit in (lower, upper):
        if not torch.is_tensor(limit) or limit.ndim != 1 or limit.requires_grad:
            return None
        if not limit.is_floating_point():
            return None
    if lower.shape != upper.shape or not callable(fn) or not isinstance(args, tuple):
        return None
    common_device({"lower": lower, "upper": upper}, args)
    evaluated = dtype or common_dtype((lower, upper, *args))
    return quick_box(fn, lower, upper, args, evaluated, tolerance)

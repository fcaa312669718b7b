"""Expectations on the log scale.

    log E_p[exp g(x)]

The largest exponent is looked for first and taken out, so that nothing overflows or vanishes; its
peaks become breaks, so that narrow ones next to each other or on a broad one are all integrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from probcalc.integration.choose import ExpectationMethod
from probcalc.integration.expect import best
from probcalc.integration.expectation import expectation
from probcalc.integration.peaks import peaks
from probcalc.integration.problem import Tolerance
from probcalc.result import Estimate


def log_expect(
    log_fn: Callable[..., Tensor],
    dist: Distribution,
    *,
    args: tuple[Any, ...] = (),
    breaks: Tensor | Sequence[float] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    method: ExpectationMethod | None = None,
    max_evals: int | None = None,
    confidence: float = 0.99,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Logarithm of the expectation of exp(log_fn), without overflow or underflow.

    Arguments are those of `expect`; tolerances hold for the expectation, so that `rtol` is about
    the absolute error of the logarithm.

    Returns:
        Estimate of the logarithm.

    Raises:
        TypeError: If `log_fn` returns complex numbers: their logarithm has many branches.

    >>> uniform = torch.distributions.Uniform(0.0, torch.tensor(1.0, dtype=torch.float64))
    >>> log_expect(lambda x: 1000 * x, uniform).value  # 1000 - log 1000
    tensor(993.0922, dtype=torch.float64)
    """
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)
    posed = expectation(_real(log_fn), dist, args=args, breaks=breaks, dtype=dtype)
    with torch.no_grad():
        shift, places = peaks(posed)
    posed = replace(posed, shift=shift)
    if places is not None:
        own = [] if posed.breaks is None else [posed.breaks.expand(*posed.batch, -1)]
        posed = replace(posed, breaks=torch.cat([*own, places], dim=-1))
    solved = method.expect(posed, tolerance) if method else best(posed, tolerance)
    scaled = solved.estimate(posed.batch, torch.float64, tolerance, stacklevel=2)
    log = scaled.log()
    moved = shift.reshape([*posed.batch, *[1] * (log.value.ndim - len(posed.batch))])
    value = (log.value + moved).to(posed.dtype)
    rounding = torch.finfo(posed.dtype).eps * torch.maximum(value.detach().abs(), moved.abs())
    error = (log.error + rounding).to(posed.dtype)
    return replace(log, value=value, error=error, method=f"log of {solved.method}")


def _real(log_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which is refused where its values are complex."""
    if not callable(log_fn):
        return log_fn  # refused with the other arguments

    def real(x: Tensor, *args: Any) -> Tensor:
        values = log_fn(x, *args)
        if torch.is_tensor(values) and values.is_complex():
            raise TypeError(
                "`log_fn` must return real numbers, got "
                f"{values.dtype}: use `expect` for complex functions, or take the real part."
            )
        return values

    return real

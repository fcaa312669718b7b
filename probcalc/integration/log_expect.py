"""Expectations on the log scale.

    log E_p[exp g(x)]

The largest exponent is looked for first and taken out, so that nothing overflows or vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import forked
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import support_of
from probcalc.integration.choose import ExpectationMethod
from probcalc.integration.expect import best
from probcalc.integration.expectation import Expectation, expectation
from probcalc.integration.problem import Tolerance
from probcalc.result import Estimate

_GRID = 512  # quantiles at which the exponent is first looked at
_FARTHEST = 1e-280  # probability of the outermost ones
_ZOOMS, _ZOOM_POINTS = 24, 17  # rounds that close in on the largest exponent
_DRAWS = 2**12


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

    >>> uniform = torch.distributions.Uniform(0.0, torch.tensor(1.0, dtype=torch.float64))
    >>> log_expect(lambda x: 1000 * x, uniform).value  # 1000 - log 1000
    tensor(993.0922, dtype=torch.float64)
    """
    tolerance = Tolerance(rtol, atol, max_evals, confidence, generator)
    posed = expectation(log_fn, dist, args=args, breaks=breaks, dtype=dtype)
    with torch.no_grad():
        shift, place = _peak(posed)
    posed = replace(posed, shift=shift)
    if place is not None:
        own = [] if posed.breaks is None else [posed.breaks.expand(*posed.batch, -1)]
        posed = replace(posed, breaks=torch.cat([*own, place[..., None]], dim=-1))
    solved = method.expect(posed, tolerance) if method else best(posed, tolerance)
    scaled = solved.estimate(posed.batch, torch.float64, tolerance, stacklevel=2)
    log = scaled.log()
    moved = shift.reshape([*posed.batch, *[1] * (log.value.ndim - len(posed.batch))])
    value = (log.value + moved).to(posed.dtype)
    rounding = torch.finfo(posed.dtype).eps * value.detach().abs()
    error = (log.error + rounding).to(posed.dtype)
    return replace(log, value=value, error=error, method=f"log of {solved.method}")


def _peak(posed: Expectation) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"] | None]:
    """Largest exponent met, with the density's, and on the line where it was met."""
    dist = in_double(posed.dist)
    try:
        x = _grid(dist)
    except NotImplementedError:
        return _peak_of_draws(posed), None
    discrete = support_of(dist).discrete
    height = _exponents(posed, dist, x)
    for _ in range(0 if discrete else _ZOOMS):
        top = height.argmax(dim=0, keepdim=True)
        left = x.gather(0, (top - 1).clamp(min=0))
        right = x.gather(0, (top + 1).clamp(max=len(x) - 1))
        share = torch.linspace(0, 1, _ZOOM_POINTS, dtype=x.dtype, device=x.device)
        x = torch.lerp(left, right, share.reshape([-1, *[1] * (x.ndim - 1)]))
        height = _exponents(posed, dist, x)
    top, where = height.max(dim=0)
    return top, None if discrete else x.gather(0, where[None])[0]


def _grid(dist: Distribution) -> Float[Tensor, " n *batch"]:
    """Quantiles, evenly spaced in the middle and on the log scale outside."""
    if dist.event_shape:
        raise NotImplementedError("quantiles are for distributions on the line.")
    n = _GRID // 4
    even = (torch.arange(2 * n, dtype=torch.float64) + 0.5) / (2 * n)
    far = _FARTHEST ** ((torch.arange(n, dtype=torch.float64) + 1) / n)
    even, far = (p.reshape([-1, *[1] * len(dist.batch_shape)]) for p in (even, far))
    x = torch.cat(
        [quantile(dist, far.flip(0)), quantile(dist, even), quantile(dist, far, upper=True)]
    )
    return x.sort(dim=0).values


def _exponents(posed: Expectation, dist: Distribution, x: Tensor) -> Tensor:
    g = posed.values(x)
    g = g.reshape(*x.shape, -1).amax(dim=-1) + log_density(dist, x)
    return g.nan_to_num(nan=-torch.inf, posinf=-torch.inf)


def _peak_of_draws(posed: Expectation) -> Tensor:
    with forked(0, posed.device):
        x = posed.dist.sample((_DRAWS,))
    values = posed.values(x)
    lead = (len(x), *posed.batch)
    return values.reshape(*lead, -1).amax(dim=-1).amax(dim=0)

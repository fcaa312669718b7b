"""Expectations under a density on the line, as integrals that find the mass wherever it lies.

The domain is cut at quantiles down to 1e-15 on either side (of every component of a mixture), so
that no scale or place is too narrow or too far out; tails beyond are half-infinite intervals.
Where mass is spread over many powers of ten next to zero, the logarithm is integrated over.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily

from probcalc._random import forked
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import device_of, support_of
from probcalc.integration.clipped import ends
from probcalc.integration.expectation import Expectation, alive, over_parameters
from probcalc.integration.integrand import checked_values
from probcalc.integration.problem import Problem

_LEVELS = (1e-15, 1e-9, 1e-6, 1e-3, 0.05, 0.3)
_LEVELS_OF_COMPONENTS = (1e-9, 0.05)
_THOUSANDTH, _STEEP = 3, 1e-9  # place of the quantile 0.001, and what it is of the median at most
_LEAST, _MOST = -744.0, 700.0  # logarithms of about the least and the largest number
_NEAREST = 1e-10  # distance of a break from an end, relative to the span of all
_DRAWS = 2**12  # that stand in for quantiles which nobody knows


def as_integral(posed: Expectation, *, over_logarithm: bool = False) -> Problem:
    """The integral of the function times the density, over the support.

    Args:
        posed: The expectation.
        over_logarithm: Whether it may become one over the logarithm.
    """
    dist = in_double(posed.dist)
    support = support_of(dist)
    b = math.prod(posed.batch)
    # with gradients: the support may depend on parameters
    ends = (support.lower, support.upper)
    lower, upper = (t.double().expand(posed.batch).reshape(b) for t in ends)
    with torch.no_grad():
        own, given = _breaks(posed, dist)
        steep = over_logarithm and _steep(own.reshape(b, -1), lower)
        breaks = torch.cat([own, given], dim=-1).reshape(b, -1)
        breaks = breaks.clamp(lower[:, None], upper[:, None])
        breaks = breaks.log() if steep else _off_the_ends(breaks, lower, upper)
    if steep:
        lower, upper = torch.full_like(lower, _LEAST), upper.log()
    fn, args = over_parameters(posed, dist, partial(_product, posed, steep))
    rounding = torch.finfo(posed.dtype).eps
    ones = torch.ones_like(lower)
    return Problem(fn, args, lower, upper, ones, breaks, posed.batch, torch.float64, rounding)


def _steep(breaks: Float[Tensor, "b s"], lower: Float[Tensor, " b"]) -> bool:
    """Whether much of the mass lies so near zero that its logarithm is what it is spread over."""
    if not len(lower) or lower.requires_grad or not bool((lower == 0).all()):
        return False
    low = breaks.sort(dim=1).values
    return bool((low[:, _THOUSANDTH] < _STEEP * low[:, len(_LEVELS)]).any())


def beyond(posed: Expectation, problem: Problem) -> Tensor | None:
    """What the mass nearer to an end than any number adds, were the function to go on as it does.

    Of integrals over the logarithm, which are not extrapolated to where numbers end.
    """
    if problem.lower.requires_grad or not bool((problem.lower == _LEAST).all()):
        return None
    total: Tensor | float = 0.0
    with torch.no_grad():
        for end in ends(in_double(posed.dist), torch.float64):
            f = posed.values(torch.stack([end.here, end.beside]).expand(2, *posed.batch))
            axes = [*posed.batch, *[1] * (f.ndim - 1 - len(posed.batch))]
            if posed.shift is not None:
                f = (f - posed.shift.reshape(axes)).exp()
            mass, steps = (t.expand(posed.batch).reshape(axes) for t in (end.mass, end.steps))
            added = mass * (f[0].abs() + steps * (f[0] - f[1]).abs())
            total = total + torch.where(mass > 0, added, 0.0)
    if not torch.is_tensor(total):
        return None
    return total.reshape(problem.size, *total.shape[len(posed.batch) :])


def _product(
    posed: Expectation,
    steep: bool,
    x: Tensor,
    args: tuple[Any, ...],
    dist: Distribution,
    shift: Tensor | None,
) -> Tensor:
    x, slope = (x.clamp(max=_MOST).exp(), x) if steep else (x, 0.0)
    log_p = log_density(dist, x) + slope
    place = x if shift is not None else alive(x, log_p)
    values = posed.fn(place.to(posed.dtype), *args)
    values = checked_values(values, tuple(x.shape), tuple(x.shape))
    return posed.weighted(values, log_p, shift)


def _breaks(
    posed: Expectation, dist: Distribution
) -> tuple[Float[Tensor, " *batch s"], Float[Tensor, " *batch r"]]:
    """Quantiles, and what else there is: those of components, and what was given."""
    own, others = _quantiles(dist, _LEVELS), []
    if isinstance(dist, MixtureSameFamily):
        parts = _quantiles(dist.component_distribution, _LEVELS_OF_COMPONENTS)
        others.append(parts.flatten(-2))
    if posed.breaks is not None:
        others.append(posed.breaks)
    others = others or [own[..., :0]]
    wide = [c.expand(*posed.batch, c.shape[-1]) for c in (own, *others)]
    return wide[0], torch.cat(wide[1:], dim=-1)


def _off_the_ends(
    breaks: Float[Tensor, "b s"], lower: Float[Tensor, " b"], upper: Float[Tensor, " b"]
) -> Float[Tensor, "b s"]:
    """Breaks but those so near a singular end that its extrapolation would have no room."""
    room = _NEAREST * (breaks.amax(dim=1) - breaks.amin(dim=1))
    low, high = lower[:, None], upper[:, None]
    breaks = torch.where(breaks < low + room[:, None], low, breaks)
    return torch.where(breaks > high - room[:, None], high, breaks)


def _quantiles(dist: Distribution, levels: tuple[float, ...]) -> Float[Tensor, " *batch s"]:
    """Below the levels, the median, and above them, along the last axis."""
    p = torch.tensor(levels, dtype=torch.float64, device=device_of(dist))
    p = p.reshape([-1, *[1] * len(dist.batch_shape)])
    try:
        below, above = quantile(dist, p), quantile(dist, p, upper=True)
        middle = quantile(dist, torch.full_like(p[:1], 0.5))
        return torch.cat([below, middle, above]).movedim(0, -1)
    except NotImplementedError:
        return _of_draws(dist)


def _of_draws(dist: Distribution) -> Float[Tensor, " *batch s"]:
    with forked(0):
        x = dist.sample((_DRAWS,)).double().sort(dim=0).values
    half = [0, 8, 64, 512, 1024]
    return x[[*half, _DRAWS // 2, *(_DRAWS - 1 - i for i in half)]].movedim(0, -1)

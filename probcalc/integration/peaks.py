"""Where the logarithm of an integrand peaks, and how wide.

    max_x g(x) + log p(x)

On the line it is looked at in quantiles, and beyond the outermost ones in points that spread
geometrically, as it may rise where p is next to nothing. Every local maximum among the highest is
closed in on; it and the places around it where it has fallen become breaks.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc._random import forked
from probcalc.distributions.families import is_point_mass
from probcalc.distributions.log_density import log_density
from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import device_of, support_of
from probcalc.integration.enumeration import largest_exponent
from probcalc.integration.expectation import Expectation

_GRID, _TAIL = 2**12, 2**7  # quantiles at which the exponent is first looked at, and in a tail
_FARTHEST = 1e-280  # probability of the outermost ones
_SPREAD, _OUTER = 2**0.25, 200  # of the points beyond, and how many there are on a side
_PEAKS = 8  # that are closed in on
_ZOOMS, _ZOOM_POINTS = 24, 17  # rounds that close in, and points of a round
_DEPTH = 60.0  # below the highest at which a peak no longer matters, widths included
_HALVINGS = 64  # of the distance at which a peak has fallen
_FALLS = (1.0, 8.0)  # of a peak's exponent, to where breaks are put
_DRAWS = 2**12


def peaks(
    posed: Expectation,
) -> tuple[Float[Tensor, " *batch"], Float[Tensor, " *batch s"] | None]:
    """The largest exponent, with the density's or mass's, and breaks around it on the line."""
    dist = in_double(posed.dist)
    top, places = _found(posed, dist)
    return torch.where(top.isfinite(), top, 0.0), places


def _found(posed: Expectation, dist: Distribution) -> tuple[Tensor, Tensor | None]:
    if is_point_mass(posed.dist):
        return _highest(posed.values(posed.dist.v[None].double()), posed), None
    if posed.event:
        return _of_draws(posed, dist), None
    counted = largest_exponent(posed)
    if counted is not None:
        return counted, None
    x = _grid(dist)
    heights = _exponents(posed, dist, x)
    left, right = _intervals(x, heights)
    for _ in range(_ZOOMS):
        share = torch.linspace(0, 1, _ZOOM_POINTS, dtype=x.dtype, device=x.device)
        x = torch.lerp(left, right, share.reshape([-1, *[1] * left.ndim]))
        heights = _exponents(posed, dist, x)
        at = heights.argmax(dim=0, keepdim=True)
        left = x.gather(0, (at - 1).clamp(min=0))[0]
        right = x.gather(0, (at + 1).clamp(max=_ZOOM_POINTS - 1))[0]
    height, where = heights.max(dim=0)  # (peaks, *batch)
    return height.amax(dim=0), _breaks(posed, dist, x.gather(0, where[None])[0], height)


def _intervals(
    x: Float[Tensor, " n *batch"], heights: Float[Tensor, " n *batch"]
) -> tuple[Float[Tensor, " k *batch"], Float[Tensor, " k *batch"]]:
    """Neighbours of the highest local maxima; those of the highest in place of missing ones."""
    low = torch.full_like(heights[:1], -math.inf)
    before, after = torch.cat([low, heights[:-1]]), torch.cat([heights[1:], low])
    is_peak = (heights >= before) & (heights > after) & heights.isfinite()
    top, index = torch.where(is_peak, heights, -math.inf).topk(_PEAKS, dim=0)
    index = torch.where(top.isfinite(), index, heights.argmax(dim=0, keepdim=True))
    left, right = (index - 1).clamp(min=0), (index + 1).clamp(max=len(x) - 1)
    return x.gather(0, left), x.gather(0, right)


def _breaks(
    posed: Expectation,
    dist: Distribution,
    place: Float[Tensor, " k *batch"],
    height: Float[Tensor, " k *batch"],
) -> Float[Tensor, " *batch s"]:
    """Peaks that matter, and on either side where they have fallen by given amounts."""
    order = height.argsort(dim=0, descending=True)
    place, height = place.gather(0, order), height.gather(0, order)
    matters = height >= height[:1] - _DEPTH
    kept = max(1, int(matters.sum(dim=0).max()))
    place = torch.where(matters, place, place[:1])[:kept]
    height = torch.where(matters, height, height[:1])[:kept]
    halves = torch.arange(_HALVINGS, dtype=place.dtype, device=place.device)
    reach = 2 * place.abs().clamp(min=1.0)
    distance = reach * 2.0 ** -halves.reshape([-1, *[1] * place.ndim])
    breaks = [place]
    for side in (-1, 1):
        fallen = height - _exponents(posed, dist, place + side * distance)
        for fall in _FALLS:
            near = torch.where(fallen < fall, distance, 0.0).amax(dim=0)
            breaks.append(place + side * torch.where(near < reach, near, 0.0))
    return torch.cat(breaks).movedim(0, -1)


def _grid(dist: Distribution) -> Float[Tensor, " n *batch"]:
    """Quantiles, evenly spaced in the middle and on the log scale outside, and points beyond."""
    try:
        x = _quantiles(dist)
    except NotImplementedError:
        with forked(0):
            x = dist.sample((_DRAWS,)).double()
        x = x.sort(dim=0).values
    x = x.expand(len(x), *dist.batch_shape)
    middle, ends = x[len(x) // 2], (x.amin(dim=0), x.amax(dim=0))
    support = support_of(dist)
    power = torch.arange(1, _OUTER + 1, dtype=x.dtype, device=x.device)
    factor = (_SPREAD**power).reshape([-1, *[1] * (x.ndim - 1)])
    outer = [middle + factor * (end - middle) for end in ends]
    inside = [
        torch.where((t > support.lower) & (t < support.upper) & t.isfinite(), t, end)
        for t, end in zip(outer, ends, strict=True)
    ]
    return torch.cat([x, *inside]).sort(dim=0).values


def _quantiles(dist: Distribution) -> Float[Tensor, " n *batch"]:
    whole = partial(torch.arange, dtype=torch.float64, device=device_of(dist))
    even, far = (whole(_GRID) + 0.5) / _GRID, _FARTHEST ** ((whole(_TAIL) + 1) / _TAIL)
    even, far = (p.reshape([-1, *[1] * len(dist.batch_shape)]) for p in (even, far))
    return torch.cat(
        [quantile(dist, far.flip(0)), quantile(dist, even), quantile(dist, far, upper=True)]
    )


def _exponents(
    posed: Expectation, dist: Distribution, x: Float[Tensor, " *lead_and_batch"]
) -> Float[Tensor, " *lead_and_batch"]:
    """Of all points, whatever axes stand before the batch."""
    flat = x.reshape(-1, *posed.batch)
    support = support_of(dist)
    outside = (flat < support.lower) | (flat > support.upper)
    middle = flat[len(flat) // 2]
    flat = torch.where(outside, middle, flat)
    g = posed.values(flat)
    g = g.reshape(*flat.shape, -1).amax(dim=-1) + log_density(dist, flat)
    g = g.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    return torch.where(outside, -torch.inf, g).reshape(x.shape)


def _of_draws(posed: Expectation, dist: Distribution) -> Float[Tensor, " *batch"]:
    """Of the function alone, over all points where these are few, else over draws."""
    try:
        x = posed.dist.enumerate_support()
    except NotImplementedError:
        with forked(0, posed.device):
            x = posed.dist.sample((_DRAWS,))
    return _highest(posed.values(x), posed)


def _highest(values: Tensor, posed: Expectation) -> Float[Tensor, " *batch"]:
    values = values.reshape(len(values), *posed.batch, -1).amax(dim=-1)
    return values.nan_to_num(nan=-torch.inf, posinf=-torch.inf).amax(dim=0)

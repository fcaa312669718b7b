"""Mass nearer to an end of a support than any number, where draws are clipped.

A gamma variable of shape 1e-3 is below 1e-308 half of the time, and torch's draws of it are that
number then. Whether it matters, the function says: by how it differs between there and half as
many powers of ten away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.cdf import cdf
from probcalc.distributions.rebuild import in_double
from probcalc.distributions.support import support_of

_LEAST = 2.0**-52  # mass that is looked at
_COORDINATES = 64  # that are looked at, those with most mass first


@dataclass(frozen=True, eq=False)
class End:
    """Of a support.

    Args:
        mass: Beyond the last number at it.
        here: That number.
        beside: One that is half as many powers of ten away.
        steps: From one to the other, that mass is beyond the last number in the mean.
    """

    mass: Tensor
    here: Tensor
    beside: Tensor
    steps: Tensor


Function = Callable[[Tensor], Tensor]  # of draws (n, *batch, *event), to (n, b, *out)


def clipped(
    dist: td.Distribution, fn: Function, x: Tensor, dtype: torch.dtype
) -> Float[Tensor, " b *out"] | None:
    """What the mass beyond the numbers of that precision adds to a mean of the function.

    Args:
        dist: A distribution on the line, of independent coordinates on it, or Dirichlet's.
        fn: The function.
        x: One draw, ``(1, *batch, *event)``, of which other coordinates are taken.
        dtype: Of the draws.

    Returns:
        Its size, as far as it shows; None where there is no such mass, or none is known.
    """
    margins = _margins(in_double(dist))
    if margins is None:
        return None
    total: Tensor | None = None
    simplex = isinstance(dist, td.Dirichlet)
    for end in ends(margins, dtype):
        size = end.mass * end.steps
        for i in _worth_looking_at(end.mass, bool(dist.event_shape)):
            at, off = (_replaced(x, value, i, simplex) for value in (end.here, end.beside))
            change = (fn(at.to(x.dtype)) - fn(off.to(x.dtype))).abs()[0]
            share = (size if i is None else size[..., i]).reshape([-1, *[1] * (change.ndim - 1)])
            added = torch.where(share > 0, share * change.nan_to_num(math.inf, math.inf), 0.0)
            total = added if total is None else total + added
    return total


def _margins(dist: td.Distribution) -> td.Distribution | None:
    """Of the coordinates, along the last axis of the batch where there are several."""
    if isinstance(dist, td.Dirichlet):
        a = dist.concentration
        return td.Beta(a, a.sum(dim=-1, keepdim=True) - a, validate_args=False)
    if isinstance(dist, td.Independent) and dist.reinterpreted_batch_ndims == 1:
        dist = dist.base_dist
    return None if dist.event_shape else dist


def ends(margins: td.Distribution, dtype: torch.dtype) -> Iterator[End]:
    """Both ends of the support, where they are known.

    Yields:
        What is nearer to each than any number.
    """
    try:
        support = support_of(margins)
        if support.discrete:
            return
        for end, upper in ((support.lower, False), (support.upper, True)):
            here, beside = _last(end.double().expand(margins.batch_shape), upper, dtype)
            mass, more = (cdf(margins, x, upper=upper).nan_to_num(0.0) for x in (here, beside))
            # masses that rise as a power of the distance go on like that
            steps = 1 / torch.log(more / mass)
            yield End(mass, here, beside, torch.where(mass > 0, steps, 0.0))
    except NotImplementedError:
        return


def _last(end: Tensor, upper: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    info, inward = torch.finfo(dtype), -1.0 if upper else 1.0
    found = []
    for least, unit, most in (
        (info.tiny, info.eps, info.max),
        (info.tiny**0.5, info.eps**0.5, info.max**0.5),
    ):
        inside = end + inward * (unit * end.abs()).masked_fill(end == 0, least)
        found.append(torch.where(end.isinf(), -inward * most, inside))
    return found[0], found[1]


def _worth_looking_at(mass: Tensor, vector: bool) -> list[int | None]:
    """Coordinates with mass beyond, or the only one."""
    if not bool((mass > _LEAST).any()):
        return []
    if not vector:
        return [None]
    most = mass.reshape(-1, mass.shape[-1]).amax(dim=0)
    order = most.argsort(descending=True)[:_COORDINATES].tolist()
    return [i for i in order if float(most[i]) > _LEAST]


def _replaced(x: Tensor, value: Tensor, i: int | None, simplex: bool) -> Tensor:
    """The draw with that coordinate; on the simplex the others make up for it."""
    if i is None:
        return value.expand(x.shape)
    y = x.double().clone()
    if simplex:
        rest = (y.sum(dim=-1) - y[..., i]).clamp(min=torch.finfo(y.dtype).tiny)
        y = y * ((1 - value[..., i]) / rest)[..., None]
    y[..., i] = value[..., i]
    return y

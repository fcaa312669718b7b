"""Where a distribution on the line may have mass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    AbsTransform,
    Distribution,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    constraints,
)

_INSIDE = 0.5  # a number in the domain of every transform


@dataclass(frozen=True, eq=False)
class Support:
    """Smallest interval that holds all mass, of the batch's shape, and whether it is of integers.

    Args:
        lower: Left end, or −∞.
        upper: Right end, or ∞.
        discrete: Whether only integers inside have mass, or, where the ends agree, that point.
    """

    lower: Float[Tensor, "*batch"]
    upper: Float[Tensor, "*batch"]
    discrete: bool


def support_of(dist: Distribution) -> Support:
    """Support of a distribution whose draws are numbers.

    Raises:
        NotImplementedError: If draws are not numbers, or the constraint is not an interval.
    """
    if dist.event_shape:
        raise NotImplementedError(f"draws of {type(dist).__name__} are not numbers.")
    if hasattr(dist, "v") and hasattr(dist, "log_density"):  # Pyro's point mass
        return Support(dist.v.double(), dist.v.double(), True)
    if isinstance(dist, MixtureSameFamily):
        return _of_mixture(support_of(dist.component_distribution))
    if type(dist) is TransformedDistribution:  # families made of one name their own support
        return _of_image(support_of(dist.base_dist), dist)
    if isinstance(dist, VonMises):  # torch calls it real, and normalises over one turn
        turn = torch.full_like(dist.concentration, math.pi, dtype=torch.float64)
        return Support(-turn, turn, False)
    constraint = dist.support
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    lower, upper = _interval(constraint)
    discrete = bool(constraint.is_discrete)
    device = device_of(dist)
    ends = (torch.as_tensor(end, dtype=torch.float64, device=device) for end in (lower, upper))
    return Support(*(end.expand(dist.batch_shape) for end in ends), discrete)


def some_point(lower: Tensor, upper: Tensor) -> Tensor:
    """A number inside of an interval, ends of which may be infinite."""
    bounded = torch.where(upper.isinf(), lower + 1, 0.5 * (lower + upper))
    free = torch.where(upper.isinf(), 0.0, upper - 1)
    return torch.where(lower.isinf(), free, bounded)


def device_of(dist: Distribution) -> torch.device | None:
    """Of the tensors that a distribution holds, or what it is made of; None if it holds none."""
    ahead: list[Any] = [dist]
    seen = set()
    while ahead:
        part = ahead.pop(0)
        if torch.is_tensor(part):
            return part.device
        if isinstance(part, list):
            ahead += part
        elif isinstance(part, (Distribution, Transform)) and id(part) not in seen:
            seen.add(id(part))  # transforms know their inverses, which know them
            ahead += vars(part).values()
    return None


def _interval(
    constraint: constraints.Constraint,
) -> tuple[Tensor | float | int, Tensor | float | int]:
    if constraint is constraints.real:
        return -math.inf, math.inf
    if constraint is constraints.boolean:
        return 0.0, 1.0
    lower = getattr(constraint, "lower_bound", None)
    upper = getattr(constraint, "upper_bound", None)
    if lower is None and upper is None:
        raise NotImplementedError(f"the support {constraint} is not an interval.")
    return -math.inf if lower is None else lower, math.inf if upper is None else upper


def _of_mixture(parts: Support) -> Support:
    return Support(parts.lower.amin(dim=-1), parts.upper.amax(dim=-1), parts.discrete)


def _of_image(base: Support, dist: TransformedDistribution) -> Support:
    """Ends carried through monotone transforms, and through |x|."""
    lower, upper = base.lower, base.upper
    for transform in dist.transforms:
        if isinstance(transform, AbsTransform):
            inside = (lower < 0) & (upper > 0)
            ends = torch.stack([lower.abs(), upper.abs()])
            lower, upper = torch.where(inside, 0.0, ends.amin(dim=0)), ends.amax(dim=0)
            continue
        images = (_image_of_end(transform, end) for end in (lower, upper))
        ends = torch.stack(torch.broadcast_tensors(*images)).double()
        if bool(ends.isnan().any()):
            raise NotImplementedError(f"{transform} does not say where it sends infinity.")
        lower, upper = ends.amin(dim=0), ends.amax(dim=0)
    lower, upper = (t.expand(dist.batch_shape) for t in (lower, upper))
    return Support(lower, upper, base.discrete)


def _image_of_end(transform: Transform, x: Tensor) -> Tensor:
    """The transform of x; the ends of its domain go to those of its image, which it may clamp.

    Where infinity goes does not depend on parameters, whose derivatives there would be NaN.
    """
    infinite = x.isinf()
    inside = torch.where(infinite, _INSIDE, x)
    image = torch.where(infinite, transform(x).detach(), transform(inside))
    if not transform.bijective:
        return image
    try:
        low, high = _interval(transform.domain)
        ends = _interval(transform.codomain)
    except NotImplementedError:
        return image
    rising = torch.as_tensor(transform.sign, device=x.device) > 0
    first, last = (torch.as_tensor(e, dtype=x.dtype, device=x.device) for e in ends)
    image = torch.where((x == low) & x.isfinite(), torch.where(rising, first, last), image)
    return torch.where((x == high) & x.isfinite(), torch.where(rising, last, first), image)

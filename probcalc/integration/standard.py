"""Distributions as images of independent classical weights.

    x = T(z),   z_i ~ normal, gamma of unit rate, beta or uniform, all independent

so that an expectation is an integral with a Gauss rule for each axis. Locations, scales and rates
enter through T; shapes are part of the weight, and their derivatives come from the ratio of the
density to itself held still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.rebuild import in_double
from probcalc.integration.expectation import Expectation, over_parameters
from probcalc.integration.integrand import checked_values
from probcalc.integration.orthogonal import Weight
from probcalc.integration.problem import Problem

Place = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Axis:
    """One independent coordinate.

    Args:
        name: Of the weight, as in `Weight`.
        shape: Its shape parameters, of the batch's shape.
    """

    name: str
    shape: tuple[Tensor, ...] = ()

    def weight(self) -> Weight:
        """The same for every element of the batch (reads shapes from the device).

        Raises:
            NotImplementedError: If elements differ in shape.
        """
        shapes = []
        for shape in self.shape:
            first = float(shape.detach().flatten()[0])
            if bool((shape.detach() != first).any()):
                raise NotImplementedError("elements of the batch differ in a shape parameter.")
            shapes.append(first)
        return Weight(self.name, tuple(shapes))


@dataclass(frozen=True, eq=False)
class Standard:
    """A distribution as the image of independent coordinates.

    Args:
        axes: The coordinates.
        place: From ``(n, *batch, d)`` to draws ``(n, *batch, *event)``.
        log_ratio: Log density over the same held still, at z: zero, with the derivatives in the
            shapes; None where there are none.
    """

    axes: tuple[Axis, ...]
    place: Place
    log_ratio: Place | None = None


def standard(dist: td.Distribution) -> Standard:
    """The distribution as an image.

    Raises:
        NotImplementedError: If it is none that is known.
    """
    if isinstance(dist, td.Independent):
        return _independent(dist)
    if isinstance(dist, td.MultivariateNormal):
        return _multivariate(dist, dist.scale_tril)
    if isinstance(dist, td.LowRankMultivariateNormal):
        return _multivariate(dist, torch.linalg.cholesky(dist.covariance_matrix))
    if isinstance(dist, td.Dirichlet):
        return _dirichlet(dist)
    if isinstance(dist, td.TransformedDistribution):
        return _transformed(dist)
    for family, make in _LINE.items():
        if isinstance(dist, family):
            return make(dist)
    raise NotImplementedError(
        f"{type(dist).__name__} is not known as an image of independent classical weights."
    )


def as_standard(posed: Expectation, *, still: bool) -> tuple[Problem, tuple[Axis, ...]]:
    """The expectation as an integral over independent coordinates, and what these are.

    Args:
        posed: The expectation.
        still: Whether points stay where they are when a shape moves, so that its derivative has
            to come from the density.

    Raises:
        NotImplementedError: If the distribution is no image of classical weights.
    """
    dist = in_double(posed.dist)
    axes = standard(dist).axes
    fn, args = over_parameters(posed, dist, partial(_value, posed, still))
    b, d = math.prod(posed.batch), len(axes)
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64, device=posed.device)
    lower, upper, sign = zero.expand(b, d), one.expand(b, d), one.expand(b)
    rounding = torch.finfo(posed.dtype).eps
    problem = Problem(
        fn, args, lower, upper, sign, lower[:, :0], posed.batch, torch.float64, rounding
    )
    return problem, axes


def _value(
    posed: Expectation,
    still: bool,
    z: Tensor,
    args: tuple[Any, ...],
    dist: td.Distribution,
    shift: Tensor | None,
) -> Tensor:
    """The function at the image of z."""
    image = standard(dist)
    x = image.place(z)
    lead = tuple(z.shape[:-1])
    values = checked_values(posed.fn(x.to(posed.dtype), *args), lead, tuple(x.shape))
    axes = [1] * (values.ndim - len(lead))
    if shift is not None:
        values = (values - shift.reshape([*shift.shape, *axes])).exp()
    if image.log_ratio is None or not still:
        return values
    return values * image.log_ratio(z).exp().reshape([*lead, *axes])


def _gamma(dist: td.Gamma) -> Standard:
    def log_ratio(z: Tensor) -> Tensor:
        a = dist.concentration
        return (a - a.detach()) * z[..., 0].log() - torch.lgamma(a) + torch.lgamma(a.detach())

    shape = dist.concentration
    moved = log_ratio if shape.requires_grad else None
    return Standard((Axis("laguerre", (shape,)),), lambda z: z[..., 0] / dist.rate, moved)


def _beta(dist: td.Beta) -> Standard:
    a, b = dist.concentration1, dist.concentration0

    def log_ratio(z: Tensor) -> Tensor:
        x = z[..., 0]
        powers = (a - a.detach()) * x.log() + (b - b.detach()) * torch.log1p(-x)
        return powers + _log_beta(a.detach(), b.detach()) - _log_beta(a, b)

    moved = log_ratio if a.requires_grad or b.requires_grad else None
    return Standard((Axis("jacobi", (a, b)),), lambda z: z[..., 0], moved)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


_LINE: dict[type[td.Distribution], Callable[..., Standard]] = {
    td.Normal: lambda d: Standard(
        (Axis("hermite"),), lambda z: torch.addcmul(d.loc, d.scale, z[..., 0])
    ),
    td.Gamma: _gamma,
    td.Exponential: lambda d: Standard(
        (Axis("laguerre", (torch.ones_like(d.rate.detach()),)),), lambda z: z[..., 0] / d.rate
    ),
    td.Beta: _beta,
    td.Uniform: lambda d: Standard(
        (Axis("legendre"),), lambda z: d.low + (d.high - d.low) * z[..., 0]
    ),
}


def _multivariate(dist: td.Distribution, root: Float[Tensor, "*batch d d"]) -> Standard:
    d = root.shape[-1]
    return Standard(
        (Axis("hermite"),) * d, lambda z: dist.loc + torch.einsum("...ij,n...j->n...i", root, z)
    )


def _dirichlet(dist: td.Dirichlet) -> Standard:
    """Broken sticks: v_i ~ beta(a_i, a_{i+1} + ... + a_d)."""
    a = dist.concentration
    rest = a.flip(-1).cumsum(-1).flip(-1)
    d = a.shape[-1]
    sticks = td.Beta(a[..., :-1], rest[..., 1:], validate_args=False)
    parts = [
        _beta(td.Beta(sticks.concentration1[..., i], sticks.concentration0[..., i], False))
        for i in range(d - 1)
    ]

    def place(z: Tensor) -> Tensor:
        left = torch.cat([torch.ones_like(z[..., :1]), (1 - z).cumprod(dim=-1)], dim=-1)
        return left * torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)

    return Standard(tuple(p.axes[0] for p in parts), place, _joined_ratio(parts))


def _joined_ratio(parts: list[Standard]) -> Place | None:
    moved = [(i, p.log_ratio) for i, p in enumerate(parts) if p.log_ratio is not None]
    if not moved:
        return None
    return lambda z: sum(ratio(z[..., i : i + 1]) for i, ratio in moved)


def _independent(dist: td.Independent) -> Standard:
    """The axes of the base for every place of its reinterpreted dimensions."""
    base = standard(dist.base_dist)
    if len(base.axes) != 1:
        raise NotImplementedError("an Independent of draws that are not numbers.")
    batch = dist.base_dist.batch_shape
    keep = len(batch) - dist.reinterpreted_batch_ndims
    num = math.prod(batch[keep:])
    (axis,) = base.axes
    shapes = [s.expand(batch).reshape(*batch[:keep], num) for s in axis.shape]
    axes = tuple(Axis(axis.name, tuple(s[..., i] for s in shapes)) for i in range(num))

    def spread(z: Tensor) -> Tensor:
        return z.reshape(*z.shape[:-1], *batch[keep:])[..., None]

    log_ratio = base.log_ratio
    ratio = None
    if log_ratio is not None:
        dims = tuple(range(-dist.reinterpreted_batch_ndims, 0))
        ratio = lambda z: log_ratio(spread(z)).sum(dim=dims)  # noqa: E731
    return Standard(axes, lambda z: base.place(spread(z)), ratio)


def _transformed(dist: td.TransformedDistribution) -> Standard:
    base = standard(dist.base_dist)

    def place(z: Tensor) -> Tensor:
        x = base.place(z)
        for transform in dist.transforms:
            x = transform(x)
        return x

    return Standard(base.axes, place, base.log_ratio)

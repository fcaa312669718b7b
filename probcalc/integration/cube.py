"""Integrals and expectations as one function on the unit cube, whatever they are taken over.

    ∫ f(x) dx = ∫ f(T(u)) |T'(u)| du,   E_p[f] = ∫ f(T(u)) du

A box is stretched; draws are made of uniform numbers by quantiles, normal vectors along their
principal axes, so that the first coordinates matter most (Acworth, Broadie & Glasserman 1998).
All elements of a batch share the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.quantile import quantile
from probcalc.distributions.rebuild import copied
from probcalc.distributions.support import device_of
from probcalc.integration.cells import Box
from probcalc.integration.expectation import Expectation
from probcalc.integration.gradient_estimators import NoBaseline, surrogate
from probcalc.integration.problem import Problem

_POWERS = 14  # of ten, to which ends are approached
_RISE = 1e-4  # of the range of values, that is no new scale

Place = Callable[[Float[Tensor, "n d"]], Tensor]


@dataclass(frozen=True, eq=False)
class Cube:
    """A batch of functions on the unit cube.

    Args:
        dim: Of the cube.
        size: Number of elements.
        at: From points ``(n, d)`` inside (0, 1) to values ``(n, size, *out)``.
        device: Of the points.
        rounding: Relative rounding error of the values.
    """

    dim: int
    size: int
    at: Callable[[Float[Tensor, "n d"]], Inexact[Tensor, "n b *out"]]
    device: torch.device
    rounding: float


def beyond_ends(
    cube: Cube, low: Float[Tensor, " b *out"], high: Float[Tensor, " b *out"]
) -> tuple[Float[Tensor, " b *out"], int]:
    """Mass close to the ends of an interval where the function leaves the range that it had.

    On a line of two scales, points spread over the one never see the other. Where the place is a
    power of ten from the end, its square or so of the line beyond it; zero in more dimensions.

    Args:
        cube: The function.
        low: The smallest values met.
        high: The largest.

    Returns:
        The most of any power, and how many points were looked at.
    """
    if cube.dim > 1:
        return torch.zeros_like(high), 0
    power = torch.arange(1, _POWERS + 1, dtype=torch.float64, device=cube.device)
    near = 10.0**-power
    with torch.no_grad():
        f = cube.at(torch.cat([near, 1 - near])[:, None])
    f = f.abs() if f.is_complex() else f
    outside = torch.maximum(f - high, low - f)
    # a little further than the outermost points, anything that rises goes a little higher
    outside = torch.where(outside > _RISE * (high - low), outside, 0.0)
    weight = torch.cat([near, near]).reshape(-1, *[1] * (f.ndim - 1))
    mass = torch.where(outside.isfinite(), outside * weight, 0.0)
    return mass.amax(dim=0), 2 * _POWERS


def cube_of_boxes(problem: Problem) -> Cube:
    """Intervals or boxes.

    Raises:
        NotImplementedError: If limits are to be differentiated.
    """
    if problem.lower.requires_grad or problem.upper.requires_grad:
        raise NotImplementedError(
            "random methods have no derivatives in the limits: use `GaussKronrod()` or "
            "`Cubature()`, or integrate over the unit cube and scale inside the function."
        )
    if not problem.event:
        return cube_of_boxes(_as_boxes(problem))
    box = Box(problem)
    every = torch.arange(problem.size, device=problem.lower.device)

    def at(u: Tensor) -> Tensor:
        f = box.at(u[:, None].expand(-1, len(every), -1), every)
        f = f * problem.sign[:, None]
        return f.reshape(*f.shape[:2], *box.shape)

    return Cube(problem.event[0], problem.size, at, every.device, problem.rounding)


def _as_boxes(problem: Problem) -> Problem:
    fn = problem.fn
    flat = lambda x, *args: fn(x[..., 0], *args)  # noqa: E731
    lower, upper = problem.lower[:, None], problem.upper[:, None]
    return replace(problem, fn=flat, lower=lower, upper=upper)


def cube_of(posed: Expectation) -> Cube:
    """Draws of a distribution.

    Raises:
        NotImplementedError: If its draws are not made of uniform numbers.
    """
    dim = image_of(posed.dist)[0]
    b, lead = math.prod(posed.batch), len(posed.batch)

    def at(u: Tensor) -> Tensor:
        # a copy: this may be run again for the gradient, and torch's lazy properties are kept
        dist = copied(posed.dist)
        x = image_of(dist)[1](u)
        x = x.detach() if posed.by_score else x
        f = posed.values(x)
        if posed.shift is not None:
            f = (f - posed.shift.reshape([*posed.batch, *[1] * (f.ndim - 1 - lead)])).exp()
        f = f.reshape(len(f), b, *f.shape[1 + lead :])
        if not posed.by_score or not torch.is_grad_enabled():
            return f
        # points of a net depend on each other: none is a baseline for the others
        log_p = dist.log_prob(x).reshape(*f.shape[:2], *[1] * (f.ndim - 2)).expand(f.shape)
        return surrogate(log_p, f, f if f.requires_grad else None, baseline=NoBaseline())

    return Cube(dim, b, at, posed.device, torch.finfo(posed.dtype).eps)


def image_of(dist: td.Distribution) -> tuple[int, Place]:
    """How many uniform numbers make a draw, and how: ``(n, d)`` to ``(n, *batch, *event)``.

    Raises:
        NotImplementedError: If that is not known.
    """
    if isinstance(dist, td.MultivariateNormal):
        return _normal(dist, dist.scale_tril)
    if isinstance(dist, td.LowRankMultivariateNormal):
        return _normal(dist, torch.linalg.cholesky(dist.covariance_matrix))
    if isinstance(dist, td.Dirichlet):
        return _dirichlet(dist)
    if isinstance(dist, td.TransformedDistribution) and dist.event_shape:
        return _transformed(dist)
    if isinstance(dist, td.Independent):
        event, base = dist.event_shape, dist.base_dist
        if base.event_shape:
            raise NotImplementedError("an Independent of draws that are not numbers.")
        wide = lambda u: u.reshape(len(u), *[1] * len(dist.batch_shape), *event)  # noqa: E731
        return math.prod(event), lambda u: _quantile(base, wide(u))
    if dist.event_shape:
        raise NotImplementedError(f"draws of {type(dist).__name__} are not made of uniform ones.")
    quantile(dist, torch.full((), 0.5, device=device_of(dist)).double())  # for its refusal
    return 1, lambda u: _quantile(dist, u.reshape(len(u), *[1] * len(dist.batch_shape)))


def _quantile(dist: td.Distribution, u: Tensor) -> Tensor:
    if isinstance(dist, td.Normal):
        return dist.loc + dist.scale * torch.special.ndtri(u)
    return quantile(dist, u.to(u.device))


def _normal(dist: td.Distribution, root: Float[Tensor, "*batch d d"]) -> tuple[int, Place]:
    d = root.shape[-1]
    with torch.no_grad():
        # Σ = V Λ Vᵀ = (root Q)(root Q)ᵀ with Q orthogonal: held still, as Q z is as normal as z
        value, vector = torch.linalg.eigh(root.double() @ root.double().mT)
        axes = vector.flip(-1) * value.clamp(min=0.0).sqrt().flip(-1)[..., None, :]
        turn = torch.linalg.solve_triangular(root.double(), axes, upper=False)

    def place(u: Tensor) -> Tensor:
        z = torch.einsum("...ij,nj->n...i", turn, torch.special.ndtri(u))
        return dist.loc + torch.einsum("...ij,n...j->n...i", root.double(), z)

    return d, place


def _dirichlet(dist: td.Dirichlet) -> tuple[int, Place]:
    """Broken sticks: v_i ~ beta(a_i, a_{i+1} + ... + a_d)."""
    a = dist.concentration
    rest = a.flip(-1).cumsum(-1).flip(-1)
    sticks = td.Beta(a[..., :-1], rest[..., 1:], validate_args=False)

    def place(u: Tensor) -> Tensor:
        v = quantile(sticks, u.reshape(len(u), *[1] * len(dist.batch_shape), -1))
        left = torch.cat([torch.ones_like(v[..., :1]), (1 - v).cumprod(dim=-1)], dim=-1)
        return left * torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)

    return a.shape[-1] - 1, place


def _transformed(dist: td.TransformedDistribution) -> tuple[int, Place]:
    base = dist.base_dist
    d, place = image_of(base)

    def through(u: Tensor) -> Tensor:
        x = place(u)
        for transform in dist.transforms:
            x = transform(x)
        return x

    return d, through

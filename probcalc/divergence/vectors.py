r"""KL(p‖q) in closed form of vectors and matrices.

Hotelling's and Wishart's families through Cholesky factors, L_q⁻¹ L_p = 1 + E, so that what is
small is never a difference of what is large.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from probcalc.distributions.special import computed_where
from probcalc.divergence.finite import among
from probcalc.divergence.formula import Formula
from probcalc.divergence.gamma_functions import trigamma_excess
from probcalc.divergence.line import dirichlet
from probcalc.divergence.remainders import (
    lgamma_gap,
    near_gap,
    scaled_gap,
)

_NEAR = 0.02  # of the smaller argument


def multivariate_normal(m1: Tensor, l1: Tensor, m2: Tensor, l2: Tensor) -> Tensor:
    """Shapes and places, both in the second's units."""
    return 0.5 * _shapes(l1, l2, (m1 - m2)[..., None])


def _shapes(l1: Tensor, l2: Tensor, *besides: Tensor) -> Tensor:
    """Trace of Σ₂⁻¹ Σ₁ − 1 − ln det, and squared columns in the same units."""
    right = l1 - l2
    if besides:
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (right, *besides)))
        right = torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (right, *besides)], dim=-1)
    apart = torch.linalg.solve_triangular(l2, right, upper=False)
    above = apart.diagonal(dim1=-2, dim2=-1)
    direct = l1.diagonal(dim1=-2, dim2=-1) / l2.diagonal(dim1=-2, dim2=-1)
    close = above.abs() < 0.5
    log = torch.where(close, torch.log1p(torch.where(close, above, 0.0)), direct.log())
    # r² − 1 − 2 ln r with r = 1 + d is d² + 2 (d − ln r)
    return apart.square().sum(dim=(-2, -1)) + 2 * (above - log).clamp(min=0.0).sum(dim=-1)


def wishart(n1: Tensor, l1: Tensor, n2: Tensor, l2: Tensor) -> Tensor:
    """What the means n V differ by, then what the degrees of freedom do.

    From degrees of freedom and Cholesky factors of the scale matrices V.
    """
    half1, half2 = 0.5 * n1, 0.5 * n2
    means = half2 * _shapes((n1 / n2).sqrt()[..., None, None] * l1, l2)
    steps = 0.5 * torch.arange(l1.shape[-1], dtype=n1.dtype, device=n1.device)
    return means + _degrees_gap(half1[..., None], half2[..., None], steps).sum(dim=-1)


def _degrees_gap(a: Tensor, b: Tensor, steps: Tensor) -> Tensor:
    """Of ln Γ(a − s) − a ln a + a."""
    a, b, steps = torch.broadcast_tensors(a, b, steps)

    def near(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return near_gap(a, b, lambda x: trigamma_excess(x - s) + s / (x * (x - s)))

    apart = lgamma_gap(a - steps, b - steps) - scaled_gap(a, b)
    close = (b - a).abs() <= _NEAR * torch.minimum(a - steps, b - steps)
    return computed_where(close, near, apart.clamp(min=0.0), a, b, steps)


def lkj(c1: Tensor, d1: Tensor, c2: Tensor, d2: Tensor) -> Tensor:
    """Bregman divergence of the log normaliser; Lewandowski, Kurowicka & Joe (2009), (16)."""
    del d2
    d = int(d1.flatten()[0])
    lows = 0.5 * torch.arange(d - 1, dtype=c1.dtype, device=c1.device)
    parts = lgamma_gap(c1[..., None] + lows, c2[..., None] + lows).sum(dim=-1)
    high = 0.5 * (d - 1)
    return (parts - (d - 1) * lgamma_gap(c1 + high, c2 + high)).clamp(min=0.0)


def _multinomial(p: Any, q: Any) -> Formula:
    """As many categorical draws."""
    one, count = among(p, q), p.total_count
    return replace(one, compute=lambda *given: count * one.compute(*given), applies=_same_count)


def as_normal(d: Any) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor; of independent normal coordinates too."""
    if isinstance(d, td.Independent):
        return d.base_dist.loc, d.base_dist.scale.diag_embed()
    if isinstance(d, td.LowRankMultivariateNormal):
        return d.loc, torch.linalg.cholesky(d.covariance_matrix.double())
    return d.loc, d.scale_tril


def _same_count(p: Any, q: Any) -> bool:
    return p.total_count == q.total_count


def _are_normal(*pair: Any) -> bool:
    """What is independent may be anything."""
    return all(
        type(d.base_dist) is td.Normal and d.reinterpreted_batch_ndims == 1
        for d in pair
        if isinstance(d, td.Independent)
    )


_NORMALS = (td.MultivariateNormal, td.LowRankMultivariateNormal, td.Independent)
FORMULAS = {
    **{
        (a, b): Formula(multivariate_normal, as_normal, events=2, applies=_are_normal)
        for a in _NORMALS
        for b in _NORMALS
        if (a, b) != (td.Independent, td.Independent)  # coordinate by coordinate
    },
    (td.Dirichlet, td.Dirichlet): Formula(dirichlet, lambda d: (d.concentration,), events=1),
    (td.Wishart, td.Wishart): Formula(wishart, lambda d: (d.df, d.scale_tril), events=2),
    (td.LKJCholesky, td.LKJCholesky): Formula(
        lkj, lambda d: (d.concentration, torch.tensor(d.dim)), events=2
    ),
    (td.Multinomial, td.Multinomial): _multinomial,
}

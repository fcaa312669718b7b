r"""Mixtures fitted to weighted draws, by expectation maximisation.

    r_ik ∝ N(z_i; μ_k, Σ_k),   μ_k = Σ_i w_i r_ik z_i / n_k,   n_k = Σ_i w_i r_ik

maximises E_p[log q] over mixtures q of equal shares, the divergence that asks for mass wherever
the posterior has some. The weights of few draws are tempered, w^β, so that enough of them count.

Cappé, Douc, Guillin, Marin & Robert (2008), Adaptive importance sampling in general mixture
classes, section 3; the start is that of k-means++, Arthur & Vassilvitskii (2007).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.linalg import cholesky_or_none, symmetric

_NUM_STEPS = 12
_PRIOR = 2.0  # effective draws a dimension that the common covariance counts for in each component
_BISECTIONS = 30
_MOST = 2**12  # draws that a mixture is fitted to


def tempered(log_weights: Float[Tensor, " s"], size: float) -> Float[Tensor, " s"]:
    """Weights w^β, normalised, of the largest β ≤ 1 that leaves `size` draws effective."""
    low, high = 0.0, 1.0
    if _effective(log_weights, 1.0) >= size:
        return log_weights.softmax(dim=0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(log_weights, middle) >= size else (low, middle)
    return (low * log_weights).softmax(dim=0)


def fitted_mixture(
    z: Float[Tensor, "s d"],
    weights: Float[Tensor, " s"],
    num_components: int,
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d d"]] | None:
    """Means and scales of a mixture of equal shares, or None where a covariance is singular.

    Args:
        z: Draws.
        weights: Of the draws, summing to one.
        num_components: k.
        generator: Of the start.
    """
    z, weights = _thinned(z, weights, generator)
    d = z.shape[1]
    mean = weights @ z
    centred = z - mean
    whole = cholesky_or_none(symmetric(centred.mT @ (centred * weights[:, None])))
    if whole is None:
        return None
    u = torch.linalg.solve_triangular(whole, centred.mT, upper=False).mT  # whitened
    size = float(1 / weights.square().sum())
    prior = min(0.5, _PRIOR * d * num_components / size)
    loc = _spread(u, weights, num_components, generator)
    eye = torch.eye(d, dtype=z.dtype, device=z.device)
    within = num_components ** (-2.0 / max(d, 2))
    covariance = (within * eye).expand(num_components, d, d)
    terms = _quadratic_terms(u)
    for _ in range(_NUM_STEPS):
        L, info = torch.linalg.cholesky_ex(covariance)
        if bool((info != 0).any()):
            return None
        r = (_coefficients(loc, L) @ terms).softmax(dim=0) * weights  # (k, s)
        n = r.sum(dim=1).clamp(min=1e-12)
        loc, own = _moments(r @ terms.mT / n[:, None], d)
        share = (prior / (num_components * n)).clamp(max=0.5)[:, None, None]
        covariance = (1 - share) * own + share * within * eye
    L, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        return None
    return mean + loc @ whole.mT, whole @ L


def _thinned(
    z: Float[Tensor, "s d"], weights: Float[Tensor, " s"], generator: torch.Generator
) -> tuple[Float[Tensor, "t d"], Float[Tensor, " t"]]:
    """At most some `_MOST` draws: each kept with probability min(1, its weight × that many).

    Weights are divided by the probability, so that sums keep their expectations, and draws with
    a large weight keep it.
    """
    if len(z) <= _MOST:
        return z, weights
    chance = (_MOST * weights).clamp(max=1.0)
    u = torch.rand(len(z), generator=generator, dtype=z.dtype, device=z.device)
    kept = (u < chance).nonzero()[:, 0]
    some = weights[kept] / chance[kept]
    return z[kept], some / some.sum()


def _effective(log_weights: Tensor, power: float) -> float:
    return float(1 / (power * log_weights).softmax(dim=0).square().sum())


def _pairs(d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(d, d, device=device)
    return rows, columns


def _quadratic_terms(u: Float[Tensor, "s d"]) -> Float[Tensor, "f s"]:
    """The products u_i u_j, the u_i and 1: a Gaussian's log density is linear in them."""
    rows, columns = _pairs(u.shape[1], u.device)
    v = u.mT.contiguous()
    return torch.cat([v[rows] * v[columns], v, torch.ones_like(v[:1])])


def _coefficients(loc: Float[Tensor, "k d"], L: Float[Tensor, "k d d"]) -> Float[Tensor, "k f"]:
    """Of the log densities, up to a constant."""
    rows, columns = _pairs(loc.shape[1], loc.device)
    precision = torch.cholesky_inverse(L)
    linear = (precision @ loc[..., None])[..., 0]
    log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    squares = precision[:, rows, columns] * torch.where(rows == columns, -0.5, -1.0)
    constant = -0.5 * (linear * loc).sum(dim=-1) - log_det
    return torch.cat([squares, linear, constant[:, None]], dim=1)


def _moments(
    terms: Float[Tensor, "k f"], d: int
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d d"]]:
    """Mean and covariance from the means of the quadratic terms.

    The difference of squares loses few digits here: in whitened coordinates centres are a few
    units from zero.
    """
    rows, columns = _pairs(d, terms.device)
    loc = terms[:, -d - 1 : -1]
    squares = terms.new_zeros(len(terms), d, d)
    squares[:, rows, columns] = squares[:, columns, rows] = terms[:, : len(rows)]
    return loc, squares - loc[:, :, None] * loc[:, None]


def _spread(
    u: Float[Tensor, "s d"], weights: Float[Tensor, " s"], k: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Draws far from each other, each taken with weight times squared distance to the others."""
    distance = u.new_ones(len(u))
    chosen: list[Tensor] = []
    for _ in range(k):
        odds = (weights * distance).clamp(min=0.0)
        index = torch.multinomial(odds / odds.sum(), 1, generator=generator)[0]
        chosen.append(u[index])
        gap = (u - u[index]).square().sum(dim=1)
        distance = gap if len(chosen) == 1 else torch.minimum(distance, gap)
    return torch.stack(chosen)

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
    s, d = z.shape
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
    for _ in range(_NUM_STEPS):
        L, info = torch.linalg.cholesky_ex(covariance)
        if bool((info != 0).any()):
            return None
        r = _log_parts(u, loc, L).softmax(dim=0) * weights  # (k, s)
        n = r.sum(dim=1).clamp(min=1e-12)
        loc = (r @ u) / n[:, None]
        apart = u - loc[:, None]
        own = apart.mT @ (apart * r[..., None]) / n[:, None, None]
        share = (prior / (num_components * n)).clamp(max=0.5)[:, None, None]
        covariance = symmetric((1 - share) * own + share * within * eye)
    L, info = torch.linalg.cholesky_ex(covariance)
    if bool((info != 0).any()):
        return None
    return mean + loc @ whole.mT, whole @ L


def _effective(log_weights: Tensor, power: float) -> float:
    return float(1 / (power * log_weights).softmax(dim=0).square().sum())


def _log_parts(
    u: Float[Tensor, "s d"], loc: Float[Tensor, "k d"], L: Float[Tensor, "k d d"]
) -> Float[Tensor, "k s"]:
    """Log densities up to a constant."""
    eps = torch.linalg.solve_triangular(L, (u - loc[:, None]).mT, upper=False)
    log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return -0.5 * eps.square().sum(dim=1) - log_det[:, None]


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

"""What the Gaussian guides share: densities, factors, and the fits to a given Gaussian.

The nearest member q of a family to p = N(loc, L Lᵀ) is the one of least KL(q‖p): by the precision
P = (L Lᵀ)⁻¹, independent coordinates have the standard deviations P_ii^(−1/2) (Bishop 2006,
Pattern recognition and machine learning, section 10.1.2).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def standard_log_prob(eps: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Log density of independent standard normals."""
    return -0.5 * (eps.square().sum(dim=-1) + eps.shape[-1] * LOG_2PI)


def log_det(scale_tril: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """Log |det| of a triangular matrix."""
    return scale_tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(dim=-1)


def whiten(
    scale_tril: Float[Tensor, "*fits d d"], centred: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch n d"]:
    """Rows of L⁻¹ x; entries of L above the diagonal do not count."""
    return torch.linalg.solve_triangular(scale_tril, centred.mT, upper=False).mT


def precision_root(scale_tril: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """L⁻¹, whose Gram matrix is the precision."""
    d = scale_tril.shape[-1]
    eye = torch.eye(d, dtype=scale_tril.dtype, device=scale_tril.device)
    return torch.linalg.solve_triangular(scale_tril, eye.expand_as(scale_tril), upper=False)


def components_log_prob(
    loc: Float[Tensor, "*fits k d"],
    scale_tril: Float[Tensor, "*fits k d d"],
    z: Float[Tensor, "*batch n d"],
) -> Float[Tensor, "*batch k n"]:
    """Log density of every row under each of k Gaussians, by one matrix product."""
    k, d = loc.shape[-2:]
    middle = loc.mean(dim=-2, keepdim=True)  # near the draws, so that differences keep digits
    root = precision_root(scale_tril)
    centre = (root @ (loc - middle)[..., None]).flatten(-3, -2)  # (*fits, k d, 1)
    white = root.flatten(-3, -2) @ (z - middle).mT - centre
    squares = white.square().unflatten(-2, (k, d)).sum(dim=-2)
    return -0.5 * (squares + d * LOG_2PI) - log_det(scale_tril)[..., None]


def conditional_sd(scale_tril: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d"]:
    """P_ii^(−1/2): the standard deviation of each coordinate given all others."""
    return precision_root(scale_tril).square().sum(dim=-2).rsqrt()


def lower_root(root: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d d"]:
    """The lower triangular L with L Lᵀ = S Sᵀ, its diagonal positive; S has at least d columns."""
    R = torch.linalg.qr(root.mT, mode="r").R
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(R.dtype)
    return (R * sign[..., None]).mT.tril()

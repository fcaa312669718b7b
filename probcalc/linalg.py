"""Small dense linear algebra that statistics needs and torch has no name for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def whitened(points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
    """Linear map of the points after which their mean square matrix is the identity.

    With fewer points than dimensions the columns are taken in groups of `n`, and each group
    becomes √n times an orthogonal matrix: every coordinate then has unit mean square, and so
    has every pair inside a group.
    """
    n, d = points.shape[-2:]
    if n >= d:
        # n I = RᵀR after the map; QR is stabler than the Cholesky factor of the Gram matrix
        q, r = torch.linalg.qr(points)
        return q * n**0.5 * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    groups = [whitened(points[..., i : i + n]) for i in range(0, d, n)]
    return torch.cat(groups, dim=-1)


def cholesky_or_none(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"] | None:
    """Lower Cholesky factor, or None where the matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    positive = bool(info == 0) and bool(factor.isfinite().all())
    return factor if positive else None


def symmetric(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Symmetric part."""
    return 0.5 * (matrix + matrix.mT)

r"""Multivariate Student t: tails heavy enough for importance ratios to stay bounded.

    z = loc + L ε sqrt((ν − 2)/χ²),   χ² = −2 Σ log u_i  over ν/2 uniforms

with covariance L Lᵀ. Even ν keeps the chi-squared variate in closed form, so the draw is a smooth
map of normal ones like that of any other guide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.full_rank import FullRank
from probcalc.inference.guides.gaussian import log_det, whiten

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class StudentT:
    """Correlated t; parameters `loc` ``(*batch, d)`` and `scale_tril` ``(*batch, d, d)``.

    Args:
        dof: Degrees of freedom ν, even and at least 4.
    """

    dof: int = 4

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If `dof` is odd or below 4.
        """
        if self.dof < 4 or self.dof % 2:
            raise ValueError(f"`StudentT(dof=...)` must be even and at least 4, got {self.dof}.")

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """As of the full-rank Gaussian."""
        return FullRank().init(target, generator)

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate, and ν/2 for the common chi-squared variate."""
        return dim + self.dof // 2

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n b"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        d = params["loc"].shape[-1]
        chi2 = -2 * _log_uniform(eps[..., d:]).sum(dim=-1)
        u = eps[..., :d] * ((self.dof - 2) / chi2).sqrt()[..., None]
        L = params["scale_tril"].tril()
        return params["loc"][..., None, :] + u @ L.mT, self._density(u, L)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        u = whiten(params["scale_tril"], z - params["loc"][..., None, :])
        return self._density(u, params["scale_tril"])

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance."""
        return FullRank().moments(params)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """The t of the same mean and covariance."""
        return {"loc": loc, "scale_tril": scale_tril}

    def _density(self, u: Tensor, scale_tril: Tensor) -> Tensor:
        nu, d = self.dof, u.shape[-1]
        constant = (
            math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - d / 2 * math.log((nu - 2) * math.pi)
        )
        tail = torch.log1p(u.square().sum(dim=-1) / (nu - 2))
        return constant - log_det(scale_tril)[..., None] - (nu + d) / 2 * tail


def _log_uniform(eps: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """Log Φ(ε), accurate in both tails; torch's `log_ndtr` has no batching rule."""
    negative = eps < 0
    tail = torch.special.ndtr(torch.where(negative, eps, -eps))
    return torch.where(negative, tail.log(), torch.log1p(-tail))

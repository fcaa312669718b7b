"""Full-rank Gaussian: z = loc + L ε with L lower triangular."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class FullRank:
    """Correlated normal; parameters `loc` ``(*batch, d)`` and `scale_tril` ``(*batch, d, d)``.

    Args:
        init_scale: Standard deviation to start from, in every direction.
    """

    init_scale: float = 0.1

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target, with the starting scale."""
        loc = target.starts(1, generator)[0]
        return {"loc": loc, "scale_tril": torch.diag(torch.full_like(loc, self.init_scale))}

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate."""
        return dim

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        z = params["loc"][..., None, :] + eps @ params["scale_tril"].mT
        return z, self._density(eps, params["scale_tril"])

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        centred = (z - params["loc"][..., None, :]).mT
        eps = torch.linalg.solve_triangular(params["scale_tril"], centred, upper=False).mT
        return self._density(eps, params["scale_tril"])

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance."""
        return params["loc"], params["scale_tril"] @ params["scale_tril"].mT

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Log |L| + d/2 (1 + log 2π)."""
        d = params["loc"].shape[-1]
        return _log_det(params["scale_tril"]) + 0.5 * d * (1 + _LOG_2PI)

    def _density(self, eps: Tensor, scale_tril: Tensor) -> Tensor:
        d = eps.shape[-1]
        quadratic = eps.square().sum(dim=-1) + d * _LOG_2PI
        return -0.5 * quadratic - _log_det(scale_tril)[..., None]


def _log_det(scale_tril: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    return scale_tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(dim=-1)

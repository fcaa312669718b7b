"""Full-rank Gaussian: z = loc + L ε with L lower triangular."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.gaussian import LOG_2PI, log_det, standard_log_prob, whiten

if TYPE_CHECKING:
    from probcalc.inference.target import Target


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
        L = params["scale_tril"].tril()  # a solver may fill what lies above the diagonal
        z = params["loc"][..., None, :] + eps @ L.mT
        return z, standard_log_prob(eps) - log_det(L)[..., None]

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        eps = whiten(params["scale_tril"], z - params["loc"][..., None, :])
        return standard_log_prob(eps) - log_det(params["scale_tril"])[..., None]

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance."""
        L = params["scale_tril"].tril()
        return params["loc"], L @ L.mT

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Log |L| + d/2 (1 + log 2π)."""
        d = params["loc"].shape[-1]
        return log_det(params["scale_tril"]) + 0.5 * d * (1 + LOG_2PI)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """The Gaussian itself."""
        return {"loc": loc, "scale_tril": scale_tril}

"""Mean-field Gaussian: z = loc + exp(log_scale) ∘ ε, every coordinate on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.gaussian import LOG_2PI, conditional_sd, standard_log_prob

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class MeanField:
    """Independent normals; parameters `loc` and `log_scale`, each ``(*batch, d)``.

    Args:
        init_log_scale: Log standard deviation to start from.
    """

    init_log_scale: float = -1.0

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target, with the starting scale."""
        loc = target.starts(1, generator)[0]
        return {"loc": loc, "log_scale": torch.full_like(loc, self.init_log_scale)}

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate."""
        return dim

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        loc, log_scale = params["loc"][..., None, :], params["log_scale"][..., None, :]
        z = loc + log_scale.exp() * eps
        return z, standard_log_prob(eps) - log_scale.sum(dim=-1)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        loc, log_scale = params["loc"][..., None, :], params["log_scale"][..., None, :]
        return standard_log_prob((z - loc) / log_scale.exp()) - log_scale.sum(dim=-1)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance."""
        return params["loc"], torch.diag_embed((2 * params["log_scale"]).exp())

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Σ log scale + d/2 (1 + log 2π)."""
        d = params["loc"].shape[-1]
        return params["log_scale"].sum(dim=-1) + 0.5 * d * (1 + LOG_2PI)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """Parameters of least KL(q‖p) for p = N(loc, L Lᵀ): the sd given all other coordinates."""
        return {"loc": loc, "log_scale": conditional_sd(scale_tril).log()}

"""Equal-weight mixture of full-rank Gaussians, its draws stratified by component."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.full_rank import FullRank

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class GaussianMixture:
    """Mixture for several modes; `loc` ``(*batch, k, d)``, `scale_tril` ``(*batch, k, d, d)``.

    Args:
        num_components: k, each of weight 1/k.
    """

    num_components: int = 2

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target for every component."""
        loc = target.starts(self.num_components, generator)
        return {"loc": loc, "scale_tril": torch.diag_embed(torch.full_like(loc, 0.1))}

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate; the component is not drawn but stratified."""
        return dim

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density; the first n/k draws come from the first component.

        Raises:
            ValueError: If n is no multiple of the number of components.
        """
        n, k = eps.shape[-2], self.num_components
        if n % k:
            raise ValueError(f"draws must be a multiple of the {k} components, got {n}.")
        strata = eps.unflatten(-2, (k, n // k))  # (*batch, k, n/k, d)
        z = params["loc"][..., None, :] + strata @ params["scale_tril"].mT
        z = z.flatten(-3, -2)
        return z, self.log_prob(params, z)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        return self.component_log_prob(params, z).logsumexp(dim=-2) - math.log(self.num_components)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance: that within the components and that between them."""
        mean = params["loc"].mean(dim=-2)
        within = (params["scale_tril"] @ params["scale_tril"].mT).mean(dim=-3)
        apart = params["loc"] - mean[..., None, :]
        return mean, within + apart.mT @ apart / self.num_components

    def component_log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch k n"]:
        """Log density of each component."""
        copies = z.unsqueeze(-3).expand(*z.shape[:-2], self.num_components, *z.shape[-2:])
        return FullRank().log_prob(params, copies)

"""Point estimate: every draw is the same point, the mode of the target when fitted by the ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class Delta:
    """All mass at `loc` ``(*batch, d)``, in the unconstrained space.

    It has no density in the sense of the other guides. By convention the density at the point
    counts as one and the entropy as zero, so that its ELBO is log p(loc), Jacobian included;
    importance weights of its draws mean nothing.
    """

    has_density: ClassVar[bool] = False

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target."""
        return {"loc": target.starts(1, generator)[0]}

    def base_dim(self, dim: int) -> int:
        """One number, which is not used."""
        return 1

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n 1"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """The point n times, and zeros."""
        loc = params["loc"][..., None, :]
        zeros = torch.zeros_like(eps[..., 0])
        return loc.expand(*eps.shape[:-1], loc.shape[-1]), zeros + 0.0 * loc[..., 0]

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Zero at the point, −∞ elsewhere."""
        there = (z == params["loc"][..., None, :]).all(dim=-1)
        return torch.where(there, 0.0, -torch.inf).to(z.dtype)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """The point, and a covariance of zeros."""
        return params["loc"], torch.diag_embed(torch.zeros_like(params["loc"]))

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Zero, by convention."""
        return 0.0 * params["loc"][..., 0]  # with a gradient, of zeros, for solvers

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """The mode of the Gaussian."""
        return {"loc": loc}

r"""A mixture of Gaussians with one Student t component, which bounds importance ratios.

    q = (1/(k+1)) [Σ_j N(μ_j, Σ_j) + t_ν(m, S)]

so that p/q ≤ (k+1) p/t everywhere: where the posterior's tails are those of an exponential or
lighter, the ratios are bounded whatever the Gaussians miss.

Owen & Zhou (2000), Safe and effective importance sampling, section 4 (defensive mixtures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.gaussian import components_log_prob
from probcalc.inference.guides.student_t import StudentT

if TYPE_CHECKING:
    from probcalc.inference.target import Target


@dataclass(frozen=True)
class DefensiveMixture:
    """Gaussians and one t, of equal shares, their draws stratified.

    Parameters: `loc` ``(*batch, k, d)`` and `scale_tril` ``(*batch, k, d, d)`` of the Gaussians,
    `tail_loc` ``(*batch, d)`` and `tail_scale_tril` ``(*batch, d, d)`` of the t, whose covariance
    is the scale times its transpose.

    Args:
        num_components: k, the number of Gaussians.
        dof: Degrees of freedom of the t, even and at least 4.
    """

    num_components: int = 1
    dof: int = 4

    @property
    def num_strata(self) -> int:
        """Draws come in multiples of this."""
        return self.num_components + 1

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """Every component at one start of the target."""
        loc = target.starts(1, generator)[0]
        return self.from_gaussian(loc, torch.diag(torch.full_like(loc, 0.1)))

    def base_dim(self, dim: int) -> int:
        """That of the t."""
        return StudentT(self.dof).base_dim(dim)

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n b"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density; the first n/(k+1) come from the first Gaussian.

        Raises:
            ValueError: If n is no multiple of the number of strata.
        """
        n, k = eps.shape[-2], self.num_strata
        if n % k:
            raise ValueError(f"draws must be a multiple of the {k} strata, got {n}.")
        d = params["tail_loc"].shape[-1]
        strata = eps.unflatten(-2, (k, n // k))
        own = strata[..., :-1, :, :d]
        z = params["loc"][..., None, :] + own @ params["scale_tril"].tril().mT
        tail = StudentT(self.dof).transform(_tail(params), strata[..., -1, :, :])[0]
        z = torch.cat([z, tail[..., None, :, :]], dim=-3).flatten(-3, -2)
        return z, self.log_prob(params, z)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        parts = self.component_log_prob(params, z)
        return parts.logsumexp(dim=-2) - math.log(self.num_strata)

    def component_log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch k n"]:
        """Log density of each component, the t last."""
        own = components_log_prob(params["loc"], params["scale_tril"], z)
        tail = StudentT(self.dof).log_prob(_tail(params), z)
        return torch.cat([own, tail[..., None, :]], dim=-2)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance: that within the components and that between them."""
        loc = torch.cat([params["loc"], params["tail_loc"][..., None, :]], dim=-2)
        scale = params["scale_tril"], params["tail_scale_tril"][..., None, :, :]
        L = torch.cat(scale, dim=-3).tril()
        mean = loc.mean(dim=-2)
        apart = loc - mean[..., None, :]
        return mean, (L @ L.mT).mean(dim=-3) + apart.mT @ apart / self.num_strata

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """Every component at the Gaussian."""
        k = self.num_components
        return {
            "loc": loc.unsqueeze(-2).repeat_interleave(k, dim=-2),
            "scale_tril": scale_tril.unsqueeze(-3).repeat_interleave(k, dim=-3),
            "tail_loc": loc,
            "tail_scale_tril": scale_tril,
        }


def _tail(params: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loc": params["tail_loc"], "scale_tril": params["tail_scale_tril"]}

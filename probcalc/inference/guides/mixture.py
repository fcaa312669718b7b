r"""Mixture of full-rank Gaussians, for several modes.

Draws are stratified by component: with equal weights n/k each, else n w_k each, the rounding
random (systematic sampling), so that plain averages over the draws are unbiased:

    row i of n comes from the component k with  w_1 + … + w_{k−1} <= (i + u)/n < w_1 + … + w_k

The allotment is no smooth function of the weights. They are held still under differentiation of
the draws, and found from weights of draws instead: w_k = Σ_i W_i r_ik with responsibilities r,
the step of expectation maximisation (Cappé et al. 2008, Adaptive importance sampling in general
mixture classes, section 3), or from evidences of modes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.gaussian import components_log_prob, lower_root

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_APART = 0.6  # largest offset of a component from a Gaussian's mean, in standard deviations


@dataclass(frozen=True)
class GaussianMixture:
    """Parameters `loc` ``(*batch, k, d)``, `scale_tril` ``(*batch, k, d, d)``, maybe `logits`.

    Args:
        num_components: k.
        weighted: Whether the weights differ: softmax of `logits` ``(*batch, k)``, of which draws
            have no derivative. False: all are 1/k.
    """

    num_components: int = 2
    weighted: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If `num_components` is below 1.
        """
        if self.num_components < 1:
            raise ValueError(
                f"`GaussianMixture(num_components=...)` must be >= 1, got {self.num_components}."
            )

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target for every component."""
        loc = target.starts(self.num_components, generator)
        return self._with_weights(loc, torch.diag_embed(torch.full_like(loc, 0.1)))

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate, and with weights one for the rounding of the allotment."""
        return dim + self.weighted

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n b"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density.

        The first n/k draws (n w_1 where `weighted`) come from the first component.

        Raises:
            ValueError: If weights are equal and n is no multiple of the number of components.
        """
        L = params["scale_tril"].tril()
        if self.weighted:
            return self._allotted(params, L, eps)
        n, k = eps.shape[-2], self.num_components
        if n % k:
            raise ValueError(f"draws must be a multiple of the {k} components, got {n}.")
        strata = eps.unflatten(-2, (k, n // k))  # (*batch, k, n/k, d)
        z = params["loc"][..., None, :] + strata @ L.mT
        z = z.flatten(-3, -2)
        return z, self.log_prob(params, z)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        parts = self.component_log_prob(params, z)
        if self.weighted and "logits" in params:
            log_weights = params["logits"].log_softmax(dim=-1)
            return (parts + log_weights[..., None]).logsumexp(dim=-2)
        return parts.logsumexp(dim=-2) - math.log(self.num_components)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance: that within the components and that between them."""
        w = self.weights(params)[..., None]  # (*batch, k, 1)
        L = params["scale_tril"].tril()
        mean = (w * params["loc"]).sum(dim=-2)
        within = (w[..., None] * (L @ L.mT)).sum(dim=-3)
        apart = params["loc"] - mean[..., None, :]
        return mean, within + apart.mT @ (w * apart)

    def weights(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch k"]:
        """Share of each component."""
        if self.weighted and "logits" in params:
            return params["logits"].softmax(dim=-1)
        return torch.full_like(params["loc"][..., 0], 1.0 / self.num_components)

    def reweighted(
        self,
        params: dict[str, Tensor],
        z: Float[Tensor, "*batch n d"],
        log_weights: Float[Tensor, "*batch n"],
    ) -> dict[str, Tensor]:
        """The same components, shares w_k = Σ_i W_i r_ik from weighted draws of the target.

        Raises:
            ValueError: If the mixture is one of equal weights.
        """
        if not self.weighted:
            raise ValueError("equal weights stay equal; use `GaussianMixture(k, weighted=True)`.")
        own = self.component_log_prob(params, z) + self.weights(params).log()[..., None]
        r = own.softmax(dim=-2)  # (*batch, k, n)
        shares = (r * log_weights.softmax(dim=-1)[..., None, :]).sum(dim=-1)
        return {**params, "logits": shares.log()}

    def component_log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch k n"]:
        """Log density of each component."""
        return components_log_prob(params["loc"], params["scale_tril"], z)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """Equal shares with the mean and covariance of N(loc, L Lᵀ).

        Components sit in ± pairs along the principal axes, the longest first, so that no two are
        the same; all have one covariance, smaller by what the offsets add.
        """
        L = scale_tril.tril()
        eigenvalues, V = torch.linalg.eigh(L @ L.mT)
        axes = V.flip(-1) * eigenvalues.flip(-1).clamp(min=0.0).sqrt()[..., None, :]
        offsets = torch.tensor(
            _offsets(self.num_components, loc.shape[-1]), dtype=loc.dtype, device=loc.device
        )
        left = 1 - offsets.square().mean(dim=0)
        within = lower_root(axes * left.sqrt())
        k = self.num_components
        return self._with_weights(
            loc[..., None, :] + offsets @ axes.mT,
            within[..., None, :, :].expand(*loc.shape[:-1], k, *within.shape[-2:]),
        )

    def _allotted(
        self, params: dict[str, Tensor], L: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        d, n = params["loc"].shape[-1], eps.shape[-2]
        u = torch.special.ndtr(eps[..., :1, d])  # one number rounds for all rows
        points = (torch.arange(n, dtype=eps.dtype, device=eps.device) + u) / n  # (*batch, n)
        held = {**params, "logits": self.weights(params).detach().log()}
        edges = self.weights(held).cumsum(dim=-1)[..., :-1]
        k = (points[..., None] >= edges[..., None, :]).sum(dim=-1)  # (*batch, n)
        share = (k[..., None] == torch.arange(self.num_components, device=k.device)).to(eps)
        steps = torch.einsum("...kst,...nt->...kns", L, eps[..., :d])
        z = (share.mT[..., None] * (params["loc"][..., None, :] + steps)).sum(dim=-3)
        return z, self.log_prob(held, z)

    def _with_weights(self, loc: Tensor, scale_tril: Tensor) -> dict[str, Tensor]:
        params = {"loc": loc, "scale_tril": scale_tril}
        return params | ({"logits": torch.zeros_like(loc[..., 0])} if self.weighted else {})


def _offsets(k: int, d: int) -> list[list[float]]:
    """Offsets of the components along the axes, of mean zero, in standard deviations."""
    pairs = k // 2
    rows = [[0.0] * d for _ in range(k)]  # an odd component stays in the middle
    for pair in range(pairs):
        axis, level = pair % d, pair // d
        levels = math.ceil((pairs - axis) / d)  # pairs that share this axis
        rows[2 * pair][axis] = _APART * (level + 1) / levels
        rows[2 * pair + 1][axis] = -rows[2 * pair][axis]
    return rows

r"""Low-rank Gaussian: z = loc + D ε + F η, with D diagonal and F of r columns.

    Σ = D² + F Fᵀ,   |Σ| = |D|² |C|,   C = I + F̃ᵀF̃,   F̃ = D⁻¹F
    xᵀ Σ⁻¹ x = |x̃ − F̃u|² + |u|²,   u = C⁻¹F̃ᵀx̃,   x̃ = D⁻¹x

Time and memory are O(d r): nothing of size d × d is formed. The sum of squares is Woodbury's
identity without its cancellation. Ong, Nott & Smith (2018), Gaussian variational approximation
with a factor covariance structure, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.inference.guides.gaussian import (
    LOG_2PI,
    conditional_sd,
    precision_root,
)

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_START = 0.1  # of the diagonal part: with no factor at all its gradient would be zero


@dataclass(frozen=True)
class LowRank:
    """Normal with parameters `loc`, `log_scale` ``(*batch, d)`` and `factor` ``(*batch, d, r)``.

    Args:
        rank: Columns r of the factor; at most d are used.
        init_log_scale: Log standard deviation of the diagonal part to start from.
    """

    rank: int = 8
    init_log_scale: float = -1.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If `rank` is below 1.
        """
        if self.rank < 1:
            raise ValueError(
                f"`LowRank(rank=...)` must be at least 1, got {self.rank}; "
                "without a factor it is `MeanField()`."
            )

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target, with the starting scale and a small random factor."""
        loc = target.starts(1, generator)[0]
        d, r = target.dim, self._rank(target.dim)
        log_scale = torch.full_like(loc, self.init_log_scale)
        device = generator.device
        noise = torch.randn((d, r), generator=generator, dtype=loc.dtype, device=device).to(loc)
        return {
            "loc": loc,
            "log_scale": log_scale,
            "factor": _START * r**-0.5 * log_scale.exp()[:, None] * noise,
        }

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate and one a column of the factor."""
        return dim + self._rank(dim)

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n b"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density."""
        d = params["loc"].shape[-1]
        scale, F = _scaled(params)
        x = eps[..., :d] + eps[..., d:] @ F.mT
        z = params["loc"][..., None, :] + scale[..., None, :] * x
        return z, self._density(params, x, F)

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        scale, F = _scaled(params)
        return self._density(params, (z - params["loc"][..., None, :]) / scale[..., None, :], F)

    def moments(
        self, params: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d d"]]:
        """Mean and covariance, the latter in full: O(d²)."""
        F = params["factor"]
        return params["loc"], torch.diag_embed((2 * params["log_scale"]).exp()) + F @ F.mT

    def entropy(self, params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
        """½ log |Σ| + d/2 (1 + log 2π)."""
        d = params["loc"].shape[-1]
        _, F = _scaled(params)
        return _log_root_det(params, _capacitance_root(F)) + 0.5 * d * (1 + LOG_2PI)

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """Parameters near N(loc, L Lᵀ), exact where r ≥ d − 1.

        With the diagonal's shape held at the conditional standard deviations, they are those of
        least KL(q‖p): in these units the precision has eigenvalues λ, the factor carries the r
        smallest, and the diagonal gets the inverse mean of the others.
        """
        d, r = loc.shape[-1], self._rank(loc.shape[-1])
        sd = conditional_sd(scale_tril)
        root = precision_root(scale_tril) * sd[..., None, :]
        eigenvalues, V = torch.linalg.eigh(root.mT @ root)  # ascending
        rest = eigenvalues[..., min(r, d - 1) :].mean(dim=-1, keepdim=True)
        extra = (1 / eigenvalues[..., :r] - 1 / rest).clamp(min=0.0)
        return {
            "loc": loc,
            "log_scale": sd.log() - 0.5 * rest.log(),
            "factor": sd[..., None] * V[..., :r] * extra.sqrt()[..., None, :],
        }

    def _rank(self, dim: int) -> int:
        return min(self.rank, dim)

    def _density(self, params: dict[str, Tensor], x: Tensor, F: Tensor) -> Tensor:
        root = _capacitance_root(F)
        u = torch.cholesky_solve((x @ F).mT, root).mT
        quadratic = (x - u @ F.mT).square().sum(dim=-1) + u.square().sum(dim=-1)
        constant = 0.5 * x.shape[-1] * LOG_2PI + _log_root_det(params, root)
        return -0.5 * quadratic - constant[..., None]


def _scaled(params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """D and D⁻¹F."""
    scale = params["log_scale"].exp()
    return scale, params["factor"] / scale[..., None]


def _capacitance_root(F: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch r r"]:
    eye = torch.eye(F.shape[-1], dtype=F.dtype, device=F.device)
    return torch.linalg.cholesky_ex(eye + F.mT @ F).L


def _log_root_det(params: dict[str, Tensor], root: Tensor) -> Float[Tensor, "*batch"]:
    diagonal = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return params["log_scale"].sum(dim=-1) + diagonal

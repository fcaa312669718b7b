"""Families of approximating distributions on the unconstrained space.

A guide holds settings only; its parameters are a flat dict of tensors that is passed in, so that
leading axes of the parameters are independent fits and draws can be held still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from probcalc.inference.guides.full_rank import FullRank
from probcalc.inference.guides.mean_field import MeanField
from probcalc.inference.guides.mixture import GaussianMixture
from probcalc.inference.guides.student_t import StudentT

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

GUIDES = {
    "mean_field": MeanField,
    "full_rank": FullRank,
    "gaussian_mixture": GaussianMixture,
    "student_t": StudentT,
}

__all__ = ["GUIDES", "FullRank", "GaussianMixture", "Guide", "MeanField", "StudentT"]


@runtime_checkable
class Guide(Protocol):
    """What every guide offers; `params` maps names to tensors ``(*batch, ...)``.

    A guide may also have ``entropy(params)``, its differential entropy in nats,
    ``moments(params)``, its mean ``(*batch, d)`` and covariance ``(*batch, d, d)``, and
    ``from_gaussian(loc, scale_tril)``, the parameters nearest to a Gaussian.
    """

    def init(self, target: object, generator: torch.Generator) -> dict[str, Tensor]:
        """Parameters to start from."""
        ...

    def base_dim(self, dim: int) -> int:
        """Length of one base draw."""
        ...

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n k"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Map standard normal base draws to draws of the guide and their log density."""
        ...

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density."""
        ...

"""Families of approximating distributions on the unconstrained space.

A guide holds settings only; its parameters are a flat dict of tensors that is passed in, so that
leading axes of the parameters are independent fits and draws can be held still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from probcalc.inference.guides.amortised import Amortised
from probcalc.inference.guides.defensive import DefensiveMixture
from probcalc.inference.guides.delta import Delta
from probcalc.inference.guides.flow import Flow
from probcalc.inference.guides.full_rank import FullRank
from probcalc.inference.guides.low_rank import LowRank
from probcalc.inference.guides.mean_field import MeanField
from probcalc.inference.guides.mixture import GaussianMixture
from probcalc.inference.guides.structured import Structured
from probcalc.inference.guides.student_t import StudentT

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

GUIDES = {
    "delta": Delta,
    "mean_field": MeanField,
    "low_rank": LowRank,
    "structured": Structured,
    "full_rank": FullRank,
    "gaussian_mixture": GaussianMixture,
    "defensive_mixture": DefensiveMixture,
    "student_t": StudentT,
    "flow": Flow,
}

__all__ = [
    "GUIDES",
    "Amortised",
    "DefensiveMixture",
    "Delta",
    "Flow",
    "FullRank",
    "GaussianMixture",
    "Guide",
    "LowRank",
    "MeanField",
    "Structured",
    "StudentT",
]


@runtime_checkable
class Guide(Protocol):
    """What every guide offers; `params` maps names to tensors ``(*batch, ...)``.

    A guide may also have ``entropy(params)``, its differential entropy in nats,
    ``moments(params)``, its mean ``(*batch, d)`` and covariance ``(*batch, d, d)``, and
    ``from_gaussian(loc, scale_tril)``, the parameters nearest to a Gaussian. Plain averages over
    the draws of `transform` are unbiased for every guide.
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

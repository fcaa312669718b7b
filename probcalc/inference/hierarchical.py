r"""The evidence lower bound of a chain of latents, term by term.

    p(x, z) = p(x|z_1) p(z_1|z_2) … p(z_L),   q(z|x) = q(z_L|x) … q(z_1|z_2, x)
    ELBO = E_q ln p(x|z_1) − Σ_l E_q KL(q(z_l|z_{l+1}, x) ‖ p(z_l|z_{l+1}))

A variational autoencoder has one level or a few, a diffusion model hundreds, of which a draw sees
one. The KL of a level is exact given the draws above it, which leaves less noise than ln q − ln p
at a draw. Sønderby et al. (2016), Ladder variational autoencoders, section 2; Kingma, Salimans,
Poole & Ho (2021), Variational diffusion models, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.divergence.gaussian import normal_kl
from probcalc.inference.guides.gaussian import standard_log_prob


@runtime_checkable
class Factors(Protocol):
    """Independent laws of the numbers of a level, such as `Normals`."""

    def draw(self, eps: Tensor) -> Tensor:
        """From standard normal numbers; shapes broadcast."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Of all numbers together."""
        ...

    def kl(self, other: Any) -> Tensor:
        """KL(self‖other), of all numbers together."""
        ...


@dataclass(frozen=True, eq=False)
class Normals:
    """Independent normals ``(*n, d)``, as networks give them.

    Args:
        loc: Means.
        log_scale: Log standard deviations.
    """

    loc: Tensor
    log_scale: Tensor

    def draw(self, eps: Float[Tensor, "*m d"]) -> Float[Tensor, "*n d"]:
        """From standard normal numbers; shapes broadcast."""
        return self.loc + self.log_scale.exp() * eps

    @property
    def mean(self) -> Tensor:
        """Means."""
        return self.loc

    def log_prob(self, z: Float[Tensor, "*m d"]) -> Float[Tensor, "*n"]:
        """Log density of all coordinates together."""
        eps = (z - self.loc) * (-self.log_scale).exp()
        return standard_log_prob(eps) - self.log_scale.sum(dim=-1)

    def kl_each(self, other: Normals) -> Float[Tensor, "*n d"]:
        """KL(self‖other) of every coordinate."""
        return normal_kl(self.loc, self.log_scale, other.loc, other.log_scale)

    def kl(self, other: Normals) -> Float[Tensor, "*n"]:
        """Summed over coordinates."""
        return self.kl_each(other).sum(dim=-1)


@dataclass(frozen=True, eq=False)
class Bound:
    """A bound of the log evidence of every row, in nats.

    Args:
        reconstruction: ln p(x|z_1), its negative the distortion.
        kl: Of every level, those next to the data first; level by row.
    """

    reconstruction: Float[Tensor, "*n"]
    kl: Float[Tensor, " l *n"]

    @property
    def elbo(self) -> Float[Tensor, "*n"]:
        """The evidence lower bound."""
        return self.reconstruction - self.rate

    @property
    def rate(self) -> Float[Tensor, "*n"]:
        """Nats that the latents carry about a row, all levels together."""
        return self.kl.sum(dim=0)

    def tempered(self, beta: Tensor | float, free_nats: float = 0.0) -> Float[Tensor, ""]:
        """Mean of what is maximised in training: the rate weighted, and free below a floor.

        A level whose mean KL is below `free_nats` costs that much and has no gradient. Higgins et
        al. (2017), beta-VAE; Kingma et al. (2016), Inverse autoregressive flow, appendix C.8.
        """
        rate = self.kl.flatten(1).mean(dim=1)
        if free_nats:
            rate = rate.clamp(min=free_nats)
        return self.reconstruction.mean() - beta * rate.sum()


def hierarchical_elbo(
    reconstruction: Float[Tensor, "*n"], levels: Sequence[tuple[Factors, Factors]]
) -> Bound:
    """The bound of a chain of levels.

    Args:
        reconstruction: ln p(x|z_1) at the draws.
        levels: q and p of every level given the draws above it, next to the data first.

    >>> q, p = Normals(torch.ones(3, 2), torch.zeros(3, 2)), Normals(*torch.zeros(2, 3, 2))
    >>> hierarchical_elbo(torch.zeros(3), [(q, p)]).elbo
    tensor([-1., -1., -1.])
    """
    kl = torch.stack([q.kl(p).expand_as(reconstruction) for q, p in levels])
    return Bound(reconstruction, kl)

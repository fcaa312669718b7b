r"""Normalising flow: z = loc + L f(ε), with f a neural spline flow near the identity.

    log q(z) = log N(ε; 0, I) − log |det ∂f/∂ε| − log |L|

The affine map carries location and scale, so that the flow works in whitened coordinates, where
its splines (the identity outside [−5, 5]) bend what is not Gaussian, and starts as the nearest
Gaussian exactly. Layers and networks are zuko's. Durkan, Bekasov, Murray & Papamakarios (2019),
Neural spline flows; Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP;
Kingma et al. (2016), Improved variational inference with inverse autoregressive flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc._random import draw_seed
from probcalc.inference.guides.flow_layers import Shape, identity_parameters, layers
from probcalc.inference.guides.functional import called
from probcalc.inference.guides.gaussian import (
    conditional_sd,
    log_det,
    standard_log_prob,
    whiten,
)

if TYPE_CHECKING:
    from probcalc.inference.target import Target

_PREFIX = "flow."
_FIXED_SEED = 0  # of the hidden layers where no generator is at hand; the flow is the identity


@dataclass(frozen=True)
class Flow:
    """Parameters `loc`, `scale_tril` (or `log_scale`), and `flow.…` of the networks.

    Args:
        num_layers: Transformations, each with a network of its own; coordinates change order
            between them.
        hidden: Widths of a network's hidden layers.
        bins: Of a spline; None: affine transformations, as in Real NVP.
        autoregressive: Each coordinate depends on all before it, not only those of the other
            half. More flexible; draws with their density still cost one pass, but `log_prob` of
            given points costs d.
        full_rank: Whether the affine map is triangular or diagonal.
        init_scale: Standard deviation to start from.
    """

    num_layers: int = 4
    hidden: tuple[int, ...] = (32, 32)
    bins: int | None = 8
    autoregressive: bool = False
    full_rank: bool = True
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        """Check the settings; lists, as from JSON, become tuples.

        Raises:
            ValueError: If a number of layers, widths or bins is too small.
        """
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name, least in (("num_layers", 1), ("bins", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`Flow({name}=...)` must be at least {least}, got {value}.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"`Flow(hidden=...)` must name at least one positive width, got {self.hidden}."
            )

    def init(self, target: Target, generator: torch.Generator) -> dict[str, Tensor]:
        """One start of the target with the starting scale, random networks of the identity."""
        loc = target.starts(1, generator)[0]
        scale = torch.full_like(loc, self.init_scale)
        affine = (
            {"scale_tril": torch.diag(scale)} if self.full_rank else {"log_scale": scale.log()}
        )
        return {"loc": loc, **affine, **self._identity(loc, draw_seed(generator))}

    def base_dim(self, dim: int) -> int:
        """One normal a coordinate."""
        return dim

    def transform(
        self, params: dict[str, Tensor], eps: Float[Tensor, "*batch n d"]
    ) -> tuple[Float[Tensor, "*batch n d"], Float[Tensor, "*batch n"]]:
        """Draws and their log density, in one pass."""
        u, log_slope = self._bent(params, eps, inverse=False)
        if self.full_rank:
            L = params["scale_tril"].tril()
            x, log_scale = u @ L.mT, log_det(L)
        else:
            x, log_scale = params["log_scale"].exp()[..., None, :] * u, _total(params)
        log_q = standard_log_prob(eps) - log_slope - log_scale[..., None]
        return params["loc"][..., None, :] + x, log_q

    def log_prob(
        self, params: dict[str, Tensor], z: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """Log density: two passes a layer, or d where autoregressive."""
        x = z - params["loc"][..., None, :]
        if self.full_rank:
            u, log_scale = whiten(params["scale_tril"], x), log_det(params["scale_tril"])
        else:
            u, log_scale = x / params["log_scale"].exp()[..., None, :], _total(params)
        eps, log_slope = self._bent(params, u, inverse=True)
        return standard_log_prob(eps) - log_slope - log_scale[..., None]

    def from_gaussian(
        self, loc: Float[Tensor, "*batch d"], scale_tril: Float[Tensor, "*batch d d"]
    ) -> dict[str, Tensor]:
        """The Gaussian itself, or where the affine map is diagonal the one of least KL(q‖p)."""
        name, value = (
            ("scale_tril", scale_tril)
            if self.full_rank
            else ("log_scale", conditional_sd(scale_tril).log())
        )
        return {"loc": loc, name: value, **self._identity(loc, _FIXED_SEED)}

    def _bent(
        self, params: dict[str, Tensor], x: Tensor, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """The map of ε, or its inverse, and in both cases log |det ∂f/∂ε|."""
        net = {k.removeprefix(_PREFIX): t for k, t in params.items() if k.startswith(_PREFIX)}
        return called(layers(self._shape(x.shape[-1]), x.device), net, x, inverse=inverse)

    def _shape(self, dim: int) -> Shape:
        return (dim, self.num_layers, self.hidden, self.bins, self.autoregressive)

    def _identity(self, loc: Float[Tensor, "*batch d"], seed: int) -> dict[str, Tensor]:
        net = identity_parameters(self._shape(loc.shape[-1]), seed)
        batch = loc.shape[:-1]
        return {
            _PREFIX + name: t.to(loc).expand(*batch, *t.shape).clone() for name, t in net.items()
        }


def _total(params: dict[str, Tensor]) -> Float[Tensor, "*batch"]:
    return params["log_scale"].sum(dim=-1)

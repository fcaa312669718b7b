r"""Priors of the top latents.

A prior is a module with `log_prob(z)`, `sample(n, generator)`, and `factors()` where it is made of
independent normals, so that the KL of a posterior to it is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc.inference.guides.flow_layers import identity_parameters, layers
from probcalc.inference.guides.functional import called
from probcalc.inference.guides.gaussian import standard_log_prob
from probcalc.inference.hierarchical import Normals

_ANY = 2**31


@dataclass(frozen=True)
class StandardNormal:
    """N(0, I), with nothing to train."""

    def build(self, dim: int, x: Tensor, seed: int) -> nn.Module:
        """The prior of latents of this length."""
        return _Normal(dim, trained=False)


@dataclass(frozen=True)
class LearnedNormal:
    """Independent normals, trained."""

    def build(self, dim: int, x: Tensor, seed: int) -> nn.Module:
        """The prior of latents of this length."""
        return _Normal(dim, trained=True)


@dataclass(frozen=True)
class VampPrior:
    """The posterior's mixture over trained pseudo-inputs (Tomczak & Welling 2018).

    Args:
        num_components: Pseudo-inputs; they start from random rows.
    """

    num_components: int = 100

    def build(self, dim: int, x: Tensor, seed: int) -> nn.Module:
        """The prior of latents of this length."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(x), (self.num_components,), generator=generator)
        return _Vamp(x[rows.to(x.device)])


@dataclass(frozen=True)
class FlowPrior:
    """A normalising flow of coupling layers (Chen et al. 2017, Variational lossy autoencoder).

    Args:
        num_layers: Transformations.
        hidden: Widths of their networks.
    """

    num_layers: int = 3
    hidden: tuple[int, ...] = (32, 32)

    def build(self, dim: int, x: Tensor, seed: int) -> nn.Module:
        """The prior of latents of this length."""
        return _Flow((dim, self.num_layers, self.hidden, None, dim < 2), seed)


class _Normal(nn.Module):
    def __init__(self, dim: int, trained: bool) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim), requires_grad=trained)
        self.log_scale = nn.Parameter(torch.zeros(dim), requires_grad=trained)

    def factors(self) -> Normals:
        return Normals(self.loc, self.log_scale)

    def log_prob(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        return self.factors().log_prob(z)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        return self.factors().draw(_noise(n, self.loc, generator))


class _Vamp(nn.Module):
    """`posterior` maps rows to the normals of the top latents; the network sets it."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        self.posterior: Any = None

    def log_prob(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        q = self.posterior(self.rows)
        return q.log_prob(z[..., None, :]).logsumexp(dim=-1) - math.log(len(self.rows))

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        q = self.posterior(self.rows)
        device = generator.device
        chosen = torch.randint(len(self.rows), (n,), generator=generator, device=device)
        picked = Normals(q.loc[chosen], q.log_scale[chosen])
        return picked.draw(_noise(n, q.loc[0], generator))


class _Flow(nn.Module):
    def __init__(self, shape: tuple, seed: int) -> None:
        super().__init__()
        self.shape = shape
        values = identity_parameters(shape, seed % _ANY)
        self.names = list(values)
        self.values = nn.ParameterList([nn.Parameter(v.clone()) for v in values.values()])

    def log_prob(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        flat = z.reshape(-1, z.shape[-1])
        eps, log_slope = self._map(flat, inverse=True)
        return (standard_log_prob(eps) - log_slope).reshape(z.shape[:-1])

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
        like = self.values[0].new_zeros(self.shape[0])
        return self._map(_noise(n, like, generator), inverse=False)[0]

    def _map(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        params = dict(zip(self.names, self.values, strict=True))
        return called(layers(self.shape, x.device), params, x, inverse=inverse)


def _noise(n: int, like: Float[Tensor, " d"], generator: torch.Generator) -> Float[Tensor, "n d"]:
    shape = (n, *like.shape)
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

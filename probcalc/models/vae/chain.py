"""The module that is trained: bodies, heads and priors of a chain of latents, and the decoder.

Latents have the shape ``(n, k, d)``, k draws for each of n rows. Of several levels the one next to
the data is the first; `z` of all levels is one vector in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcalc.inference.discrete import RelaxedDraws
from probcalc.inference.hierarchical import Bound, Factors, Normals, hierarchical_elbo
from probcalc.models.vae.latents import Discrete, NormalLatents
from probcalc.models.vae.likelihoods import Likelihood
from probcalc.models.vae.networks import with_condition

Level = tuple[Factors, Factors | None]  # q and p


@dataclass(frozen=True)
class Ladder:
    """q(z_l) weighs what the data say and the prior by their precisions (Sønderby et al. 2016)."""

    def width(self, features: int, below: int) -> int:
        """Inputs of the head."""
        return features

    def seen(self, head: nn.Module, h: Tensor) -> Tensor:
        """What can be told of a row before the draws above are known."""
        return head(h)

    def merged(self, head: nn.Module, seen: Tensor, above: Tensor, p: Normals) -> Normals:
        """The posterior of a level, given the draws above it."""
        e = _normals(seen)
        weight = torch.sigmoid(2 * (p.log_scale - e.log_scale))  # of the data
        log_precision = torch.logaddexp(-2 * e.log_scale, -2 * p.log_scale)
        return Normals(weight * e.loc + (1 - weight) * p.loc, -0.5 * log_precision)


@dataclass(frozen=True)
class TopDown:
    """q(z_l) from the data and the draw above, relative to the prior (Vahdat & Kautz 2020)."""

    def width(self, features: int, below: int) -> int:
        """Inputs of the head."""
        return features + below

    def seen(self, head: nn.Module, h: Tensor) -> Tensor:
        """What can be told of a row before the draws above are known."""
        return h

    def merged(self, head: nn.Module, seen: Tensor, above: Tensor, p: Normals) -> Normals:
        """The posterior of a level, given the draws above it."""
        h = seen.expand(*above.shape[:-1], -1)
        step = _normals(head(torch.cat([h, above], dim=-1)))
        loc = p.loc + p.log_scale.exp() * step.loc
        return Normals(loc, p.log_scale + step.log_scale)


class Chain(nn.Module):
    """q(z|x) and p(x, z).

    Args:
        bodies: From rows to features, and on from level to level.
        heads: From features to the posterior of each level; `nn.Identity` where a body gives it.
        downs: From the draws of a level to features for the one below.
        priors: From these to that level's prior.
        top: Prior of the last level.
        decoder: From the first level's draws to the likelihood's numbers.
        extra: The likelihood's own parameters.
        likelihood: Of pixels.
        merge: `Ladder()` or `TopDown()`.
        dims: Numbers of the latents of every level.
        latents: Of the last level.
    """

    beta: Tensor
    temperature: Tensor | None

    def __init__(
        self,
        bodies: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        downs: Sequence[nn.Module],
        priors: Sequence[nn.Module],
        top: nn.Module,
        decoder: nn.Module,
        extra: dict[str, Tensor],
        likelihood: Likelihood,
        merge: Any,
        dims: tuple[int, ...],
        latents: Any = NormalLatents(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.bodies, self.heads = nn.ModuleList(bodies), nn.ModuleList(heads)
        self.downs, self.priors = nn.ModuleList(downs), nn.ModuleList(priors)
        self.top, self.decoder = top, decoder
        self.extra = nn.ParameterDict({k: nn.Parameter(t.clone()) for k, t in extra.items()})
        self.likelihood, self.merge, self.dims = likelihood, merge, dims
        self.latents = latents
        self.register_buffer("beta", torch.ones(()))
        relaxes = isinstance(latents.gradient, RelaxedDraws)
        self.register_buffer("temperature", torch.ones(()) if relaxes else None)
        if hasattr(top, "posterior"):
            top.posterior = lambda rows: _normals(self.heads[-1](self._features(rows)[-1]))

    def evidence(
        self, x: Float[Tensor, "n p"], shape: tuple[int, ...], condition: Tensor | None
    ) -> dict[str, Tensor]:
        """What rows say of each level, ``(n, f)``; of the last its means and log scales."""
        rows = self.likelihood.encoded(x)
        rows = rows.reshape(len(x), *shape) if condition is None else rows
        *below, last = zip(
            self.heads, self._features(with_condition(rows, condition)), strict=True
        )
        seen = [self.merge.seen(head, h) for head, h in below]
        return {f"level{i}": t for i, t in enumerate([*seen, last[0](last[1])])}

    def draw(
        self, evidence: dict[str, Tensor], eps: Float[Tensor, "n k b"]
    ) -> tuple[Float[Tensor, "n k b"], list[Level]]:
        """Draws of all levels from normal numbers, and q and p of every level."""
        return self._down(evidence, eps, None)

    def posteriors(self, evidence: dict[str, Tensor], z: Float[Tensor, "n k b"]) -> list[Level]:
        """Q and p of every level at draws that are given."""
        return self._down(evidence, None, z)[1]

    def log_q(self, levels: list[Level], z: Tensor) -> Float[Tensor, "n k"]:
        """Log density of the posterior at draws."""
        parts = zip(levels, z.split(self.dims, dim=-1), strict=True)
        return sum(q.log_prob(part) for (q, _), part in parts)

    def log_prior(self, z: Float[Tensor, "n k b"]) -> Float[Tensor, "n k"]:
        """Log density of the prior at draws."""
        parts = z.split(self.dims, dim=-1)
        below = (
            self._prior(level, above)[1].log_prob(part)
            for level, (part, above) in enumerate(zip(parts, parts[1:], strict=False))
        )
        return self.top.log_prob(parts[-1]) + sum(below)

    def reconstruction(
        self, z: Float[Tensor, "n k b"], x: Float[Tensor, "n p"], condition: Tensor | None
    ) -> Float[Tensor, "n k"]:
        """Ln p(x|z_1)."""
        return self.likelihood.log_prob(self.outputs(z, condition), dict(self.extra), x[:, None])

    def outputs(
        self, z: Float[Tensor, "n k b"], condition: Tensor | None
    ) -> Float[Tensor, "n k o p"]:
        """What the decoder says of the first level's latents."""
        n, k, _ = z.shape
        first = z[..., : self.dims[0]].reshape(n * k, -1)
        if condition is not None:
            repeated = condition[:, None].expand(n, k, -1).reshape(n * k, -1)
            first = torch.cat([first, repeated], dim=1)
        return self.decoder(first).reshape(n, k, self.likelihood.num_outputs, -1)

    def bound(
        self,
        x: Float[Tensor, "n p"],
        evidence: dict[str, Tensor],
        eps: Float[Tensor, "n k b"],
        condition: Tensor | None,
    ) -> Bound:
        """The evidence lower bound of rows and draws; KLs are exact where priors are normal."""
        z, levels = self.draw(evidence, eps)
        if self.training and isinstance(self.latents, Discrete):
            at = lambda z: self.reconstruction(z, x, condition)  # noqa: E731
            top = levels[-1][0], eps, self.temperature
            reconstruction = self.latents.reconstruction(at, *top)
        else:
            reconstruction = self.reconstruction(z, x, condition)
        if levels[-1][1] is not None:
            return hierarchical_elbo(reconstruction, levels)
        q, last = levels[-1][0], z.split(self.dims, dim=-1)[-1]
        at_draws = q.log_prob(last) - self.top.log_prob(last)
        kl = [q.kl(p).expand_as(at_draws) for q, p in levels[:-1]]
        return Bound(reconstruction, torch.stack([*kl, at_draws]))

    def codes(self, evidence: dict[str, Tensor]) -> Any:
        """The posteriors of rows; of several levels along the path of their means."""
        if len(self.dims) == 1:
            return self.latents.q(evidence["level0"])
        n = len(evidence["level0"])
        path = self.draw(evidence, self.beta.new_zeros(n, 1, sum(self.dims)))[1]
        parts = [(q.loc.expand(n, 1, -1), q.log_scale.expand(n, 1, -1)) for q, _ in path]
        return Normals(*(torch.cat(t, dim=-1)[:, 0] for t in zip(*parts, strict=True)))

    def descend(self, top: Float[Tensor, "n d"], generator: torch.Generator) -> Tensor:
        """Draws of all levels, given those of the last, ``(n, 1, b)``."""
        parts = [top[:, None]]
        for level in reversed(range(len(self.dims) - 1)):
            p = self._prior(level, parts[0])[1]
            eps = torch.randn(
                p.loc.shape, generator=generator, dtype=p.loc.dtype, device=p.loc.device
            )
            parts.insert(0, p.draw(eps))
        return torch.cat(parts, dim=-1)

    def _features(self, rows: Tensor) -> list[Tensor]:
        features = []
        for body in self.bodies:
            rows = body(rows)
            features.append(rows)
        return features

    def _prior(self, level: int, above: Tensor) -> tuple[Tensor, Normals]:
        features = self.downs[level](above)
        return features, _normals(self.priors[level](features))

    def _down(
        self, evidence: dict[str, Tensor], eps: Tensor | None, z: Tensor | None
    ) -> tuple[Tensor, list[Level]]:
        """From the last level to the first: draws from `eps`, or the draws `z` as they are."""
        noise = None if eps is None else eps.split(self.dims, dim=-1)
        given = None if z is None else z.split(self.dims, dim=-1)
        parts: list[Tensor] = []
        levels: list[Level] = []
        for level in reversed(range(len(self.dims))):
            h = evidence[f"level{level}"][:, None]
            if not levels:
                q = self.latents.q(h)
                p = self.top.factors() if hasattr(self.top, "factors") else None
            else:
                features, p = self._prior(level, parts[0])
                q = self.merge.merged(self.heads[level], h, features, p)
            parts.insert(0, q.draw(noise[level]) if given is None else given[level])
            levels.insert(0, (q, p))
        return torch.cat(parts, dim=-1) if given is None else z, levels


class Held(nn.Module):
    """The guide's side of a chain, as objectives ask for it.

    Densities of several levels at parameters without derivatives hold the networks' weights too,
    so that an estimator which differentiates through the draws alone does so.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, evidence: dict[str, Tensor], z: Tensor) -> Tensor:
        """Log density of the posterior."""
        return self.chain.log_q(self.chain.posteriors(evidence, z), z)


@dataclass(frozen=True, eq=False)
class ChainGuide:
    """A chain's posterior as a guide whose parameters are the features of rows."""

    chain: Chain

    def transform(self, params: dict[str, Tensor], eps: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log density."""
        z, levels = self.chain.draw(params, eps)
        return z, self.chain.log_q(levels, z)

    def log_prob(self, params: dict[str, Tensor], z: Tensor) -> Tensor:
        """Log density."""
        module = Held(self.chain)
        if len(self.chain.dims) == 1 or any(t.requires_grad for t in params.values()):
            return module(params, z)
        weights = {name: p.detach() for name, p in module.named_parameters()}
        return torch.func.functional_call(module, weights, (params, z))


def _normals(numbers: Float[Tensor, "*n e"]) -> Normals:
    return Normals(*numbers.chunk(2, dim=-1))

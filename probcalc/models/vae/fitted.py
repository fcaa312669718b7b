"""A trained autoencoder: codes, pictures, likelihoods with error bars, and what its latents do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from probcalc.inference.hierarchical import Bound, Normals
from probcalc.models.fitted import Fitted, data_std_error, rows_at_a_time
from probcalc.models.vae.chain import Chain
from probcalc.models.vae.diagnosis import Diagnosis, diagnosis
from probcalc.models.vae.evidence import Weighed, joined
from probcalc.result import Estimate


class VAEFit(Fitted):
    """Bodies, heads, priors and decoder with their values."""

    @property
    def chain(self) -> Chain:
        """The network."""
        return self.network

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, " n *event"], condition: Tensor | None = None
    ) -> Distribution:
        """q(z|x), a normal ``(n, d)``; of several levels along the path of their means.

        Of discrete latents `Bernoulli`, or `OneHotCategorical` ``(n, d, k)``.
        """
        return self.chain.latents.distribution(self._codes(x, condition))

    @torch.no_grad()
    def decode(
        self, z: Float[Tensor, "n d"], condition: Tensor | None = None
    ) -> Float[Tensor, " n *event"]:
        """Mean pixels at latents of the first level, or of all."""
        return self._pixels(z[:, None], condition, None)

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, " n *event"], condition: Tensor | None = None
    ) -> Float[Tensor, " n *event"]:
        """Mean pixels at the mean codes, or the likeliest values of discrete ones."""
        return self.decode(self.chain.latents.code(self._codes(x, condition)), condition)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        condition: Tensor | None = None,
        mean: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " n *event"]:
        """New rows.

        Args:
            n: How many.
            condition: Of each, ``(n, c)``.
            mean: Whether pixels are means given the latents, which look smoother, not draws.
            generator: Source of randomness.
        """
        stream = self._stream(generator)
        z = self.chain.descend(self.chain.top.sample(n, stream), stream)
        return self._pixels(z, condition, None if mean else stream)

    @torch.no_grad()
    def elbo(
        self,
        x: Float[Tensor, " n *event"],
        *,
        condition: Tensor | None = None,
        num_draws: int = 32,
        confidence: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Mean evidence lower bound of these rows, in nats a row.

        The bar is that of the draws; `diagnostics["data_std_error"]` is the standard error of the
        mean over rows, for rows to come.
        """
        bounds = torch.cat([b.elbo for b in self._bounds(x, condition, num_draws, generator)])
        return _mean_of_rows(bounds, confidence, f"ELBO, {num_draws} draws a row")

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Float[Tensor, " n *event"],
        *,
        condition: Tensor | None = None,
        num_importance: int = 5_000,
        confidence: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Mean of ln p(x) over these rows, in nats a row, by importance weights.

        The estimate is low in the mean. How much is left is told from how much the last tenfold
        of draws brought, and from the tail of the weights: the bias falls like K^(1 − 1/k̂) for
        tails of index 1/k̂, like 1/K for light ones. The bar includes it.

        Args:
            x: Rows.
            condition: Of each.
            num_importance: Draws of q(z|x) for every row.
            confidence: Of the bar.
            generator: Source of randomness.

        Returns:
            Estimate, with `each` (rows), `ess` (effective draws of a row), `khat`, `curve` (the
            bound by number of draws) and `data_std_error` in its diagnostics. Flagged where the
            mean weight of many rows may not exist: the guide misses mass there.

        Raises:
            ValueError: If there are fewer than two draws.
        """
        if num_importance < 2:
            raise ValueError(f"`num_importance` must be at least 2, got {num_importance}.")
        stream, parts = self._stream(generator), []
        for rows, told in self._chunks(x, condition, self._numbers(max(1, num_importance // 50))):
            log_w = self._log_weights(rows, told, num_importance, stream)
            parts.append(Weighed.of(log_w))
        return joined(parts).estimate(confidence, num_importance)

    @torch.no_grad()
    def diagnose(
        self,
        x: Float[Tensor, " n *event"],
        *,
        condition: Tensor | None = None,
        num_draws: int = 16,
        generator: torch.Generator | None = None,
    ) -> Diagnosis:
        """What the latents carry: rate, distortion, active units, mutual information."""
        stream = self._stream(generator)
        bounds = list(self._bounds(x, condition, num_draws, stream))
        bound = Bound(
            torch.cat([b.reconstruction for b in bounds]), torch.cat([b.kl for b in bounds], dim=1)
        )
        q, units = self._codes(x, condition), []
        for part, told in self._chunks(x, condition, self._numbers(1)):
            evidence = self._evidence(part, told)
            eps = self._noise(len(part), num_draws, sum(self.chain.dims), stream=stream)
            units.append(self._unit_kl(evidence, eps))
        return diagnosis(bound, q, torch.cat(units).mean(dim=0), stream)

    def _unit_kl(self, evidence: dict[str, Tensor], eps: Tensor) -> Float[Tensor, "n b"]:
        """KL of every latent; of the last level to N(0, 1) where its prior is not normal."""
        units = []
        for q, p in self.chain.draw(evidence, eps)[1]:
            other = Normals(*torch.zeros_like(eps[:1, :1, :1]).expand(2, 1, 1)) if p is None else p
            units.append(q.kl_each(other).mean(dim=1))
        return torch.cat(units, dim=-1)

    def _numbers(self, num_draws: int) -> int:
        """What the decoder says of so many draws."""
        return num_draws * self.chain.likelihood.num_outputs * math.prod(self.event)

    def _codes(self, x: Tensor, condition: Tensor | None) -> Any:
        return self.chain.codes(self._evidence(self._rows(x), condition))

    def _evidence(self, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        told = None if condition is None else condition.to(x)
        return self.chain.evidence(x, self.event, told)

    def _bounds(
        self,
        x: Tensor,
        condition: Tensor | None,
        num_draws: int,
        generator: torch.Generator | None,
    ) -> Iterator[Bound]:
        stream = self._stream(generator)
        for rows, told in self._chunks(x, condition, self._numbers(num_draws)):
            seen = self.chain.likelihood.seen(rows, stream)
            eps = self._noise(len(rows), num_draws, sum(self.chain.dims), stream=stream)
            yield self.chain.bound(seen, self._evidence(seen, told), eps, told)

    def _log_weights(
        self, x: Tensor, condition: Tensor | None, num: int, stream: torch.Generator
    ) -> Float[Tensor, "n k"]:
        """Log weights of many draws, some of them at a time, in float64."""
        x = self.chain.likelihood.seen(x, stream)
        evidence = self._evidence(x, condition)
        size, parts = rows_at_a_time(self._numbers(len(x))), []
        for i in range(0, num, size):
            shape = (len(x), min(size, num - i), sum(self.chain.dims))
            eps = self._noise(*shape, stream=stream)
            z, levels = self.chain.draw(evidence, eps)
            log_p = self.chain.log_prior(z) + self.chain.reconstruction(z, x, condition)
            parts.append(log_p.double() - self.chain.log_q(levels, z).double())
        return torch.cat(parts, dim=1)

    def _pixels(
        self, z: Float[Tensor, "n 1 b"], condition: Tensor | None, stream: torch.Generator | None
    ) -> Float[Tensor, " n *event"]:
        told = None if condition is None else condition.to(z)
        outputs = self.chain.outputs(z, told)[:, 0]
        likelihood, extra = self.chain.likelihood, dict(self.chain.extra)
        flat = (
            likelihood.mean(outputs, extra)
            if stream is None
            else likelihood.sample(outputs, extra, stream)
        )
        return flat.reshape(len(z), *self.event)


def _mean_of_rows(bounds: Float[Tensor, "n k"], confidence: float, method: str) -> Estimate:
    """Mean over rows and draws; the draws of a row are replicates."""
    n, k = bounds.shape
    replicates = bounds.double().mean(dim=0)
    estimate = Estimate.from_replicates(
        replicates, confidence=confidence, num_evals=n * k, method=method
    )
    estimate.diagnostics["data_std_error"] = data_std_error(bounds.double().mean(dim=1))
    return estimate

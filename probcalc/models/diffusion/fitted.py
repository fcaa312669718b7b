"""A trained diffusion model: bounds with error bars, samples, and where in time the bits are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.models.diffusion.chain import DiffusionChain
from probcalc.models.diffusion.data import Levels
from probcalc.models.diffusion.sampling import Ancestral, Step
from probcalc.models.diffusion.schedules import low_discrepancy, signal_and_noise
from probcalc.models.fitted import Fitted, data_std_error
from probcalc.result import Estimate


class DiffusionFit(Fitted):
    """Denoiser and schedule with their values."""

    @property
    def chain(self) -> DiffusionChain:
        """The network."""
        return self.network

    @torch.no_grad()
    def elbo(
        self,
        x: Float[Tensor, " n *event"],
        *,
        condition: Tensor | None = None,
        num_draws: int = 64,
        confidence: float = 0.99,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Mean evidence lower bound of these rows, in nats a row.

        Args:
            x: Rows.
            condition: Of each.
            num_draws: Of time and noise for every row; one draw of all rows together is a
                replicate, its times spread evenly over the rows.
            confidence: Of the bar, which is that of the draws; `data_std_error` in the
                diagnostics is for rows to come.
            generator: Source of randomness.

        Raises:
            ValueError: If there are fewer than two draws.
        """
        if num_draws < 2:
            raise ValueError(f"`num_draws` must be at least 2 for an error bar, got {num_draws}.")
        stream, totals, each = self._stream(generator), [], torch.zeros(len(x)).double()
        for _ in range(num_draws):
            parts = [self._terms(*part, stream) for part in self._parts(x, condition)]
            rows = torch.cat([sum(p).double() for p in parts]).cpu()
            totals.append(-rows.mean())
            each -= rows / num_draws
        estimate = Estimate.from_replicates(
            torch.stack(totals),
            confidence=confidence,
            num_evals=num_draws * len(x),
            method=f"bound of the diffusion, {num_draws} draws a row",
        )
        estimate.diagnostics["data_std_error"] = data_std_error(each)
        return estimate

    def bits_per_dim(self, x: Float[Tensor, " n *event"], **settings: Any) -> Estimate:
        """Minus the bound in bits a pixel, an upper bound of the code length.

        Of levels 0 … V − 1 as they are; of real numbers it is a density and may be negative.

        Args:
            x: Rows.
            **settings: Of `elbo`.
        """
        found = self.elbo(x, **settings)
        unit = math.log(2) * math.prod(self.event)
        return Estimate(
            -found.value / unit,
            found.error / unit,
            std_error=None if found.std_error is None else found.std_error / unit,
            dof=found.dof,
            confidence=found.confidence,
            status=found.status,
            num_evals=found.num_evals,
            method=found.method,
            diagnostics={"data_std_error": found.diagnostics["data_std_error"] / unit},
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        num_steps: int = 100,
        method: Any = Ancestral(),  # noqa: B008 (frozen)
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " n *event"]:
        """New rows.

        Args:
            n: How many.
            num_steps: From noise to data, evenly in time.
            method: `Ancestral()`, `Deterministic()` or `Midpoint()`.
            condition: Of each, ``(n, c)``.
            generator: Source of randomness.

        Raises:
            ValueError: If there is no step.
        """
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")
        stream, like = self._stream(generator), self.chain.bias
        told = None if condition is None else condition.to(like)
        z = self._noise(n, math.prod(self.event), stream=stream)
        times = torch.linspace(0, 1, num_steps + 1, dtype=like.dtype, device=like.device)
        gammas = self.chain.gamma(times)[0]
        guess = lambda at, gamma: self.chain.guess(at, gamma, told)  # noqa: E731
        for i in reversed(range(num_steps)):
            ends = gammas[i].expand(n), gammas[i + 1].expand(n)
            z = method.step(guess, Step(z, *ends, stream))
        first = gammas[0].expand(n)
        if isinstance(self.chain.kind, Levels):  # the mode of p(x|z_0)
            best = self.chain.kind.log_masses(z, first).argmax(dim=-2)
            return best.to(like.dtype).reshape(n, *self.event)
        alpha, _ = signal_and_noise(first[:, None])
        return self.chain.kind.decoded(z / alpha).reshape(n, *self.event)

    @torch.no_grad()
    def loss_by_time(
        self,
        x: Float[Tensor, " n *event"],
        *,
        condition: Tensor | None = None,
        num_bins: int = 20,
        num_draws: int = 16,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Where in time the bound is lost: middles of bins, mean nats a row, standard errors."""
        stream, times, terms = self._stream(generator), [], []
        for _ in range(num_draws):
            for rows, told in self._parts(x, condition):
                coded = self.chain.kind.encoded(rows)
                t = low_discrepancy(len(rows), stream, coded)
                eps = self._noise(*coded.shape, stream=stream)
                times.append(t)
                terms.append(self.chain.diffusion(coded, t, eps, told))
        t, loss = torch.cat(times).double().cpu(), torch.cat(terms).double().cpu()
        bins = (t * num_bins).long().clamp(max=num_bins - 1)
        count = torch.zeros(num_bins).double().index_add(0, bins, torch.ones_like(loss))
        mean = torch.zeros(num_bins).double().index_add(0, bins, loss) / count
        away = torch.zeros(num_bins).double().index_add(0, bins, (loss - mean[bins]).square())
        middles = (torch.arange(num_bins).double() + 0.5) / num_bins
        return middles, mean, (away / (count - 1).clamp(min=1) / count).sqrt()

    def _terms(
        self, rows: Tensor, told: Tensor | None, stream: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Nats of each row: diffusion, prior, and minus the reconstruction."""
        x = self.chain.kind.encoded(rows)
        t = low_discrepancy(len(x), stream, x)
        # rows in random order, so that a row's time does not follow from its place
        order = torch.randperm(len(x), generator=stream, device=x.device)
        eps, noise = (self._noise(*x.shape, stream=stream) for _ in range(2))
        terms = self.chain.diffusion(x, t[order], eps, told, self.settings.num_steps)
        prior, reconstruction = self.chain.ends(rows, x, noise)
        return terms, prior, -reconstruction

    def _parts(
        self, x: Tensor, condition: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self._chunks(x, condition, self.chain.bias.numel())

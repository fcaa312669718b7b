r"""Variational diffusion models: a chain of latents between data and noise, trained by its bound.

The posterior of the chain is fixed, q(z_t|x) = N(α x, σ²); what is learned is the guess of x from
z_t, and where wanted how fast noise grows. Bounds are those of `inference.hierarchical`, with one
level drawn a row and step. Ho, Jain & Abbeel (2020), Denoising diffusion probabilistic models;
Kingma, Salimans, Poole & Ho (2021), Variational diffusion models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probcalc.models.diffusion.chain import DiffusionChain
from probcalc.models.diffusion.data import Kind, Levels
from probcalc.models.diffusion.denoisers import LevelLogits, ResidualPerceptron, Velocity
from probcalc.models.diffusion.fitted import DiffusionFit
from probcalc.models.diffusion.schedules import LinearSchedule, low_discrepancy
from probcalc.models.fitted import Generative
from probcalc.models.rows import seeded
from probcalc.training.parallel import rows_randn

_LEAST = 0.5  # observations added to the count of every level


@dataclass(frozen=True, eq=False)
class Diffusion(Generative[DiffusionFit]):
    """Settings of the model.

    Trained by Adam at 1e-3 falling along a cosine, in batches of 128 and 100 epochs, with moving
    averages of the weights at 0.995, unless `fit` is told otherwise.

    Args:
        kind: `Levels(v)` for whole numbers below v, `Real()` for numbers of unit variance.
        network: Of the denoiser.
        prediction: What it predicts; None: `LevelLogits()` for levels, `Velocity()` for numbers.
        schedule: `LinearSchedule()` or `LearnedSchedule()` of the noise.
        num_steps: Of the chain; None for continuous time, whose bound is the tightest.

    >>> x = torch.randint(2, (200, 4), generator=torch.Generator().manual_seed(0)).float()
    >>> x[:, 2:] = x[:, :2]  # two bits, twice
    >>> seed = torch.Generator().manual_seed(1)
    >>> fit = Diffusion(Levels(2)).fit(x, max_steps=300, generator=seed)
    >>> float(fit.bits_per_dim(x, generator=seed).value) < 0.75  # without the copies it is 1
    True
    """

    kind: Kind
    network: Any = ResidualPerceptron()  # noqa: RUF009 (frozen)
    prediction: Any = None
    schedule: Any = LinearSchedule()  # noqa: RUF009
    num_steps: int | None = None

    answer, sample, rate = DiffusionFit, "bias", 1e-3
    training = {"batch_size": 128, "max_epochs": 100, "ema": 0.995}  # noqa: RUF012 (read only)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If the number of steps is not positive, or the prediction does not fit.
        """
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, got {self.num_steps}.")
        self._prediction.num_outputs(self.kind)

    @property
    def _prediction(self) -> Any:
        if self.prediction is not None:
            return self.prediction
        return LevelLogits() if isinstance(self.kind, Levels) else Velocity()

    @property
    def kind_of_rows(self) -> Kind:
        """What diffuses."""
        return self.kind

    def _loss(
        self, event: tuple[int, ...]
    ) -> tuple[Callable[..., Any], dict[str, Callable[[int], float]]]:
        """Nats a row, and its three parts."""

        def loss(chain: DiffusionChain, batch: Any, generator: torch.Generator) -> Any:
            rows, condition = batch if isinstance(batch, tuple) else (batch, None)
            rows = rows.flatten(1)
            x, shape = self.kind.encoded(rows), rows.shape
            t = low_discrepancy(len(x), generator, x)
            eps = rows_randn(*shape, generator=generator, like=x)
            terms = chain.diffusion(x, t, eps, condition, self.num_steps)
            with torch.no_grad():
                noise = rows_randn(*shape, generator=generator, like=x)
                prior, reconstruction = (part.mean() for part in chain.ends(rows, x, noise))
            total = terms.mean() + prior - reconstruction
            metrics = {
                "diffusion": terms.detach().mean(),
                "prior": prior,
                "reconstruction": -reconstruction,
            }
            return total, metrics

        return loss, {}

    def _built(self, x: Tensor, condition: int, seed: int) -> DiffusionChain:
        pixels = math.prod(x.shape[1:])
        k = self._prediction.num_outputs(self.kind)
        bias = torch.zeros(k, pixels)
        if isinstance(self._prediction, LevelLogits):  # the shares of the levels, pixel by pixel
            counts = one_hot(x.flatten(1).long(), k).sum(dim=0).mT
            bias = ((counts + _LEAST) / (len(x) + k * _LEAST)).log().contiguous()

        def build() -> DiffusionChain:
            network = self.network.build(pixels, k, condition)
            gamma = self.schedule.build()
            return DiffusionChain(network, gamma, self._prediction, self.kind, bias)

        return seeded(build, seed).to(x.device, x.dtype)

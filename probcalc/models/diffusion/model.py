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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probcalc._random import child, draw_seed
from probcalc.models.diffusion.chain import DiffusionChain
from probcalc.models.diffusion.data import Kind, Levels
from probcalc.models.diffusion.denoisers import LevelLogits, ResidualPerceptron, Velocity
from probcalc.models.diffusion.fitted import DiffusionFit
from probcalc.models.diffusion.schedules import LinearSchedule, low_discrepancy
from probcalc.models.rows import checked, joined, loaded, seeded
from probcalc.optimization.first_order import Adam
from probcalc.optimization.schedule import CosineSchedule
from probcalc.training.loop import train
from probcalc.training.parallel import rows_randn

_BATCH, _EPOCHS, _EMA = 128, 100, 0.995
_LEAST = 0.5  # observations added to the count of every level


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Settings of the model.

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

    def fit(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        validation: Tensor | tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> DiffusionFit:
        """Train on rows.

        Args:
            x: Shape ``(n, *event)``.
            condition: Shape ``(n, c)``: what the denoiser is told of every row.
            validation: Other rows, or rows and their conditions, watched every epoch.
            generator: Source of the start, the order of rows and the noise.
            **settings: Of `train`; by default Adam at 1e-3 falling along a cosine, batches of
                128, 100 epochs, and moving averages of the weights at 0.995.

        Raises:
            ValueError: If the data are not of that kind, or shapes do not match.
        """
        x = checked("x", x, self.kind)
        seed = draw_seed(generator)
        width = 0 if condition is None else condition.shape[1]
        chain = self._built(x, width, seed)
        chosen = self._settings(len(x), settings)
        if validation is not None:
            rows = validation if isinstance(validation, tuple) else (validation,)
            checked("validation", rows[0], self.kind)
            chosen["validation"] = joined(*rows)
        data = joined(x, condition)
        result = train(self._loss(), chain, data, generator=child(seed, 1), **chosen)
        if result.averaged is not None:
            chain.load_state_dict({**chain.state_dict(), **result.averaged})
        fitted = chain.eval().requires_grad_(False)
        return DiffusionFit(fitted, tuple(x.shape[1:]), self.num_steps, result, len(x), width)

    def load(self, path: Path | str) -> DiffusionFit:
        """What `DiffusionFit.save` wrote of a model with these settings.

        Raises:
            CheckpointError: If the file is damaged, or no file of ours.
            ValueError: If it is of other settings.
        """
        build = lambda example, condition: self._built(example, condition, seed=0)  # noqa: E731
        chain, record = loaded(path, "bias", build)
        fitted = chain.eval().requires_grad_(False)
        about = None, record["num_rows"], record["condition"]
        return DiffusionFit(fitted, tuple(record["event"]), self.num_steps, *about)

    def _settings(self, n: int, given: dict[str, Any]) -> dict[str, Any]:
        chosen = {"batch_size": _BATCH, "ema": _EMA, **given}
        if not chosen.keys() & {"max_epochs", "max_steps"}:
            chosen["max_epochs"] = _EPOCHS
        if not chosen.keys() & {"optimizer", "schedule"}:
            size = min(chosen["batch_size"] or n, n)
            steps = chosen.get("max_steps") or chosen["max_epochs"] * math.ceil(n / size)
            chosen |= {"optimizer": Adam(1e-3), "schedule": CosineSchedule(max(2, steps))}
        return chosen

    def _loss(self) -> Callable[..., Any]:
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

        return loss

    def _built(self, x: Tensor, condition: int, seed: int) -> DiffusionChain:
        pixels = math.prod(x.shape[1:])
        k = self._prediction.num_outputs(self.kind)
        bias = torch.zeros(k, pixels)
        if isinstance(self._prediction, LevelLogits):  # the shares of the levels, pixel by pixel
            counts = one_hot(x.flatten(1).long(), k).sum(dim=0).mT
            bias = ((counts + _LEAST) / (len(x) + k * _LEAST)).log()

        def build() -> DiffusionChain:
            network = self.network.build(pixels, k, condition)
            gamma = self.schedule.build()
            return DiffusionChain(network, gamma, self._prediction, self.kind, bias)

        return seeded(build, seed).to(x.device, x.dtype)

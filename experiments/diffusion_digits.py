"""Digits of 8 × 8 pixels in 17 levels by a diffusion model, in bits a pixel with an error bar.

The bound of held-out images is to be at most 2.10 bits a pixel; pixels that know nothing of each
other cost 2.44, and a network that predicts the noise costs more than that. What brings it down is
the denoiser: it gives log prior weights of the levels, and the guess follows by Bayes' rule.
Data: Alpaydin & Kaynak (1998), 70 % of them to learn from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import probcalc as pc
from probcalc.experiment import require_positive
from probcalc.models.diffusion import Deterministic, Diffusion, Levels, ResidualPerceptron
from probcalc.reporting.generative_plots import plot_images, plot_loss_by_time, plot_training
from probcalc.reporting.study import Finding, Study, at_most

SIDE, LEVELS = 8, 17
LIMIT = 2.10


@dataclass(frozen=True)
class Config:
    """How the denoiser is built and trained.

    Args:
        epochs: Passes over the training images.
        width: Of the denoiser's layers.
        dropout: Share of its units that is left out in training.
        draws: Of time and noise for every held-out image.
    """

    epochs: int = 100
    width: int = 256
    dropout: float = 0.3
    draws: int = 256

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(self, "epochs", "width", "draws")


def data() -> tuple[Tensor, Tensor]:
    """Images to learn from, and images to judge by."""
    digits = load_digits()
    kept, held = train_test_split(
        range(len(digits.data)), test_size=0.3, random_state=0, stratify=digits.target
    )
    x = torch.tensor(digits.data, dtype=torch.float32).reshape(-1, SIDE, SIDE)
    return x[kept], x[held]


def run(
    config: Config,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    **_: Any,
) -> Study:
    """Train, bound the code length of the held-out images, and draw."""
    x, held = data()
    model = Diffusion(Levels(LEVELS), ResidualPerceptron(config.width, 2, dropout=config.dropout))
    fit = model.fit(
        x.to(device),
        max_epochs=config.epochs,
        optimizer=pc.Adam(2e-3),
        schedule=pc.CosineSchedule(config.epochs * math.ceil(len(x) / 128)),
        generator=generator,
    )
    found = fit.bits_per_dim(held, num_draws=config.draws, generator=generator)
    own = fit.bits_per_dim(x, num_draws=16, generator=generator)
    middles, loss, error = fit.loss_by_time(held, generator=generator)
    draw = {"num_steps": 200, "generator": generator}
    return Study(
        (
            at_most("bound of held-out images, bits a pixel", found, LIMIT),
            Finding("standard error over images", found.diagnostics["data_std_error"]),
            Finding("bound of the training images, bits a pixel", own),
            Finding("seconds of training", fit.training.history[-1]["seconds"]),
        ),
        {
            "samples": plot_images(fit.sample(60, **draw), title="samples", greatest=16.0),
            "flow": plot_images(
                fit.sample(60, method=Deterministic(), **draw),
                title="samples along the probability flow",
                greatest=16.0,
            ),
            "time": plot_loss_by_time(middles, loss, error),
            "training": plot_training(
                fit.training.history, {"loss": "−bound", "diffusion": "diffusion"}
            ),
        },
    )

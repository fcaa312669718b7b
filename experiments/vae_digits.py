"""Digits of 8 × 8 pixels by a variational autoencoder, its likelihood with an error bar.

1,797 handwritten digits (Alpaydin & Kaynak 1998), 70 % of them to learn from. As black and white
pixels the held-out images are to cost at most 17.75 nats, by 5,000 importance draws each, and
17.35 where the bound of eight draws is trained; as 17 levels at most 1.95 bits a pixel. Pixels
that know nothing of each other cost 25.1 nats and 2.44 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import probcalc as pc
from probcalc.experiment import require_positive
from probcalc.models.vae import VAE, Bernoulli, DiscretizedLogistic, Perceptron, VAEFit
from probcalc.reporting.autoencoder import autoencoder_figures
from probcalc.reporting.study import Finding, Study, at_most

SIDE, LEVELS = 8, 17
MODELS = {
    "binary": VAE(8, Bernoulli()),
    "iwae": VAE(8, Bernoulli(), objective=pc.ImportanceWeighted(8)),
    "levels": VAE(
        16,
        DiscretizedLogistic(LEVELS, shared_scale=True),
        Perceptron((128,), nn.SiLU),
        Perceptron((128,), nn.SiLU),
    ),
}
EPOCHS, RATES = {"binary": 500, "iwae": 450, "levels": 150}, {"levels": 2e-3}
BATCHES = {"levels": 64}
LIMITS = {"binary": 17.75, "iwae": 17.35, "levels": 1.95}


@dataclass(frozen=True)
class Config:
    """What is learned, and how long.

    Args:
        pixels: Black and white by the ELBO, by the bound of eight draws, or 17 levels.
        epochs: Passes over the training images; 0 for the usual number.
        draws: Importance draws of an image.
    """

    pixels: Literal["binary", "iwae", "levels"] = "binary"
    epochs: int = 0
    draws: int = 5_000

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.epochs < 0:
            raise ValueError(f"`--epochs` must be at least 0, got {self.epochs}.")
        require_positive(self, "draws")


def data(pixels: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images to learn from, images to judge by, and the digits of these."""
    digits = load_digits()
    kept, held, _, labels = train_test_split(
        range(len(digits.data)),
        digits.target,
        test_size=0.3,
        random_state=0,
        stratify=digits.target,
    )
    x = torch.tensor(digits.data, dtype=torch.float32).reshape(-1, SIDE, SIDE)
    x = x if pixels == "levels" else (x >= SIDE).float()
    return x[kept], x[held], torch.tensor(digits.target[held])


def run(
    config: Config,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    **_: Any,
) -> Study:
    """Train, judge on the held-out images, and draw."""
    x, held, labels = data(config.pixels)
    epochs, batch = config.epochs or EPOCHS[config.pixels], BATCHES.get(config.pixels, 128)
    steps = epochs * math.ceil(len(x) / batch)
    fit = MODELS[config.pixels].fit(
        x.to(device),
        batch_size=batch,
        max_epochs=epochs,
        optimizer=pc.Adam(RATES.get(config.pixels, 3e-3)),
        schedule=pc.CosineSchedule(steps),
        generator=generator,
    )
    found = fit.log_likelihood(held, num_importance=config.draws, generator=generator)
    greatest = float(LEVELS - 1) if config.pixels == "levels" else 1.0
    return Study(
        findings(fit, held, found, config),
        autoencoder_figures(fit, held, labels, greatest=greatest, generator=generator),
        (str(fit.diagnose(held, generator=generator)),),
    )


def findings(fit: VAEFit, held: Tensor, found: pc.Estimate, config: Config) -> tuple[Finding, ...]:
    """Nats or bits of the held-out images."""
    bound, scale, unit = fit.elbo(held), 1.0, "nats an image"
    if config.pixels == "levels":
        scale, unit = 1 / (SIDE * SIDE * math.log(2)), "bits a pixel"
    spread = found.diagnostics["data_std_error"] * scale
    name = f"−ln p of held-out images, {unit}"
    return (
        at_most(name, -found * scale, LIMITS[config.pixels]),
        Finding(f"standard error over images, {unit}", spread),
        Finding(f"−ELBO, {unit}", -bound * scale),
        Finding("effective draws of an image, median", float(found.diagnostics["ess"].median())),
        Finding("seconds of training", fit.training.history[-1]["seconds"]),
    )

"""Handwritten digits of 28 × 28 pixels by a variational autoencoder, as good as a loop by hand.

10,000 images of MNIST (LeCun et al. 1998), 8,000 to learn from. Grey pixels are probabilities, of
which every step draws black and white ones (Salakhutdinov & Murray 2008). One layer of 400 hidden
units on either side of 20 latents; by 1,000 importance draws each, the held-out images are to cost
at most half a nat more than with the same network trained by a loop written in torch, which comes
to 98.0 nats (`python -m benchmarks vae_mnist`). Pixels that know nothing of each other cost 206.8.

The images are read from `--data`, a folder of idx files; where it has none and torchvision is
installed, they are fetched to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import probcalc as pc
from probcalc.experiment import require_positive
from probcalc.models.idx import labelled_images
from probcalc.models.vae import VAE, Bernoulli, Perceptron, VAEFit
from probcalc.reporting.autoencoder import autoencoder_figures
from probcalc.reporting.study import Finding, Study, at_most

HIDDEN, LATENTS, BATCH, RATE, EPOCHS = 400, 20, 128, 1e-3, 100
NETWORK = Perceptron((HIDDEN,), nn.ReLU)
MODEL = VAE(LATENTS, Bernoulli(dynamic=True), NETWORK, NETWORK)
BY_HAND, MARGIN = 98.0, 0.5  # nats
FILES, FETCHED = "t10k", Path("MNIST", "raw")  # where torchvision puts them
KEPT, HELD, SHUFFLE = 8_000, 2_000, 0
SHOWN = 10  # latents of the traversal


@dataclass(frozen=True)
class Config:
    """What is learned from, and how long.

    Args:
        data: Folder of t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, packed by gzip or not.
        epochs: Passes over the training images.
        draws: Importance draws of an image.
    """

    data: str = "mnist"
    epochs: int = EPOCHS
    draws: int = 1_000

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(self, "epochs", "draws")


def data(folder: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images to learn from, images to judge by, and the digits of these."""
    x, digits = labelled_images(located(Path(folder)), FILES)
    if len(x) < KEPT + HELD:
        raise ValueError(f"{folder} must hold {KEPT + HELD:,} images, got {len(x):,}.")
    # the writers of the first half are neater
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SHUFFLE))
    kept, held = order[:KEPT], order[KEPT : KEPT + HELD]
    return x[kept], x[held], digits[held]


def located(folder: Path) -> Path:
    """The folder with the files, which torchvision fetches where it is installed."""
    for place in (folder, folder / FETCHED):
        if any(place.glob(f"{FILES}-*")):
            return place
    try:
        torchvision = import_module("torchvision.datasets")
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"the folder {folder} has no files {FILES}-*: give `--data` the folder of MNIST's idx "
            "files, or install torchvision, which fetches them."
        ) from error
    try:
        torchvision.MNIST(folder, train=False, download=True)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"torchvision could not fetch MNIST ({error}): give `--data` the folder of its idx "
            "files."
        ) from error
    return folder / FETCHED


def run(
    config: Config,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    **_: Any,
) -> Study:
    """Train, judge on the held-out images, and draw."""
    x, held, labels = data(config.data)
    steps = config.epochs * -(-len(x) // BATCH)
    fit = MODEL.fit(
        x.to(device),
        batch_size=BATCH,
        max_epochs=config.epochs,
        optimizer=pc.Adam(RATE),
        schedule=pc.CosineSchedule(steps),
        generator=generator,
    )
    found = fit.log_likelihood(held, num_importance=config.draws, generator=generator)
    return Study(
        findings(fit, x, held, found, generator),
        autoencoder_figures(fit, held, labels, num_latents=SHOWN, generator=generator),
        (str(fit.diagnose(held, generator=generator)),),
    )


def findings(
    fit: VAEFit,
    x: Tensor,
    held: Tensor,
    found: pc.Estimate,
    generator: torch.Generator | None,
) -> tuple[Finding, ...]:
    """Nats of the held-out images, and of those that were learned from."""
    said = found.diagnostics
    return (
        at_most("−ln p of held-out images, nats an image", -found, BY_HAND + MARGIN),
        Finding("standard error over images", said["data_std_error"]),
        Finding("−ELBO of held-out images", -fit.elbo(held, generator=generator)),
        Finding("−ELBO of the training images", -fit.elbo(x, num_draws=4, generator=generator)),
        Finding("effective draws of an image, median", float(said["ess"].median())),
        Finding("seconds of training", fit.training.history[-1]["seconds"]),
    )

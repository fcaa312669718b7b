"""Eight narrow normals on a ring by a GAN: every mode found, most samples inside one.

Modes of standard deviation 0.02 lie on a circle of radius 2; a mode counts where one of 2,500
samples is within three standard deviations of it, and such samples are of high quality. Without
the penalty on the critic's slope a generator circles between a few modes. Protocol: Srivastava et
al. (2017), VEEGAN; Lin, Khetan, Fanti & Oh (2018), PacGAN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probcalc.experiment import require_positive
from probcalc.models.gan import GAN
from probcalc.reporting.generative_plots import plot_points, plot_training
from probcalc.reporting.study import Finding, Study, at_least

MODES, RADIUS, WIDTH = 8, 2.0, 0.02
DRAWS, REACH = 2_500, 3.0


@dataclass(frozen=True)
class Config:
    """How the two players are trained.

    Args:
        rounds: Steps of each player.
        penalty: Of the critic's squared slope at data.
        width: Of the layers of both networks.
    """

    rounds: int = 6_000
    penalty: float = 0.1
    width: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(self, "rounds", "width")
        if not self.penalty >= 0:
            raise ValueError(f"`--penalty` must be at least 0, got {self.penalty}.")


def centres() -> Tensor:
    """Of the modes."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def data(n: int, generator: torch.Generator | None) -> Tensor:
    """Points on the ring."""
    mode = torch.randint(MODES, (n,), generator=generator)
    return centres()[mode] + WIDTH * torch.randn(n, 2, generator=generator)


def run(
    config: Config,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    **_: Any,
) -> Study:
    """Train, and count modes and samples near them."""
    x = data(20_000, generator)
    model = GAN(2, (config.width, config.width), penalty=config.penalty)
    fit = model.fit(x.to(device), num_rounds=config.rounds, generator=generator)
    draws = fit.sample(DRAWS, generator=generator).cpu()
    distance = torch.cdist(draws, centres())
    near = distance.min(dim=1).values <= REACH * WIDTH
    modes = distance.argmin(dim=1)[near].unique().numel()
    return Study(
        (
            at_least("modes found, of 8", float(modes), MODES),
            at_least("samples of high quality, per cent", 100 * float(near.float().mean()), 55.0),
            Finding("Jensen-Shannon bound, nats", fit.divergence(data(5_000, generator))),
            Finding("seconds of training", fit.training.history[-1]["seconds"]),
        ),
        {
            "samples": plot_points(data(DRAWS, generator), draws),
            "training": plot_training(
                fit.training.history,
                {"critic": "Jensen-Shannon bound", "generator": "generator's loss"},
            ),
        },
    )

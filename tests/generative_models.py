"""Small generative models, each with rows and a fit of few steps, for tests that all must pass.

As a program, `generative_models.py NAME FOLDER KILLS SEED` trains one with a checkpoint at every
step, in children that are killed at random times, and reads what each leaves behind.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import probcalc as pc
from probcalc._random import forked
from probcalc.models.diffusion import Diffusion, Levels, ResidualPerceptron
from probcalc.models.gan import GAN
from probcalc.models.vae import VAE, BernoulliLatents, Perceptron, TopDown, VampPrior
from probcalc.training.checkpoint import load_checkpoint

SMALL = Perceptron((8,))


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def bits(n: int = 60) -> Tensor:
    x = (torch.rand(n, 6, generator=seed(1)) < 0.5).float()
    x[:, 3:] = x[:, :3]
    return x.reshape(n, 2, 3)


class Breaks(nn.Module):
    """As given, but for one call in training, which gives NaN."""

    def __init__(self, inner: nn.Module, call: int) -> None:
        super().__init__()
        self.inner, self.call = inner, call
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *inputs: Any) -> Tensor:
        out = self.inner(*inputs)
        if self.training:
            self.calls += 1
            if int(self.calls) == self.call:
                out = out * torch.nan
        return out


@dataclass(frozen=True)
class BreakingNetwork:
    """A denoiser that breaks."""

    call: int

    def build(self, *about: int) -> nn.Module:
        return Breaks(ResidualPerceptron(8, 1).build(*about), self.call)


def broken_vae(call: int) -> VAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh())
    return VAE(2, encoder=Breaks(encoder, call), decoder=SMALL)


def broken_gan(call: int) -> GAN:
    """The generator is called once in every step."""
    return GAN(2, (8,), generator=Breaks(nn.Linear(2, 6), call))


@dataclass(frozen=True)
class Subject:
    """A model, its rows, and the same model with a call that fails."""

    model: Any
    rows: Tensor
    broken: Callable[[int], Any]

    def fit(self, steps: int, **settings: Any) -> Any:
        """Train for so many steps, whatever they are called."""
        length = (
            {"num_rounds": steps // 2} if isinstance(self.model, GAN) else {"max_steps": steps}
        )
        chosen = {"batch_size": 16, "optimizer": pc.Adam(1e-2), "progress": False, **settings}
        return self.model.fit(self.rows, generator=seed(), **length, **chosen)

    def broken_at(self, call: int) -> Subject:
        """The same with a failing call."""
        with forked(0):  # modules of its own start from torch's generator
            return replace(self, model=self.broken(call))


SUBJECTS: dict[str, Subject] = {
    "VAE": Subject(VAE(2, encoder=SMALL, decoder=SMALL), bits(), broken_vae),
    "VAE of two levels": Subject(
        VAE((3, 2), encoder=SMALL, decoder=SMALL, merge=TopDown(), prior=VampPrior(5)),
        bits(),
        broken_vae,
    ),
    "VAE with bits": Subject(
        VAE(3, encoder=SMALL, decoder=SMALL, latents=BernoulliLatents()), bits(), broken_vae
    ),
    "Diffusion": Subject(
        Diffusion(Levels(2), ResidualPerceptron(8, 1)),
        bits(),
        lambda call: Diffusion(Levels(2), BreakingNetwork(call)),
    ),
    "GAN": Subject(GAN(2, (8,)), bits(), broken_gan),
}


def killed_again_and_again(name: str, folder: Path, kills: int, number: int) -> None:
    """Start, kill and read, so many times; ends at the first state that cannot be read."""
    picked, seen = random.Random(number), -1
    SUBJECTS[name].fit(2)  # what is imported and made once is there before the first child
    for _ in range(kills):
        child = os.fork()
        if not child:
            SUBJECTS[name].fit(10**6, folder=folder, save_every=1, resume=True)
            os._exit(1)
        time.sleep(picked.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if seen < 0 and not any(folder.glob("checkpoint-*.json")):
            continue
        step = load_checkpoint(folder)[1]["step"]
        if step < seen:
            raise SystemExit(f"step {step} after step {seen}")
        seen = step
    print(seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_again_and_again(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))

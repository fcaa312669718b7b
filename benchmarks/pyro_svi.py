"""Pyro's SVI as its users write it."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from benchmarks.harness import Contestant, Scores
from benchmarks.problems import Problem, errors_of_draws

NUM_STEPS = 2_000
LEARNING_RATE = 0.01
NUM_DRAWS = 200_000  # of the fitted guide, for its moments; not timed


def contestant(problem: Problem, device: str) -> Contestant:
    """AutoNormal, Trace_ELBO with one particle, Adam; float32, eager, parameters cleared."""
    data = tuple(t.to(device, torch.float32) for t in problem.data)
    return Contestant(
        f"Pyro SVI, AutoNormal, {NUM_STEPS:,} Adam steps",
        lambda seed: _fitted(problem.model, data, seed, device),
        state="eager",
        score=lambda guide: _scored(problem, guide, device),
        warmups=0,
    )


def _fitted(
    model: Callable[..., None], data: tuple[torch.Tensor, ...], seed: int, device: str
) -> AutoNormal:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    with torch.device(device):
        for _ in range(NUM_STEPS):
            svi.step(*data)
    return guide


def _scored(problem: Problem, guide: AutoNormal, device: str) -> Scores:
    with torch.no_grad(), torch.device(device), pyro.plate("draws", NUM_DRAWS, dim=-2):
        draws = guide()
    return {
        "gradient evaluations": NUM_STEPS,
        "batched calls": NUM_STEPS,
        **errors_of_draws(problem, {name: value.cpu() for name, value in draws.items()}),
    }

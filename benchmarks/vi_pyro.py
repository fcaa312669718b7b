"""Pyro's SVI on the posteriors of `vi`: two guides, two ways to go, of which the best counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_uniform
from pyro.optim import ClippedAdam
from torch import Tensor

from benchmarks.vi_models import Language
from benchmarks.vi_problems import Attempt, Posed

NUM_DRAWS = 100_000  # of a fitted guide, for its moments; not timed
DECAY = 0.01  # of the learning rate, over a run
# learning rate at the start, and steps
RUNS = ((0.05, 1_000), (0.1, 2_500))
LANGUAGE = Language(pyro, pyro.distributions, torch)


@dataclass(frozen=True)
class _Fitted:
    guide: Any
    data: tuple[Tensor, ...]
    num_steps: int


def attempts(posed: Posed, runs: Sequence[tuple[float, int]] = RUNS) -> list[Attempt]:
    """AutoNormal and AutoMultivariateNormal by `ClippedAdam`, Trace_ELBO with one particle."""
    model = posed.written.program(LANGUAGE)
    return [
        Attempt(
            f"{kind.__name__}, {steps:,} steps from {rate}",
            partial(_fit, model, posed.data, kind, rate, steps),
            partial(_score, posed),
        )
        for kind in (AutoNormal, AutoMultivariateNormal)
        for rate, steps in runs
    ]


@contextmanager
def float64() -> Iterator[None]:
    """Numbers written in a program are float64, as its data are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fit(
    model: Any, data: tuple[Tensor, ...], kind: type, rate: float, steps: int, seed: int
) -> _Fitted:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    with float64():
        guide = kind(model, init_loc_fn=init_to_uniform)
        optimizer = ClippedAdam({"lr": rate, "lrd": DECAY ** (1 / steps)})
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            svi.step(*data)
    return _Fitted(guide, data, steps)


def _score(posed: Posed, fitted: _Fitted) -> dict[str, float]:
    with torch.no_grad(), float64():
        draws = _draws(fitted.guide)
    return {"gradient evaluations": fitted.num_steps, **posed.errors_of_draws(draws)}


def _draws(guide: Any) -> dict[str, Tensor]:
    if isinstance(guide, AutoNormal):
        with pyro.plate("draws", NUM_DRAWS, dim=-2):
            return guide()
    latent = guide.get_posterior().sample((NUM_DRAWS,))
    biject = torch.distributions.biject_to
    unpacked = guide._unpack_latent(latent)  # the one way to many draws at once
    return {site["name"]: biject(site["fn"].support)(value) for site, value in unpacked}

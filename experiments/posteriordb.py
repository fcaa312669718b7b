"""Posteriors of posteriordb: right within 0.05 standard deviations, or flagged.

posteriordb (Magnusson et al., 2025) keeps models and data with draws of long, checked runs of
a sampler. Every posterior of a folder whose model is written here is fitted with the defaults,
and the means and standard deviations of all its parameters are held against those of the draws:
the worst mean is to be within 0.05 reference standard deviations, the worst standard deviation
within 0.05 of the log; what is not is to be flagged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import probcalc as pc
from probcalc.reporting.scoreboard import REFUSED, Score, Scoreboard, noise_floor, scored

from .posteriors import Problem, load, names


@dataclass(frozen=True)
class Config:
    """Which posteriors.

    Args:
        database: Folder of posteriordb, or the one that has its `posterior_database` in it.
        only: Words, separated by commas; posteriors with one of them in their name are fitted.
        seeds: Fits of each posterior, with the run's seed and those after it.
    """

    database: str = "posteriordb"
    only: str = ""
    seeds: int = 1

    def __post_init__(self) -> None:
        """Check the number of fits."""
        if self.seeds < 1:
            raise ValueError(f"`--seeds` must be at least 1, got {self.seeds}.")


def chosen(config: Config) -> tuple[str, ...]:
    """Names of the posteriors that are asked for."""
    database = Path(config.database)
    words = [word.strip() for word in config.only.split(",") if word.strip()]
    found = [n for n in names(database) if not words or any(word in n for word in words)]
    if not found:
        raise ValueError(
            f"`--only {config.only}` must name posteriors of the database; it has "
            f"{', '.join(names(database)) or 'none'}."
        )
    return tuple(found)


def run(
    config: Config,
    *,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Scoreboard:
    """Fit them all; `settings` go to `fit`."""
    first = 0 if generator is None else generator.initial_seed()
    scores = []
    for name in chosen(config):
        problem = load(Path(config.database), name)
        for seed in range(first, first + config.seeds):
            scores.append(score(problem, seed, dtype, settings))
    return Scoreboard(tuple(scores))


def score(problem: Problem, seed: int, dtype: torch.dtype, settings: dict[str, Any]) -> Score:
    """Fit one posterior; a fit that raises is a flag, and no crash of the others."""
    target = problem.target if dtype == torch.float64 else problem.target.to(dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    known = {"name": problem.name, "seed": seed}
    try:
        posterior = pc.fit(target, generator=generator, **settings)
        seconds = time.perf_counter() - started
        mean, std = problem.moments(posterior)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        floor = None if problem.reference is None else noise_floor(problem.reference)
        return Score(**known, dim=target.dim, verdict=REFUSED, reasons=(reason,), floor=floor)
    return scored(
        posterior, mean, std, problem.reference, problem.column_names, seconds=seconds, **known
    )

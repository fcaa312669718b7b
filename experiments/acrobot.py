"""Acrobot-v1 by a clipped policy gradient: a mean return of -90 within 500,000 steps.

Generalized advantages, normalised observations and four passes over every rollout, with a step
that falls to nothing; nine seeds of ten are to reach it over 100 episodes apart from training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from probcalc.experiment import require_positive
from probcalc.optimization.first_order import Adam
from probcalc.policy import GAE, Clipped, Evaluation, Reinforce
from probcalc.reporting.study import Study

from .policies import studied


@dataclass(frozen=True)
class Config:
    """What is trained, and how long.

    Args:
        env: Id of any installed environment.
        seeds: Runs.
        steps: Of the environment, all copies together, by which the step falls to nothing.
        wanted: Mean return.
        target: Of an evaluation, which ends the training.
        episodes: Of an evaluation.
    """

    env: str = "Acrobot-v1"
    seeds: int = 10
    steps: int = 200_000
    wanted: float = -90.0
    target: float = -84.0
    episodes: int = 100

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(self, "seeds", "steps", "episodes")


def trainer(env: str) -> Reinforce:
    """The settings."""
    return Reinforce(
        env,
        num_envs=16,
        rollout_steps=64,
        weights=GAE(0.94),
        update=Clipped(optimizer=Adam(2e-3)),
        entropy_bonus=0.01,
        normalizes_observations=True,
        clip_norm=0.5,
    )


def run(config: Config, *, generator: torch.Generator | None = None, **_: Any) -> Study:
    """Train with every seed."""
    return studied(
        trainer(config.env),
        Evaluation(20_000, num_episodes=config.episodes, target=config.target),
        seeds=config.seeds,
        steps=config.steps,
        wanted=config.wanted,
        share=0.9,
        episodes=config.episodes,
        generator=generator,
    )

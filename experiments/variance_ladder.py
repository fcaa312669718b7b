"""Rungs of the policy gradient on CartPole: reward-to-go and a critic cut the variance.

One fixed policy, of logit 0.6 (angle + angular velocity) for a push to the right; the variance is
the trace of the covariance of an episode's gradient, undiscounted. The critic is a quadratic in
the state, fitted to returns of other episodes by least squares. Reward-to-go is to have a quarter
of the variance of the whole return, with the critic a seventh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probcalc._random import child, draw_seed
from probcalc.experiment import require_positive
from probcalc.integration.gradient_estimators import LeaveOneOut, NoBaseline
from probcalc.policy import (
    GAE,
    CartPole,
    Critic,
    Reinforce,
    RewardToGo,
    TimeMean,
    WholeReturn,
    World,
)
from probcalc.policy.ladder import Rung, variance_ladder
from probcalc.policy.networks import QuadraticCritic
from probcalc.policy.rollout import episodes
from probcalc.reporting.policy_plots import plot_ladder
from probcalc.reporting.study import Finding, Study, at_least

SLOPE = 0.6
RUNGS = {
    "whole return": WholeReturn(NoBaseline()),
    "others' mean": WholeReturn(LeaveOneOut()),
    "reward-to-go": RewardToGo(NoBaseline()),
    "mean by time": RewardToGo(TimeMean()),
    "critic": RewardToGo(Critic()),
    "GAE(0.95)": GAE(0.95, whiten=False),
}
WANTED = {"reward-to-go": 4.0, "critic": 7.0}


@dataclass(frozen=True)
class Config:
    """How many draws.

    Args:
        episodes: Of each rung, the same ones; as many others are for the critic.
    """

    episodes: int = 3_000

    def __post_init__(self) -> None:
        """Check the number."""
        require_positive(self, "episodes")


def ladder(num_episodes: int, generator: torch.Generator | None) -> list[Rung]:
    """Fit the critic, and measure the rungs."""
    seed = draw_seed(generator)
    actor = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        actor.weight.copy_(torch.tensor([[0.0] * 4, [0.0, 0.0, SLOPE, SLOPE]]))
    world = World(CartPole(), num_episodes)
    trainer = Reinforce(world, weights=RUNGS["critic"], actor=actor, critic=QuadraticCritic(4))
    policy = trainer.built(world, 0)
    others = episodes(policy, world, child(seed, 0))
    togo = RewardToGo(NoBaseline()).of(others, 1.0, None).weights
    policy.critic.fit(others.observations[others.valid], togo[others.valid])
    return variance_ladder(policy, world, RUNGS, generator=child(seed, 1))


def run(config: Config, *, generator: torch.Generator | None = None, **_: Any) -> Study:
    """Measure, and hold against what is wanted."""
    rungs = ladder(config.episodes, generator)
    findings = []
    for rung in rungs:
        findings.append(Finding(f"{rung.name}: variance", rung.variance))
        name = f"{rung.name}: times less"
        limit = WANTED.get(rung.name)
        findings.append(
            Finding(name, rung.reduction)
            if limit is None
            else at_least(name, rung.reduction, limit)
        )
    bars = {r.name: (float(r.reduction.value), float(r.reduction.error)) for r in rungs}
    return Study(tuple(findings), {"ladder": plot_ladder(bars)})

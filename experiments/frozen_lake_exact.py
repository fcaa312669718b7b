"""FrozenLake's policy gradient: every estimator within 4 standard errors of the exact one.

The exact gradient comes from derivatives through the linear solve for the values; at the flat
policy and a discount of 0.99 the return is 0.01235614 and the gradient 0.00602172 long. The best
expected return is 0.54202593.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probcalc.experiment import require_positive
from probcalc.integration.gradient_estimators import LeaveOneOut, NoBaseline
from probcalc.policy import (
    Critic,
    Gridworld,
    Reinforce,
    RewardToGo,
    Tabular,
    TimeMean,
    WholeReturn,
    World,
)
from probcalc.policy.ladder import variance_ladder
from probcalc.reporting.policy_plots import plot_gradients
from probcalc.reporting.study import Finding, Study, at_most

LONGEST = 3_000  # steps, which no episode of the flat policy comes near
RETURN, LENGTH, BEST = 0.01235614, 0.00602172, 0.54202593
RUNGS = {
    "whole return": WholeReturn(NoBaseline()),
    "others' mean": WholeReturn(LeaveOneOut()),
    "reward-to-go": RewardToGo(NoBaseline()),
    "mean by time": RewardToGo(TimeMean()),
    "exact values": RewardToGo(Critic()),
}


@dataclass(frozen=True)
class Config:
    """How many draws.

    Args:
        env: Id of an environment with a table of its probabilities.
        episodes: Of each estimator, the same ones.
        discount: Of rewards.
    """

    env: str = "FrozenLake-v1"
    episodes: int = 50_000
    discount: float = 0.99

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_positive(self, "episodes", "discount")


def run(config: Config, *, generator: torch.Generator | None = None, **_: Any) -> Study:
    """Compare gradients of all estimators with the exact one."""
    import gymnasium

    table = Tabular.from_gymnasium(gymnasium.make(config.env))
    s, a, discount = table.num_states, table.num_actions, config.discount
    logits = torch.zeros(a, s, dtype=torch.float64, requires_grad=True)
    value = table.expected_return(logits.T.softmax(dim=-1), discount)
    (exact,) = torch.autograd.grad(value, logits)
    flat, critic = nn.Linear(s, a, bias=False), nn.Linear(s, 1, bias=False)
    with torch.no_grad():
        flat.weight.zero_()
        critic.weight.copy_(table.values(torch.full((s, a), 1 / a), discount)[None])
    world = World(Gridworld(table, LONGEST), config.episodes)
    trainer = Reinforce(world, weights=RUNGS["exact values"], actor=flat, critic=critic)
    policy = trainer.built(world, 0)
    rungs = variance_ladder(policy, world, RUNGS, discount=discount, generator=generator)
    found = {r.name: (r.gradient.value, r.gradient.std_error) for r in rungs}
    findings = []
    for r in rungs:
        some = r.gradient.std_error > 0
        z = ((r.gradient.value - exact.flatten()) / r.gradient.std_error)[some].abs().max()
        findings.append(at_most(f"{r.name}: most standard errors off", float(z), 4.0))
        findings.append(Finding(f"{r.name}: times less variance", r.reduction))
    best = float(table.start @ table.optimal_values(discount))
    at_default = config == Config(episodes=config.episodes)
    known = ((float(value.detach()), RETURN), (float(exact.norm()), LENGTH), (best, BEST))
    if at_default:
        off = max(abs(x - y) for x, y in known)
        findings.append(at_most("return, gradient and optimum off the reference", off, 5e-9))
    return Study(
        (
            Finding("expected return at the flat policy", f"{known[0][0]:.8f}"),
            Finding("length of its gradient", f"{known[1][0]:.8f}"),
            Finding("best expected return", f"{known[2][0]:.8f}"),
            *findings,
        ),
        {"gradients": plot_gradients(exact.flatten(), found)},
    )

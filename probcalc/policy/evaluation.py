"""The expected return of a policy, from whole episodes apart from training."""

from __future__ import annotations

import torch

from probcalc._random import child
from probcalc.policy.environments import Environment
from probcalc.policy.networks import ActorCritic
from probcalc.policy.rollout import LONGEST, episodes
from probcalc.result import Estimate


def expected_return(
    policy: ActorCritic,
    environment: Environment,
    num_episodes: int,
    seed: int,
    *,
    best: bool,
    confidence: float = 0.99,
    longest: int = LONGEST,
) -> Estimate:
    """Mean return of whole episodes, undiscounted; as many from every copy.

    Args:
        policy: Who acts.
        environment: Copies, as many as divide the number of episodes, or more.
        num_episodes: At least 2.
        seed: Of starts and actions.
        best: Whether the most probable actions are taken.
        confidence: Of the bar.
        longest: Steps of an episode after which it counts as endless.

    Returns:
        Estimate with `returns` and `lengths` of the episodes in its diagnostics.

    Raises:
        ValueError: If there are fewer than two.
    """
    if num_episodes < 2:
        raise ValueError(f"an error bar needs at least 2 episodes, got {num_episodes}.")
    generator = child(seed, 0, environment.device)
    returns, lengths, count = [], [], 0
    while count < num_episodes:
        rollout = episodes(policy, environment, generator, longest=longest, best=best)
        returns.append(rollout.rewards.double().sum(dim=1))
        lengths.append(rollout.valid.sum(dim=1))
        count += environment.num_envs
    returns, lengths = torch.cat(returns)[:num_episodes], torch.cat(lengths)[:num_episodes]
    found = Estimate.from_replicates(
        returns,
        confidence=confidence,
        num_evals=int(lengths.sum()),
        method=f"mean return of {num_episodes} episodes",
    )
    found.diagnostics.update(returns=returns, lengths=lengths)
    return found

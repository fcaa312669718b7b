"""What a policy did: steps of every copy, and how its episodes ended."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.policy.environments import Environment, EnvironmentFault
from probcalc.policy.networks import ActorCritic

LONGEST = 100_000  # steps after which an episode that is waited for counts as endless


@dataclass(frozen=True, eq=False)
class Rollout:
    """T steps of n copies; episodes may begin and end anywhere in it.

    Args:
        observations: What was acted on.
        outputs: What the policy made of it.
        actions: What was done.
        rewards: What it gave, as it came.
        terminated: Whether the task ended with the step.
        truncated: Whether a clock ended the episode with it.
        valid: Whether it was a step of the task.
        last: What the copies showed after the last step.
        final: What they showed after each step where that is not the next of `observations`; None
            where it always is.
    """

    observations: Float[Tensor, " n t *o"]
    outputs: Float[Tensor, "n t k"]
    actions: Tensor
    rewards: Float[Tensor, "n t"]
    terminated: Bool[Tensor, "n t"]
    truncated: Bool[Tensor, "n t"]
    valid: Bool[Tensor, "n t"]
    last: Float[Tensor, " n *o"]
    final: Float[Tensor, " n t *o"] | None = None

    @property
    def num_steps(self) -> int:
        """Steps of the task."""
        return int(self.valid.sum())

    def of(self, copies: slice) -> Rollout:
        """Those of some copies."""
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: None if t is None else t[copies] for k, t in cut.items()})

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: t for name, t in own.items() if t is not None}


@torch.no_grad()
def steps(
    policy: ActorCritic,
    environment: Environment,
    observation: Float[Tensor, " n *o"],
    num: int,
    generator: torch.Generator,
) -> tuple[Rollout, Float[Tensor, " n *o"]]:
    """So many steps from where the copies are, and what they show then."""
    record = _Record(environment)
    for _ in range(num):
        observation = record.step(policy, observation, generator)
    return record.rollout(observation), observation


@torch.no_grad()
def episodes(
    policy: ActorCritic,
    environment: Environment,
    generator: torch.Generator,
    *,
    longest: int = LONGEST,
    best: bool = False,
) -> Rollout:
    """One whole episode of every copy: none is favoured for being short.

    Args:
        policy: Who acts.
        environment: Begun anew.
        generator: Source of the seed and the actions.
        longest: Steps.
        best: Whether the most probable actions are taken.

    Raises:
        EnvironmentFault: If an episode is longer.
    """
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    observation = environment.reset(seed)
    record = _Record(environment, alone=True)
    while record.alive is None or bool(record.alive.any()):
        if len(record.rewards) == longest:
            raise EnvironmentFault(
                f"an episode of {environment.name} did not end within {longest:,} steps: returns "
                "of whole episodes need an end. Give the environment a time limit, or use "
                "`GAE()`, which needs none."
            )
        observation = record.step(policy, observation, generator, best)
    return record.rollout(observation)


class _Record:
    """Grows by one step at a time.

    Args:
        environment: What is stepped.
        alone: Whether only the first episode of every copy counts.
    """

    def __init__(self, environment: Environment, *, alone: bool = False) -> None:
        self.environment, self.alone = environment, alone
        self.lists: dict[str, list[Tensor]] = {
            name: [] for name in ("observations", "outputs", "actions", "terminated", "truncated")
        }
        self.rewards: list[Tensor] = []
        self.finals: dict[int, Tensor] = {}
        self.voids: dict[int, Tensor] = {}
        self.counts: list[Tensor] = []
        self.alive: Tensor | None = None

    def step(
        self,
        policy: ActorCritic,
        observation: Tensor,
        generator: torch.Generator,
        best: bool = False,
    ) -> Tensor:
        outputs = policy.outputs(observation)
        head = policy.head
        actions = head.best(outputs) if best else head.draw(outputs, generator)
        done = self.environment.step(actions)
        t = len(self.rewards)
        values = observation, outputs, actions, done.terminated, done.truncated
        for kept, value in zip(self.lists.values(), values, strict=True):
            kept.append(value)
        self.rewards.append(done.reward)
        if done.final is not None:
            self.finals[t] = done.final
        if done.void is not None:
            self.voids[t] = done.void
        if self.alone:
            ends = done.terminated | done.truncated
            alive = torch.ones_like(ends) if self.alive is None else self.alive
            self.counts.append(alive)
            self.alive = alive & ~ends
        return done.observation

    def rollout(self, last: Tensor) -> Rollout:
        found: dict[str, Any] = {k: _stacked(v) for k, v in self.lists.items()}
        found["rewards"] = _stacked(self.rewards)
        valid = torch.ones_like(found["terminated"])
        for t, void in self.voids.items():
            valid[:, t] = ~void
        if self.counts:
            valid = _stacked(self.counts)
            for name in ("rewards", "terminated", "truncated"):
                found[name] = found[name] * valid
        if self.finals:
            found["final"] = found["observations"].roll(-1, dims=1)
            found["final"][:, -1] = last
            for t, final in self.finals.items():
                found["final"][:, t] = final
        return Rollout(**found, valid=valid, last=last)


def _stacked(rows: list[Tensor]) -> Tensor:
    """Copies first; in memory the steps come first, as they came."""
    return torch.stack(rows).transpose(0, 1)

"""How weights become steps of the parameters.

    plain       g = mean of w ∇ ln π, one step a rollout; the critic takes several
    clipped     several steps on one rollout, with ratios of probabilities kept near 1

Schulman et al. (2017), Proximal policy optimization algorithms. Steps of equal change of the
policy are in `natural`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from probcalc.integration.gradient_estimators import clipped_surrogate
from probcalc.optimization.first_order import Adam, FirstOrder
from probcalc.policy.losses import (
    Batch,
    critic_gradient,
    gradients_of,
    mean_of,
    measure_kl,
    policy_gradient,
    reported,
    rows_of,
)
from probcalc.policy.networks import ActorCritic
from probcalc.training.gradients import LossAndGradients


@runtime_checkable
class Update(Protocol):
    """A way from weights to steps."""

    optimizer: FirstOrder

    def num_passes(self, has_critic: bool) -> int:
        """Updates of parameters a rollout."""
        ...

    def minibatches(self) -> int:
        """Parts into which the steps of a rollout are shuffled for every pass over it."""
        ...

    def gradients(
        self, policy: ActorCritic, batch: Batch, entropy_bonus: float | int
    ) -> LossAndGradients:
        """Of one update."""
        ...


@dataclass(frozen=True)
class PlainGradient:
    """One step of the policy a rollout: REINFORCE.

    Args:
        critic_steps: Of the critic a rollout, the first with the policy's.
        optimizer: For both.
    """

    critic_steps: int = 20
    optimizer: FirstOrder = Adam(1e-2)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: If the critic would not learn.
        """
        if self.critic_steps < 1:
            raise ValueError(f"`critic_steps` must be at least 1, got {self.critic_steps}.")

    def num_passes(self, has_critic: bool) -> int:
        """The critic's steps, or one."""
        return self.critic_steps if has_critic else 1

    def minibatches(self) -> int:
        """Whole rollouts."""
        return 1

    def gradients(
        self, policy: ActorCritic, batch: Batch, entropy_bonus: float | int
    ) -> LossAndGradients:
        """The policy's in the first pass, the critic's in all."""
        loss, grads = critic_gradient(policy, batch)
        if batch.turn == 0:
            goal, own = policy_gradient(policy, batch, entropy_bonus)
            loss, grads = loss - goal, {**grads, **own}
        elif batch.turn == 1:
            measure_kl(policy, batch)
        return LossAndGradients(loss, grads, reported(policy, batch))


@dataclass(frozen=True)
class Clipped:
    """Several passes over a rollout, with the surrogate of PPO.

    Args:
        limit: How far a ratio of probabilities may go and still pay.
        epochs: Passes over a rollout.
        num_minibatches: Updates a pass.
        value_weight: Of the critic's loss.
        optimizer: For both.
    """

    limit: float | int = 0.2
    epochs: int = 4
    num_minibatches: int = 4
    value_weight: float | int = 0.5
    optimizer: FirstOrder = Adam(1e-3)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is out of range.
        """
        if not 0 < self.limit < 1 or min(self.epochs, self.num_minibatches) < 1:
            raise ValueError(
                "`Clipped` needs 0 < limit < 1 and at least one epoch and minibatch, got "
                f"{self.limit}, {self.epochs}, {self.num_minibatches}."
            )

    def num_passes(self, has_critic: bool) -> int:
        """Minibatches of all epochs."""
        return self.epochs * self.num_minibatches

    def minibatches(self) -> int:
        """As set."""
        return self.num_minibatches

    def gradients(
        self, policy: ActorCritic, batch: Batch, entropy_bonus: float | int
    ) -> LossAndGradients:
        """Of both networks."""
        loss, grads = critic_gradient(policy, batch, self.value_weight)
        done = batch.rollout
        looked_at = (done.outputs, done.actions, batch.weights, done.valid)
        old, actions, weights, valid = (rows_of(t, batch) for t in looked_at)
        new = policy.outputs(rows_of(done.observations, batch))
        head = policy.head
        log_ratio = head.log_prob(new, actions) - head.log_prob(old, actions)
        entropy = mean_of(head.entropy(new), valid)
        goal = mean_of(clipped_surrogate(log_ratio, weights, self.limit), valid)
        goal = goal + entropy_bonus * entropy
        own = gradients_of(policy, goal, -1.0)
        with torch.no_grad():
            policy.measured[0] = entropy
            policy.measured[1] = mean_of(head.kl(old, new), valid)
            beyond = (log_ratio.exp() - 1).abs() > self.limit
            policy.measured[2] = mean_of(beyond.to(entropy.dtype), valid)
        return LossAndGradients(loss - goal.detach(), {**grads, **own}, reported(policy, batch))

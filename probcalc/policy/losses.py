"""Gradients of what a policy gains and of what its critic misses, from one batch of decisions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probcalc.integration.gradient_estimators import NoBaseline, surrogate
from probcalc.policy.networks import ActorCritic
from probcalc.policy.noise import GROUPS, signal_to_noise
from probcalc.policy.rollout import Rollout

Grads = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """A rollout with the weights of its scores, and the how-manieth look at it this is.

    Args:
        rollout: What was done.
        weights: Of the scores.
        targets: For the critic, or None.
        explained: Variance that the critic explained before its steps.
        turn: Passes over the rollout before this one.
        rows: Of the steps, flat, that are looked at; None for all.
        by_episode: Whether the mean is over episodes, not over steps, which favours long ones.
        measures_noise: Whether gradients of groups of copies are compared.
        reported: Scalars of the rollout for the history.
    """

    rollout: Rollout
    weights: Float[Tensor, "n t"]
    targets: Float[Tensor, "n t"] | None
    explained: Float[Tensor, ""]
    turn: int
    rows: Int[Tensor, " m"] | None
    by_episode: bool
    measures_noise: bool
    reported: dict[str, Tensor]


def policy_gradient(
    policy: ActorCritic, batch: Batch, entropy_bonus: float | int
) -> tuple[Tensor, Grads]:
    """The surrogate's value, with entropy, and the gradients of its negative."""
    n = len(batch.weights)
    if not batch.measures_noise or n < 2:
        return _surrogate_gradient(policy, batch, slice(None), entropy_bonus)
    size = -(-n // min(n, GROUPS))
    parts = [slice(i, min(i + size, n)) for i in range(0, n, size)]
    found = [_surrogate_gradient(policy, batch, part, entropy_bonus) for part in parts]
    shares = torch.tensor([(p.stop - p.start) / n for p in parts])
    names = list(found[0][1])
    flat = torch.stack([torch.cat([g[name].flatten() for name in names]) for _, g in found])
    policy.measured[3:5] = torch.stack(signal_to_noise(flat))
    mean = (shares.to(flat) @ flat).split([found[0][1][name].numel() for name in names])
    goal = sum(share * value for share, (value, _) in zip(shares.tolist(), found, strict=True))
    shapes = [found[0][1][name].shape for name in names]
    return goal, {n: t.reshape(s) for n, t, s in zip(names, mean, shapes, strict=True)}


def _surrogate_gradient(
    policy: ActorCritic, batch: Batch, part: slice, entropy_bonus: float | int
) -> tuple[Tensor, Grads]:
    """Of some copies: one term a decision, means over steps or sums over episodes."""
    rollout, w = batch.rollout, batch.weights[part]
    x, valid = rollout.observations[part], rollout.valid[part]
    shape = w.shape
    new = policy.outputs(x.flatten(0, 1))
    log_prob = policy.head.log_prob(new, rollout.actions[part].flatten(0, 1)).reshape(shape)
    terms = surrogate(log_prob * valid, w, baseline=NoBaseline())
    # the same divisor for every group, so that their mean is the gradient of all
    steps = rollout.valid.sum() * (shape[0] / len(batch.weights))
    count = steps if not batch.by_episode else shape[0]
    entropy = mean_of(policy.head.entropy(new).reshape(shape), valid)
    goal = terms.sum() / count + entropy_bonus * entropy
    grads = gradients_of(policy, goal, -1.0)
    policy.measured[0] = entropy.detach()
    return goal.detach(), grads


def critic_gradient(
    policy: ActorCritic, batch: Batch, weight: float | int = 1.0
) -> tuple[Tensor, Grads]:
    """Half the mean square of the critic's errors, and its gradients."""
    if batch.targets is None or policy.critic is None:
        return torch.zeros((), device=batch.weights.device), {}
    value = policy.value(rows_of(batch.rollout.observations, batch))
    away = value - rows_of(batch.targets, batch)
    loss = 0.5 * weight * mean_of(away.square(), rows_of(batch.rollout.valid, batch))
    named = named_of(policy, "critic")
    grads = torch.autograd.grad(loss, list(named.values()))
    return loss.detach(), dict(zip(named, grads, strict=True))


@torch.no_grad()
def measure_kl(policy: ActorCritic, batch: Batch) -> None:
    """From the policy that acted to the one after its step."""
    rollout = batch.rollout
    new = policy.outputs(rollout.observations.flatten(0, 1))
    kl = policy.head.kl(rollout.outputs.flatten(0, 1), new)
    policy.measured[1] = mean_of(kl, rollout.valid.flatten())


def reported(policy: ActorCritic, batch: Batch) -> dict[str, Tensor]:
    """Scalars of this update."""
    entropy, kl, clipped, signal, error = policy.measured.clone().unbind()
    return {
        **batch.reported,
        "entropy": entropy,
        "kl": kl,
        "clipped": clipped,
        "explained_variance": batch.explained,
        "signal_to_noise": signal,
        "signal_to_noise_error": error,
    }


def policy_parameters(policy: ActorCritic) -> dict[str, nn.Parameter]:
    """What decides the distributions of actions."""
    own = named_of(policy, "actor")
    return own if policy.log_scale is None else {**own, "log_scale": policy.log_scale}


def named_of(policy: ActorCritic, part: str) -> dict[str, nn.Parameter]:
    """Parameters of `actor` or `critic`."""
    return dict(getattr(policy, part).named_parameters(prefix=part))


def gradients_of(policy: ActorCritic, goal: Tensor, sign: float) -> Grads:
    """Of a goal of the policy, or of its negative."""
    named = policy_parameters(policy)
    grads = torch.autograd.grad(sign * goal, list(named.values()), materialize_grads=True)
    return dict(zip(named, grads, strict=True))


def rows_of(t: Tensor, batch: Batch) -> Tensor:
    """The steps that a batch looks at, flat."""
    flat = t.flatten(0, 1)
    return flat if batch.rows is None else flat[batch.rows]


def mean_of(x: Tensor, valid: Tensor) -> Tensor:
    """Over steps of the task."""
    return (x * valid).sum() / valid.sum().clamp(min=1)

"""Rungs of the ladder side by side: the gradients of single episodes, their mean and variance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad, vmap

from probcalc._random import child, draw_seed
from probcalc.integration.gradient_estimators import NoBaseline, surrogate
from probcalc.policy.environments import Environment
from probcalc.policy.losses import policy_parameters
from probcalc.policy.networks import ActorCritic
from probcalc.policy.rollout import Rollout, episodes
from probcalc.policy.source import values_of
from probcalc.policy.weights import Weights
from probcalc.result import Estimate

_CHUNK = 2**24  # numbers of gradients at a time


@dataclass(frozen=True, eq=False)
class Rung:
    """What one way to weight scores did on the episodes.

    Args:
        name: As given.
        gradient: Mean over episodes, with its bar.
        variance: Of the gradient of one episode, summed over parameters.
        reduction: Variance of the first rung over this one's, on the same episodes.
    """

    name: str
    gradient: Estimate
    variance: float
    reduction: Estimate

    def __repr__(self) -> str:
        r = self.reduction
        return f"{self.name}: variance {self.variance:,.0f}, {float(r.value):.2f} × less"


def variance_ladder(
    policy: ActorCritic,
    environment: Environment,
    rungs: Mapping[str, Weights],
    *,
    discount: float | int = 1.0,
    confidence: float = 0.99,
    generator: torch.Generator | None = None,
) -> list[Rung]:
    """Gradients of the expected return, one whole episode of every copy, by every rung.

    The bar of a reduction is that of the quotient of two means over the same episodes, by the
    delta method. Baselines that are means of other episodes make these depend on one another by a
    share of one in their number.

    Args:
        policy: Held still; its critic is used where a rung needs one.
        environment: As many copies as episodes are wanted.
        rungs: Weights by name.
        discount: γ.
        confidence: Of the bars.
        generator: Source of starts and actions; one seed is drawn from it.

    Raises:
        ValueError: If there is no rung, or there are fewer than two copies.
    """
    if not rungs or environment.num_envs < 2:
        raise ValueError(
            f"a ladder needs a rung and two copies, got {len(rungs)} and {environment.num_envs}."
        )
    rollout = episodes(policy, environment, child(draw_seed(generator), 0, environment.device))
    found: list[Rung] = []
    base = None
    for name, weights in rungs.items():
        each = episode_gradients(policy, rollout, weights, discount).double()
        away = (each - each.mean(dim=0)).square().sum(dim=1)
        base = away if base is None else base
        found.append(
            Rung(
                name,
                Estimate.from_replicates(each, confidence=confidence, num_evals=len(each)),
                float(away.sum() / (len(away) - 1)),
                _quotient(base, away, confidence),
            )
        )
    return found


def episode_gradients(
    policy: ActorCritic, rollout: Rollout, weights: Weights, discount: float | int
) -> Float[Tensor, "n p"]:
    """Of the surrogate of every episode, the policy's parameters one after the other."""
    with torch.no_grad():
        values = values_of(policy, rollout) if weights.needs_critic else None
        w = weights.of(rollout, discount, values).weights
    named = {name: p.detach() for name, p in policy_parameters(policy).items()}
    caller = _Outputs(policy)

    def gain(params: dict[str, Tensor], x: Tensor, a: Tensor, w: Tensor, valid: Tensor) -> Tensor:
        inner = {f"policy.{name}": p for name, p in params.items()}
        log_prob = policy.head.log_prob(functional_call(caller, inner, (x,)), a)
        return surrogate(log_prob * valid, w, baseline=NoBaseline()).sum()

    size = sum(p.numel() for p in named.values()) + rollout.observations[0].numel()
    slopes = vmap(grad(gain), in_dims=(None, 0, 0, 0, 0), chunk_size=max(1, _CHUNK // size))
    found = slopes(named, rollout.observations, rollout.actions, w, rollout.valid)
    return torch.cat([t.flatten(1) for t in found.values()], dim=1)


class _Outputs(torch.nn.Module):
    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, x: Tensor) -> Tensor:
        return self.policy.outputs(x)


def _quotient(a: Tensor, b: Tensor, confidence: float) -> Estimate:
    """Of the means of paired numbers."""
    ratio = a.mean() / b.mean()
    terms = ratio + (a - ratio * b) / b.mean()
    return Estimate.from_replicates(terms, confidence=confidence, num_evals=len(a))

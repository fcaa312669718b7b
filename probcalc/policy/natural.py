r"""Natural gradients: steps of equal change of the policy, and the critic's by Gauss and Newton.

    F⁻¹ g, scaled to KL(old ‖ new) ≈ δ,      F the Fisher information of the policy
    (JᵀJ/n)⁻¹ ∇ loss,                        J the derivatives of the critic's values

both damped, and solved by conjugate gradients from products alone. Kakade (2001), A natural policy
gradient; Schulman et al. (2015), Trust region policy optimization, appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probcalc.optimization.first_order import SGD, FirstOrder
from probcalc.policy.losses import (
    Batch,
    Grads,
    critic_gradient,
    mean_of,
    measure_kl,
    named_of,
    policy_gradient,
    policy_parameters,
    reported,
    rows_of,
)
from probcalc.policy.networks import ActorCritic
from probcalc.training.gradients import LossAndGradients

_BEYOND = 1.5  # times the KL asked for, up to which a step is taken as it is
_HALVINGS = 8


@dataclass(frozen=True)
class NaturalGradient:
    """Steps of equal change of the policy, whatever its parameters.

    Args:
        max_kl: δ, of the policy before to that after, in nats.
        critic_steps: Of Gauss and Newton, a rollout.
        damping: Added to the Fisher information, in units of its mean diagonal.
        iterations: Of conjugate gradients.
    """

    max_kl: float | int = 1e-2
    critic_steps: int = 5
    damping: float | int = 1e-2
    iterations: int = 10
    optimizer: FirstOrder = SGD(1.0)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: If one is not positive.
        """
        if not min(self.max_kl, self.damping, self.critic_steps, self.iterations) > 0:
            raise ValueError("`NaturalGradient` needs positive numbers, got one that is not.")

    def num_passes(self, has_critic: bool) -> int:
        """The critic's steps, or one."""
        return self.critic_steps if has_critic else 1

    def minibatches(self) -> int:
        """Whole rollouts."""
        return 1

    def gradients(
        self, policy: ActorCritic, batch: Batch, entropy_bonus: float | int
    ) -> LossAndGradients:
        """Directions that a step of length one follows to their ends."""
        loss, grads = critic_gradient(policy, batch)
        x = rows_of(batch.rollout.observations, batch)
        valid = rows_of(batch.rollout.valid, batch)
        if grads:
            named = named_of(policy, "critic")
            step = self._solved(named, grads, lambda: policy.value(x), lambda _: valid)
            grads = dict(zip(named, step, strict=True))
        if batch.turn == 0:
            goal, own = policy_gradient(policy, batch, entropy_bonus)
            named = {name: p for name, p in policy_parameters(policy).items() if name in own}
            g = [own[name] for name in named]
            step = self._kl_step(policy, named, x, valid, g)
            grads.update(zip(named, step, strict=True))
            loss = loss - goal
        elif batch.turn == 1:
            measure_kl(policy, batch)
        return LossAndGradients(loss, grads, reported(policy, batch))

    def _kl_step(
        self,
        policy: ActorCritic,
        named: dict[str, nn.Parameter],
        x: Tensor,
        valid: Tensor,
        g: list[Tensor],
    ) -> list[Tensor]:
        params = list(named.values())
        new = policy.outputs(x)
        kl = mean_of(policy.head.kl(new.detach(), new), valid)
        slope = torch.autograd.grad(kl, params, create_graph=True)

        def product(v: list[Tensor]) -> list[Tensor]:
            along = sum((a * b).sum() for a, b in zip(slope, v, strict=True))
            return list(torch.autograd.grad(along, params, retain_graph=True))

        d = conjugate_gradients(product, g, self.damping, self.iterations)
        size = sum((a * b).sum() for a, b in zip(d, product(d), strict=True))
        scale = (2 * self.max_kl / size.clamp(min=1e-12)).sqrt()
        return self._allowed(policy, params, [scale * t for t in d], x, valid, new.detach())

    @torch.no_grad()
    def _allowed(
        self,
        policy: ActorCritic,
        params: list[nn.Parameter],
        step: list[Tensor],
        x: Tensor,
        valid: Tensor,
        old: Tensor,
    ) -> list[Tensor]:
        """Halved until the KL is about what was asked for: its quadratic part can mislead."""
        kept = [p.clone() for p in params]
        for _ in range(_HALVINGS):
            for p, at, t in zip(params, kept, step, strict=True):
                p.copy_(at - t)
            kl = float(mean_of(policy.head.kl(old, policy.outputs(x)), valid))
            if kl <= _BEYOND * self.max_kl:
                break
            step = [0.5 * t for t in step]
        for p, at in zip(params, kept, strict=True):
            p.copy_(at)
        return step

    def _solved(
        self,
        named: dict[str, nn.Parameter],
        grads: Grads,
        outputs: Callable[[], Tensor],
        weight: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """(JᵀWJ/Σw + damping) ⁻¹ g."""
        params = list(named.values())
        value = outputs()
        w = weight(value).to(value.dtype)
        dual = torch.zeros_like(value, requires_grad=True)
        back = torch.autograd.grad(value, params, dual, create_graph=True)

        def product(v: list[Tensor]) -> list[Tensor]:
            along = sum((a * b).sum() for a, b in zip(back, v, strict=True))
            (jv,) = torch.autograd.grad(along, dual, retain_graph=True)
            pulled = torch.autograd.grad(value, params, w * jv / w.sum(), retain_graph=True)
            return list(pulled)

        g = [grads[name] for name in named]
        return conjugate_gradients(product, g, self.damping, self.iterations)


def conjugate_gradients(
    product: Callable[[list[Tensor]], list[Tensor]],
    g: list[Tensor],
    damping: float | int,
    iterations: int,
) -> list[Tensor]:
    """(F + λ) x = g, with λ the damping in units of gᵀFg/gᵀg: Hestenes & Stiefel (1952)."""

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return sum((s * t).sum() for s, t in zip(a, b, strict=True))

    size = dot(g, g)
    shift = damping * dot(g, product(g)) / size.clamp(min=1e-30)
    x, r, p = [torch.zeros_like(t) for t in g], list(g), list(g)
    for _ in range(iterations):
        moved = [a + shift * b for a, b in zip(product(p), p, strict=True)]
        step = size / dot(p, moved).clamp(min=1e-30)
        x = [a + step * b for a, b in zip(x, p, strict=True)]
        r = [a - step * b for a, b in zip(r, moved, strict=True)]
        fresh = dot(r, r)
        p = [a + fresh / size.clamp(min=1e-30) * b for a, b in zip(r, p, strict=True)]
        size = fresh
    return x

r"""First-order methods as settings over `torch.optim`, for `minimize` and for `train`.

    gradient descent   x ← x − η g
    momentum           v ← μ v + g,   x ← x − η v;          Nesterov: x ← x − η (g + μ v)
    RMSprop            s ← ρ s + (1 − ρ) g²,   x ← x − η g/(√s + ε)
    Adam               m ← β₁ m + (1 − β₁) g,   s ← β₂ s + (1 − β₂) g²,
                       x ← x − η m̂/(√ŝ + ε),   m̂ = m/(1 − β₁ᵗ),   ŝ = s/(1 − β₂ᵗ)
    AdamW              x ← (1 − η λ) x first

Updates are elementwise, so that a batch of problems is one tensor; those that have converged stand
still. Polyak (1964); Nesterov (1983); Tieleman & Hinton (2012), lecture 6.5; Kingma & Ba (2015);
Loshchilov & Hutter (2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, optim

from probcalc.status import Status


@dataclass(frozen=True, eq=False)
class FirstOrderState:
    """Of `b` problems with `d` parameters: where each is, and the best that it has met."""

    at: Float[Tensor, "b d"]
    memory: dict[str, Any]  # of the optimiser
    x: Float[Tensor, "b d"]
    value: Float[Tensor, " b"]
    grad: Float[Tensor, "b d"]
    num_iterations: Int[Tensor, " b"]
    status: Int[Tensor, " b"]
    active: Bool[Tensor, " b"]


@dataclass(frozen=True)
class FirstOrder:
    """Common to all of them.

    Args:
        lr: Step size η.
        gtol: Converged where no gradient entry exceeds it.
    """

    lr: float
    gtol: float = 1e-6

    def __post_init__(self) -> None:
        """Check the step size.

        Raises:
            ValueError: If it is not positive.
        """
        if not self.lr > 0:
            raise ValueError(f"`lr` must be positive, got {self.lr}.")

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """The optimiser of torch's with these settings, all parameters in one kernel or not."""
        raise NotImplementedError

    def init(
        self, x: Float[Tensor, "b d"], value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> FirstOrderState:
        """State after the first update, from the value and gradient at the start."""
        counts = torch.zeros(len(x), dtype=torch.long, device=x.device)
        status = torch.zeros_like(counts)
        still = torch.ones_like(counts, dtype=torch.bool)
        fresh = FirstOrderState(x, {}, x, value, grad, counts, status, still)
        return self.step(fresh, value, grad)

    def point(self, state: FirstOrderState) -> Float[Tensor, "b d"]:
        """Where the objective is to be evaluated next."""
        return state.at

    def step(
        self, state: FirstOrderState, value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> FirstOrderState:
        """Digest the value and gradient at `point(state)`, and move on."""
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        better = state.active & finite & (value <= state.value)
        flat = grad.abs().amax(dim=-1) <= self.gtol
        moving = state.active & finite & ~flat
        at, memory = self._updated(state, grad, moving)
        broken = state.active & ~finite
        # where it has converged is the answer, though a worse value than one passed by
        ends = state.active & finite & flat
        kept = better | ends
        return replace(
            state,
            at=at,
            memory=memory,
            x=torch.where(kept[:, None], state.at, state.x),
            value=torch.where(kept, value, state.value),
            grad=torch.where(kept[:, None], grad, state.grad),
            num_iterations=state.num_iterations + moving,
            status=state.status | torch.where(broken, Status.NON_FINITE, Status.OK),
            active=moving,
        )

    def _updated(
        self, state: FirstOrderState, grad: Tensor, moving: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """One step of torch's optimiser, with a copy of its memory: states stay what they are."""
        parameter = torch.nn.Parameter(state.at.clone())
        optimizer = self.optimizer([parameter])
        if state.memory:
            copied = {k: v.clone() if torch.is_tensor(v) else v for k, v in state.memory.items()}
            optimizer.state[parameter] = copied
        parameter.grad = torch.where(moving[:, None], grad, 0.0)
        optimizer.step()
        at = torch.where(moving[:, None], parameter.detach(), state.at)
        return at, dict(optimizer.state[parameter])


@dataclass(frozen=True)
class SGD(FirstOrder):
    """Gradient descent, on noisy gradients stochastic, with momentum or without.

    Args:
        lr: Step size η.
        gtol: Converged where no gradient entry exceeds it.
        momentum: Share μ of the velocity that stays.
        nesterov: Whether the gradient counts as taken a step ahead.
        weight_decay: Added to the gradient, times x.
    """

    lr: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """`torch.optim.SGD`."""
        return optim.SGD(
            params,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=fused,
        )


@dataclass(frozen=True)
class RMSprop(FirstOrder):
    """Gradients over the root of their mean squares.

    Args:
        lr: Step size η.
        gtol: Converged where no gradient entry exceeds it.
        smoothing: Share ρ of the mean square that stays.
        eps: Added to the root.
    """

    lr: float = 1e-2
    smoothing: float = 0.99
    eps: float = 1e-8

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """`torch.optim.RMSprop`, which has no fused kernel."""
        return optim.RMSprop(params, lr=self.lr, alpha=self.smoothing, eps=self.eps)


@dataclass(frozen=True)
class Adam(FirstOrder):
    """Means of gradients over the root of their mean squares, both corrected for their start.

    Args:
        lr: Step size η.
        gtol: Converged where no gradient entry exceeds it.
        betas: Shares β₁ and β₂ of both means that stay.
        eps: Added to the root.
        amsgrad: Whether the largest mean square so far counts.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """`torch.optim.Adam`."""
        return optim.Adam(
            params,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            amsgrad=self.amsgrad,
            fused=fused,
        )


@dataclass(frozen=True)
class AdamW(FirstOrder):
    """Adam, with weights that decay by themselves.

    Args:
        lr: Step size η.
        gtol: Converged where no gradient entry exceeds it.
        betas: Shares β₁ and β₂ of both means that stay.
        eps: Added to the root.
        weight_decay: Rate λ.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """`torch.optim.AdamW`."""
        return optim.AdamW(
            params,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused,
        )

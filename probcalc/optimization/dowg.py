r"""Distance over weighted gradients: gradient descent that needs no step size.

    r̄ ← max(r̄, ‖x − x₀‖),   v ← v + r̄² ‖g‖²,   x ← x − r̄² g/√v

The step is right up to logarithms for convex objectives, smooth or not; on noisy ones the average
of the iterates is what converges. Khaled, Mishchenko & Jin (2023), DoWG unleashed: an efficient
universal parameter-free gradient descent method, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, optim

from probcalc.optimization.first_order import FirstOrder, FirstOrderState

_FIRST = 1e-6  # of the distance, relative to 1 + ‖x₀‖


class DistanceOverWeightedGradients(optim.Optimizer):
    """The rule as an optimiser of torch's; one distance for all tensors of a group.

    Args:
        params: Tensors, or groups of them.
        lr: Factor of the step, for schedules.
        by_row: Whether each row of a tensor ``(b, d)`` is a problem of its own.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, *, by_row: bool = False) -> None:
        super().__init__(params, {"lr": lr, "by_row": by_row})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _step_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        total = lambda tensors: sum(_squared(t, group["by_row"]) for t in tensors)  # noqa: E731
        size = None
        for p in params:
            if not self.state[p]:
                size = size if size is not None else total(params).sqrt()
                start = {"start": p.clone(), "distance": _FIRST * (1 + size)}
                self.state[p].update(start, weighted=torch.zeros_like(size))
        away = total([p - self.state[p]["start"] for p in params]).sqrt()
        steepness = total([p.grad for p in params])
        for p in params:  # every tensor keeps the group's numbers, so that each is saved with it
            own = self.state[p]
            own["distance"] = torch.maximum(own["distance"], away)
            own["weighted"] = own["weighted"] + own["distance"].square() * steepness
            tiny = torch.finfo(p.dtype).tiny
            rate = own["distance"].square() / own["weighted"].clamp(min=tiny).sqrt()
            rate = rate[:, None] if group["by_row"] else rate
            p.sub_(group["lr"] * rate * p.grad)


@dataclass(frozen=True)
class DoWG(FirstOrder):
    """Gradient descent whose step size is the distance gone over the gradients met.

    Args:
        lr: Factor of the step; 1 is the method.
        gtol: Converged where no gradient entry exceeds it.
        by_row: Whether each row of a tensor ``(b, d)`` is a problem of its own, with its own
            step; always so in `minimize`.
    """

    lr: float = 1.0
    by_row: bool = False

    def optimizer(self, params: Iterable[Any], *, fused: bool = False) -> optim.Optimizer:
        """`DistanceOverWeightedGradients`, which has no fused kernel."""
        return DistanceOverWeightedGradients(params, lr=self.lr, by_row=self.by_row)

    def _updated(
        self, state: FirstOrderState, grad: Tensor, moving: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        rows = self if self.by_row else replace(self, by_row=True)
        return super(DoWG, rows)._updated(state, grad, moving)


def _squared(x: Tensor, by_row: bool) -> Tensor:
    return x.square().sum(dim=-1) if by_row else x.square().sum()

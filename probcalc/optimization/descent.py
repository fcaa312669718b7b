r"""Gradient descent that chooses its steps, free or inside a box.

    backtracking   t halved from the last one's double until f(x − t g) ≤ f − c t gᵀg (Armijo)
    exact          t = gᵀg / gᵀHg, the minimum along −g of a quadratic (Cauchy 1847)
    projected      x ← P(x − t g) onto the box, t of Barzilai and Borwein, halved until the value
                   falls below the largest of the last ten

On a quadratic with condition number κ exact steps shrink f − f* by ((κ − 1)/(κ + 1))² each.
Nocedal & Wright (2006), sections 3.1 and 3.3; Birgin, Martínez & Raydan (2000), SIAM J. Optim. 10.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.status import Status

_DECREASE = 1e-4  # share of the promised decrease that a step must reach
_SHORTEST = 1e-18  # step, as a share of the first
_MEMORY = 10  # values, the largest of which must be undercut
_STEPS = 1e-12, 1e12  # range of the step sizes of Barzilai and Borwein


@dataclass(frozen=True, eq=False)
class DescentState:
    """Of `b` problems with `d` parameters."""

    x: Float[Tensor, "b d"]
    value: Float[Tensor, " b"]
    grad: Float[Tensor, "b d"]
    direction: Float[Tensor, "b d"]
    slope: Float[Tensor, " b"]  # of the objective along the direction
    trial: Float[Tensor, " b"]  # share of the direction to evaluate next
    recent: Float[Tensor, "b m"]  # values of the last points
    aimless: Bool[Tensor, " b"]
    num_iterations: Int[Tensor, " b"]
    status: Int[Tensor, " b"]
    active: Bool[Tensor, " b"]


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent with backtracking.

    Args:
        lr: The first step tried.
        gtol: Converged where no gradient entry exceeds it.
    """

    lr: float = 1.0
    gtol: float = 1e-6

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If the step is not positive.
        """
        if not self.lr > 0:
            raise ValueError(f"`lr` must be positive, got {self.lr}.")

    def init(
        self, x: Float[Tensor, "b d"], value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> DescentState:
        """State at the start, from the value and gradient there."""
        counts = torch.zeros(len(x), dtype=torch.long, device=x.device)
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        state = DescentState(
            x=x,
            value=value,
            grad=grad,
            direction=-grad,
            slope=-grad.square().sum(dim=-1),
            trial=torch.full_like(value, self.lr),
            recent=value[:, None].expand(-1, self._memory).contiguous(),
            aimless=finite,
            num_iterations=counts,
            status=torch.where(finite, Status.OK, Status.NON_FINITE),
            active=finite,
        )
        return self._begun(state)

    def point(self, state: DescentState) -> Float[Tensor, "b d"]:
        """Where the objective is to be evaluated next."""
        return state.x + state.trial[:, None] * state.direction

    def step(
        self, state: DescentState, value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> DescentState:
        """Digest the value and gradient at `point(state)`."""
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        bound = state.recent.amax(dim=-1) + _DECREASE * state.trial * state.slope
        rounding = 4 * torch.finfo(value.dtype).eps * state.value.abs()
        smaller = (value <= state.value + rounding) & (_size(grad) < _size(state.grad))
        accepted = state.active & finite & ((value <= bound) | smaller)
        halved = state.active & ~accepted
        stuck = halved & (state.trial <= _SHORTEST * self.lr)
        floor = torch.finfo(value.dtype).eps ** 0.5 * state.value.abs().clamp(min=1.0)
        lost = stuck & (self._residual(state) > floor)
        one = accepted[:, None]
        recent = torch.cat([state.recent[:, 1:], value[:, None]], dim=1)
        moved = replace(
            state,
            x=torch.where(one, self.point(state), state.x),
            value=torch.where(accepted, value, state.value),
            grad=torch.where(one, grad, state.grad),
            trial=torch.where(halved, 0.5 * state.trial, state.trial),
            recent=torch.where(one, recent, state.recent),
            aimless=accepted,
            num_iterations=state.num_iterations + accepted,
            status=state.status | torch.where(lost, Status.NOT_CONVERGED, Status.OK),
            active=state.active & ~stuck,
        )
        return self._next(state, moved, accepted)

    _memory = 1

    def _begun(self, state: DescentState) -> DescentState:
        return replace(state, active=state.active & (self._residual(state) > self.gtol))

    def _next(self, before: DescentState, state: DescentState, accepted: Tensor) -> DescentState:
        """Direction and first trial at a new point."""
        return replace(
            state,
            direction=-state.grad,
            slope=-state.grad.square().sum(dim=-1),
            trial=torch.where(accepted, 2 * state.trial, state.trial),
            active=state.active & (self._residual(state) > self.gtol),
        )

    def _residual(self, state: DescentState) -> Float[Tensor, " b"]:
        """What is zero at an optimum."""
        return _size(state.grad)


@dataclass(frozen=True)
class SteepestDescent(GradientDescent):
    """Gradient descent with the step that is exact on quadratics.

    It needs second derivatives; where the curvature along the gradient is not positive, or the
    value does not fall, it backtracks.
    """

    def _next(self, before: DescentState, state: DescentState, accepted: Tensor) -> DescentState:
        return replace(super()._next(before, state, accepted), trial=state.trial)

    def aimed(
        self, state: DescentState, rows: Int[Tensor, " k"], hessian: Float[Tensor, "k d d"]
    ) -> DescentState:
        """The exact steps of these problems."""
        grad = state.grad[rows]
        bend = torch.einsum("ki,kij,kj->k", grad, hessian, grad)
        exact = grad.square().sum(dim=-1) / bend
        trial = torch.where((bend > 0) & exact.isfinite(), exact, self.lr)
        return replace(
            state,
            trial=state.trial.index_copy(0, rows, trial),
            aimless=state.aimless.index_fill(0, rows, False),
        )


@dataclass(frozen=True)
class ProjectedGradient(GradientDescent):
    """Spectral projected gradients inside a box.

    Args:
        lr: The first step tried.
        gtol: Converged where no entry of x − P(x − g) exceeds it.
        lower: Ends of the box, broadcast over ``(b, d)``.
        upper: Ends of the box.
    """

    lower: Tensor | float = -torch.inf
    upper: Tensor | float = torch.inf

    _memory = _MEMORY

    def _projected(self, x: Tensor) -> Tensor:
        lower, upper = torch.as_tensor(self.lower).to(x), torch.as_tensor(self.upper).to(x)
        return torch.minimum(torch.maximum(x, lower), upper)

    def _begun(self, state: DescentState) -> DescentState:
        step = self.lr / _size(state.grad).clamp(min=1.0)
        return super()._begun(self._toward(state, step))

    def _toward(self, state: DescentState, step: Tensor) -> DescentState:
        direction = self._projected(state.x - step[:, None] * state.grad) - state.x
        slope = (direction * state.grad).sum(dim=-1)
        return replace(state, direction=direction, slope=slope, trial=torch.ones_like(step))

    def _next(self, before: DescentState, state: DescentState, accepted: Tensor) -> DescentState:
        s, y = state.x - before.x, state.grad - before.grad
        step = s.square().sum(dim=-1) / (s * y).sum(dim=-1)
        step = torch.where((step > 0) & step.isfinite(), step, _STEPS[1]).clamp(*_STEPS)
        turned = self._toward(state, step)
        one = accepted[:, None]
        return replace(
            state,
            direction=torch.where(one, turned.direction, state.direction),
            slope=torch.where(accepted, turned.slope, state.slope),
            trial=torch.where(accepted, turned.trial, state.trial),
            active=state.active & (self._residual(state) > self.gtol),
        )

    def _residual(self, state: DescentState) -> Float[Tensor, " b"]:
        return _size(state.x - self._projected(state.x - state.grad))


def _size(t: Tensor) -> Tensor:
    return t.abs().amax(dim=-1)

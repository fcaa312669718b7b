r"""Newton's method for a batch of problems, damped by a line search, and at home on saddles.

    p = −|H|⁻¹ g,    |H| = V |Λ| Vᵀ

A positive definite H is factorised as it is, and p is Newton's step. Of an indefinite one the
eigenvalues' sizes are taken, so that p leaves saddles along negative curvature; where g = 0
exactly, p is the eigenvector of the least eigenvalue. Steps are halved until the value falls.

Nocedal & Wright (2006), Numerical optimization, algorithm 3.2; Dauphin et al. (2014), Identifying
and attacking the saddle point problem, NeurIPS 27, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.status import Status

_DECREASE = 1e-4  # share of the promised decrease that a step must reach
_MAX_HALVINGS = 40
_FLAT = 1e-8  # of the largest eigenvalue: below it there is no curvature to divide by
_FAR = 1e-4  # of 1 + |x|: a longer Newton step says that the optimum is elsewhere
_ROUNDING = 64  # units of rounding that a gradient may consist of, in units of the curvature
_RUNS = 20  # steps with a gradient of nothing, none of them short, that go to infinity


@dataclass(frozen=True, eq=False)
class NewtonState:
    """Of `b` problems with `d` parameters."""

    x: Float[Tensor, "b d"]
    value: Float[Tensor, " b"]
    grad: Float[Tensor, "b d"]
    direction: Float[Tensor, "b d"]
    slope: Float[Tensor, " b"]  # of the objective along the direction
    bend: Float[Tensor, " b"]  # its curvature along it, where that is negative
    trial: Float[Tensor, " b"]  # share of the direction to evaluate next
    aimless: Bool[Tensor, " b"]  # whether the direction is still to be found at x
    num_far: Int[Tensor, " b"]
    num_iterations: Int[Tensor, " b"]
    status: Int[Tensor, " b"]
    active: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Newton:
    """Settings of the method, which needs d × d second derivatives.

    Args:
        gtol: Converged where no gradient entry exceeds it (or the gradient is all rounding, in
            units in which the curvature is one), the curvature is not negative, and the step at
            hand is short: towards infinity a gradient vanishes too.
        damping: Added to the diagonal of the Hessian.
    """

    gtol: float = 1e-8
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is negative.
        """
        if not (self.gtol >= 0 and self.damping >= 0):
            raise ValueError(
                f"`Newton` needs gtol and damping of at least 0, got {self.gtol}, {self.damping}."
            )

    def init(
        self, x: Float[Tensor, "b d"], value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> NewtonState:
        """State at the start, from the value and gradient there."""
        counts = torch.zeros(len(x), dtype=torch.long, device=x.device)
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        return NewtonState(
            x=x,
            value=value,
            grad=grad,
            direction=torch.zeros_like(x),
            slope=torch.zeros_like(value),
            bend=torch.zeros_like(value),
            trial=torch.ones_like(value),
            aimless=finite,
            num_far=counts,
            num_iterations=counts,
            status=torch.where(finite, Status.OK, Status.NON_FINITE),
            active=finite,
        )

    def point(self, state: NewtonState) -> Float[Tensor, "b d"]:
        """Where the objective is to be evaluated next."""
        return state.x + state.trial[:, None] * state.direction

    def step(
        self, state: NewtonState, value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> NewtonState:
        """Digest the value and gradient at `point(state)`."""
        t = state.trial
        promised = t * state.slope + 0.5 * t.square() * state.bend
        rounding = 4 * torch.finfo(value.dtype).eps * state.value.abs()
        enough = value <= state.value + _DECREASE * promised
        # near the optimum values differ by rounding only: then the gradients decide
        smaller = (value <= state.value + rounding) & (_size(grad) <= _size(state.grad))
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        accepted = state.active & finite & (enough | smaller)
        halved = state.active & ~accepted
        stuck = halved & (t <= 0.5**_MAX_HALVINGS)
        floor = torch.finfo(value.dtype).eps ** 0.5 * state.value.abs().clamp(min=1.0)
        lost = stuck & (_size(state.grad) > floor)
        # a gradient of nearly nothing, and an optimum that is far away still
        away = _size(state.direction) > _FAR * (1 + _size(state.x))
        away = away & (_size(state.grad) <= torch.finfo(value.dtype).eps ** (1 / 3))
        why = torch.where(away, Status.UNBOUNDED, Status.NOT_CONVERGED)
        one = accepted[:, None]
        return replace(
            state,
            x=torch.where(one, self.point(state), state.x),
            value=torch.where(accepted, value, state.value),
            grad=torch.where(one, grad, state.grad),
            trial=torch.where(accepted, 1.0, torch.where(halved, 0.5 * t, t)),
            aimless=accepted,
            num_iterations=state.num_iterations + accepted,
            status=state.status | torch.where(lost, why, Status.OK),
            active=state.active & ~stuck,
        )

    def aimed(
        self, state: NewtonState, rows: Int[Tensor, " k"], hessian: Float[Tensor, "k d d"]
    ) -> NewtonState:
        """New directions for these problems, from the Hessians where they are."""
        grad, x = state.grad[rows], state.x[rows]
        direction, least, known = self._directions(grad, hessian)
        slope = (direction * grad).sum(dim=-1)
        curved = torch.einsum("kd,kde,ke->k", direction, hessian, direction)
        # in units in which the curvature is one, a gradient of rounding
        eps = _ROUNDING * torch.finfo(x.dtype).eps
        floor = eps**2 * state.value[rows].abs().clamp(min=1.0)
        flat = (_size(grad) <= self.gtol) | ((least >= 0) & (-slope <= floor))
        short = _size(direction) <= _FAR * (1 + _size(x))
        convex = least >= 0
        far = torch.where(flat & convex & ~short, state.num_far[rows] + 1, 0)
        endless = far > _RUNS
        done = (flat & convex & short) | endless | ~known
        flags = torch.where(endless, Status.UNBOUNDED, Status.OK)
        flags = flags | torch.where(known, Status.OK, Status.NON_FINITE)
        return replace(
            state,
            direction=state.direction.index_copy(0, rows, direction),
            slope=state.slope.index_copy(0, rows, slope),
            bend=state.bend.index_copy(0, rows, curved.clamp(max=0.0)),
            trial=state.trial.index_fill(0, rows, 1.0),
            aimless=state.aimless.index_fill(0, rows, False),
            num_far=state.num_far.index_copy(0, rows, far),
            status=state.status.index_copy(0, rows, state.status[rows] | flags),
            active=state.active.index_copy(0, rows, ~done),
        )

    def _directions(self, grad: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps, a number as negative as the curvature is, and where all is finite."""
        d = grad.shape[-1]
        damped = hessian + self.damping * torch.eye(d, dtype=grad.dtype, device=grad.device)
        known = damped.isfinite().all(dim=-1).all(dim=-1)
        damped = torch.where(known[:, None, None], damped, torch.eye(d).to(damped))
        factor, info = torch.linalg.cholesky_ex(damped)
        direction = -torch.cholesky_solve(grad[..., None], factor)[..., 0]
        least = torch.zeros_like(grad[:, 0])
        good = (info == 0) & direction.isfinite().all(dim=-1)
        if not bool(good.all()):
            direction, least = direction.clone(), least.clone()
            direction[~good], least[~good] = _by_spectrum(grad[~good], damped[~good])
        return direction, least, known


def _by_spectrum(grad: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(hessian)
    largest = _size(values).clamp(min=torch.finfo(values.dtype).tiny)
    least = torch.where(values[:, 0] < -_FLAT * largest, values[:, 0], 0.0)
    sizes = values.abs().clamp(min=_FLAT * largest[:, None])
    along = (vectors.mT @ grad[..., None])[..., 0]
    direction = -(vectors @ (along / sizes)[..., None])[..., 0]
    # on a saddle itself there is nothing but curvature to go by
    still = (least < 0) & (_size(direction) <= torch.finfo(values.dtype).eps ** 0.5)
    return torch.where(still[:, None], vectors[..., 0], direction), least


def _size(t: Tensor) -> Tensor:
    return t.abs().amax(dim=-1)

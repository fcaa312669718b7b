r"""Limited-memory BFGS with a strong-Wolfe line search, for a batch of problems at once.

    p = −H g,    H = γI + [S γY] [[R⁻ᵀ(D + γYᵀY)R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [S γY]ᵀ

with the last steps S and gradient differences Y, R = triu(SᵀY), D = diag(SᵀY). Every call of
`step` spends exactly one evaluation a problem; each problem is at its own place of its own line
search.

Byrd, Nocedal & Schnabel (1994), Representations of quasi-Newton matrices, Theorem 2.2;
Nocedal & Wright (2006), Numerical Optimization, ch. 3 and 7; the rounding-safe decrease test is
Hager & Zhang (2005), A new conjugate gradient method, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.status import Status

_MAX_TRIALS = 30  # evaluations in one line search
_GROWTH = 4.0  # of a step that is still going down
_DECREMENT = 1e-4  # Newton's decrement gᵀHg, twice the decrease that a quadratic would still allow
_MARGIN = 0.1  # an interpolated step keeps this share of the bracket from its ends


@dataclass(frozen=True, eq=False)
class LBFGSState:
    """Memory of a batch of runs; `b` problems, `d` parameters, `m` stored pairs."""

    x: Float[Tensor, "b d"]
    value: Float[Tensor, " b"]
    grad: Float[Tensor, "b d"]
    steps: Float[Tensor, "b m d"]  # S
    changes: Float[Tensor, "b m d"]  # Y
    direction: Float[Tensor, "b d"]
    slope: Float[Tensor, " b"]  # of the objective along the direction, at x
    trial: Float[Tensor, " b"]  # step length to evaluate next
    low: Float[Tensor, "b 3"]  # step, value, slope at the bracket's lower end
    high: Float[Tensor, "b 3"]  # and at its upper end (step inf: none yet)
    num_trials: Int[Tensor, " b"]
    num_iterations: Int[Tensor, " b"]
    status: Int[Tensor, " b"]
    active: Bool[Tensor, " b"]


@dataclass(frozen=True)
class LBFGS:
    """Settings of the method.

    Args:
        memory: Pairs kept.
        gtol: Converged where no gradient entry exceeds it, and the step at hand promises no
            decrease worth having: towards infinity a gradient vanishes too.
        decrease: Share of the promised decrease that a step must reach (first Wolfe constant).
        curvature: Share of the slope that may remain (second Wolfe constant).
    """

    memory: int = 10
    gtol: float = 1e-8
    decrease: float = 1e-4
    curvature: float = 0.9

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If a setting is outside its range.
        """
        if not self.gtol >= 0:
            raise ValueError(f"`LBFGS(gtol=...)` must be at least 0, got {self.gtol}.")
        if self.memory < 1:
            raise ValueError(f"`LBFGS(memory=...)` must be at least 1, got {self.memory}.")
        if not 0 < self.decrease < self.curvature < 1:
            raise ValueError(
                "`LBFGS` needs 0 < decrease < curvature < 1, "
                f"got decrease={self.decrease}, curvature={self.curvature}."
            )

    def init(
        self, x: Float[Tensor, "b d"], value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> LBFGSState:
        """State at the start, from the value and gradient there."""
        b, d = x.shape
        pairs = x.new_zeros(b, self.memory, d)
        counts = torch.zeros(b, dtype=torch.long, device=x.device)
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        state = LBFGSState(
            x=x,
            value=value,
            grad=grad,
            steps=pairs,
            changes=pairs,
            direction=x,
            slope=value,
            trial=value,
            low=x.new_zeros(b, 3),
            high=x.new_zeros(b, 3),
            num_trials=counts,
            num_iterations=counts,
            status=torch.where(finite, Status.OK, Status.NON_FINITE),
            active=finite,
        )
        return self._aimed(state, None)

    def step(
        self, state: LBFGSState, value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> LBFGSState:
        """Digest the value and gradient at `point(state)`."""
        slope = (grad * state.direction).sum(dim=-1)
        t = state.trial
        finite = value.isfinite() & slope.isfinite()
        low_enough = self._decreased(state, value, slope) & finite
        flat_enough = slope.abs() <= -self.curvature * state.slope
        accepted = low_enough & flat_enough & state.active
        if bool(accepted.all()):  # the usual case, in which nothing need be picked
            return self._aimed(self._all_moved(state, value, grad), None)
        searching = state.active & ~accepted
        state = self._bracketed(state, value, slope, ~low_enough | (slope > 0))
        state, retried = self._stopped_searches(state, searching)
        moved = self._moved(state, accepted, t, value, grad)
        return self._aimed(moved, accepted | retried)

    def _bracketed(
        self, state: LBFGSState, value: Tensor, slope: Tensor, too_far: Tensor
    ) -> LBFGSState:
        here = torch.stack([state.trial, value, slope], dim=-1)
        low = torch.where(too_far[:, None], state.low, here)
        high = torch.where(too_far[:, None], here, state.high)
        trial, tried = _next_trial(low, high), state.num_trials + state.active
        return replace(state, low=low, high=high, trial=trial, num_trials=tried)

    def point(self, state: LBFGSState) -> Float[Tensor, "b d"]:
        """Where the objective is to be evaluated next."""
        return state.x + state.trial[:, None] * state.direction

    def _converged(self, grad: Tensor, slope: Tensor) -> Tensor:
        return (_size(grad) <= self.gtol) & (-slope <= _DECREMENT)

    def _decreased(self, state: LBFGSState, value: Tensor, slope: Tensor) -> Tensor:
        promised = state.value + self.decrease * state.trial * state.slope
        # near the optimum values differ by rounding only: then the slopes decide
        rounding = 4 * torch.finfo(value.dtype).eps * state.value.abs()
        by_slope = (value <= state.value + rounding) & (
            slope <= (2 * self.decrease - 1) * state.slope
        )
        return (value <= promised) | by_slope

    def _moved(
        self, state: LBFGSState, accepted: Tensor, t: Tensor, value: Tensor, grad: Tensor
    ) -> LBFGSState:
        s = t[:, None] * state.direction
        y = grad - state.grad
        sy = (s * y).sum(dim=-1)
        keep = accepted & (sy > torch.finfo(sy.dtype).eps * (y * y).sum(dim=-1))
        one = accepted[:, None]
        return replace(
            state,
            x=torch.where(one, state.x + s, state.x),
            value=torch.where(accepted, value, state.value),
            grad=torch.where(one, grad, state.grad),
            steps=_pushed(state.steps, s, keep),
            changes=_pushed(state.changes, y, keep),
            num_iterations=state.num_iterations + accepted,
        )

    def _all_moved(self, state: LBFGSState, value: Tensor, grad: Tensor) -> LBFGSState:
        s = state.trial[:, None] * state.direction
        y = grad - state.grad
        keep = (s * y).sum(dim=-1) > torch.finfo(y.dtype).eps * (y * y).sum(dim=-1)
        return replace(
            state,
            x=state.x + s,
            value=value,
            grad=grad,
            steps=_pushed(state.steps, s, keep),
            changes=_pushed(state.changes, y, keep),
            num_iterations=state.num_iterations + 1,
        )

    def _stopped_searches(
        self, state: LBFGSState, searching: Tensor
    ) -> tuple[LBFGSState, Bool[Tensor, " b"]]:
        """A search that found no end: forget the memory once, then give up where it stands."""
        width = state.high[:, 0] - state.low[:, 0]
        vanished = width <= torch.finfo(width.dtype).eps * state.low[:, 0]
        exhausted = (state.num_trials >= _MAX_TRIALS) | vanished
        failed = searching & exhausted
        # every longer step was lower still, for ever or up to where the objective ends
        downhill = failed & (state.low[:, 0] > 0) & ~state.high[:, 1].isfinite()
        gone = failed & (downhill | (state.changes[:, -1].abs().amax(dim=-1) == 0))
        retried = failed & ~gone
        if not bool(failed.any()):
            return state, retried
        # at the rounding floor of the value no smaller gradient can be had
        floor = torch.finfo(state.value.dtype).eps ** 0.5 * state.value.abs().clamp(min=1.0)
        unfinished = gone & ~downhill & (_size(state.grad) > floor)
        flags = torch.where(unfinished, Status.NOT_CONVERGED, Status.OK)
        stopped = replace(
            state,
            steps=torch.where(retried[:, None, None], 0.0, state.steps),
            changes=torch.where(retried[:, None, None], 0.0, state.changes),
            status=state.status | torch.where(downhill, Status.UNBOUNDED, flags),
            active=state.active & ~gone,
        )
        return stopped, retried

    def _aimed(self, state: LBFGSState, chosen: Tensor | None) -> LBFGSState:
        """New search direction for the chosen problems (None: all), and a fresh bracket."""
        if chosen is not None and not bool(chosen.any()):
            return state
        fresh = state.changes[:, -1].abs().amax(dim=-1) == 0
        p = -inverse_hessian_product(state.steps, state.changes, state.grad)
        slope = (p * state.grad).sum(dim=-1)
        first = 1.0 / state.grad.norm(dim=-1).clamp(min=1.0)
        zero = torch.zeros_like(slope)
        none = torch.full_like(slope, math.inf)
        new = {
            "direction": p,
            "slope": slope,
            "trial": torch.where(fresh, first, 1.0),
            "low": torch.stack([zero, state.value, slope], dim=-1),
            "high": torch.stack([none, none, zero], dim=-1),
            "num_trials": torch.zeros_like(state.num_trials),
        }
        done = self._converged(state.grad, slope)
        if chosen is None:
            return replace(state, **new, active=state.active & ~done)
        one = chosen[:, None]
        picked = {
            name: torch.where(one if t.ndim == 2 else chosen, t, getattr(state, name))
            for name, t in new.items()
        }
        return replace(state, **picked, active=state.active & ~(chosen & done))


def inverse_hessian_product(
    steps: Float[Tensor, "b m d"], changes: Float[Tensor, "b m d"], grad: Float[Tensor, "b d"]
) -> Float[Tensor, "b d"]:
    """H g from the stored pairs, oldest first; rows of zeros are pairs not yet stored."""
    S, Y, g = steps, changes, grad[..., None]
    SY = S @ Y.mT  # (b, m, m)
    YY = Y @ Y.mT
    D = SY.diagonal(dim1=-2, dim2=-1)
    last = D[..., -1] > 0
    gamma = torch.where(last, D[..., -1] / YY[..., -1, -1].clamp(min=1e-300), 1.0)[:, None, None]
    R = SY.triu() + torch.diag_embed((D == 0).to(D.dtype))
    a, b = S @ g, Y @ g
    u = torch.linalg.solve_triangular(R, a, upper=True)
    v = D[..., None] * u + gamma * (YY @ u - b)
    v = torch.linalg.solve_triangular(R.mT, v, upper=False)
    return (gamma * (g - Y.mT @ u) + S.mT @ v)[..., 0]


def _pushed(pairs: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep[:, None, None], torch.cat([pairs[:, 1:], new[:, None]], dim=1), pairs)


def _size(grad: Tensor) -> Tensor:
    return grad.abs().amax(dim=-1)


def _next_trial(low: Float[Tensor, "b 3"], high: Float[Tensor, "b 3"]) -> Float[Tensor, " b"]:
    """Minimum of the cubic through both ends of the bracket, kept inside it; growth without one.

    Nocedal & Wright (2006), equation 3.59.
    """
    t0, f0, d0 = low.unbind(dim=-1)
    t1, f1, d1 = high.unbind(dim=-1)
    width = t1 - t0
    theta = d0 + d1 - 3 * (f1 - f0) / width
    root = (theta.square() - d0 * d1).clamp(min=0).sqrt()
    cubic = t1 - width * (d1 + root - theta) / (d1 - d0 + 2 * root)
    inside = torch.clamp(cubic, t0 + _MARGIN * width, t1 - _MARGIN * width)
    # a bracket that ends where the objective is not finite is cut hard
    bisected = t0 + torch.where(f1.isfinite(), 0.5, _MARGIN) * width
    bracketed = torch.where(inside.isfinite(), inside, bisected)
    grown = torch.where(t0 > 0, _GROWTH * t0, 1.0)
    return torch.where(t1.isfinite(), bracketed, grown)

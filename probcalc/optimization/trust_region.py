r"""Trust-region Newton-CG for batches: products with the Hessian, never the matrix.

    min_p  gᵀp + ½ pᵀHp   subject to ‖p‖ ≤ Δ

by conjugate gradients that stop at the edge of the region, along negative curvature, or where the
residual is small enough for quadratic convergence. Steihaug (1983), SIAM J. Numer. Anal. 20;
Nocedal & Wright (2006), algorithms 4.1 and 7.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcalc.status import Status

_ACCEPTED = 1e-4  # share of the promised decrease for which a step is taken
_POOR, _GOOD = 0.25, 0.75  # shares at which the region shrinks and grows
_NARROWEST = 1e-14  # radius over 1 + ‖x‖ at which nothing more can be gained


@dataclass(frozen=True, eq=False)
class TrustRegionState:
    """Of `b` problems with `d` parameters."""

    x: Float[Tensor, "b d"]
    value: Float[Tensor, " b"]
    grad: Float[Tensor, "b d"]
    move: Float[Tensor, "b d"]  # the step to try next
    promised: Float[Tensor, " b"]  # decrease of the model along it
    radius: Float[Tensor, " b"]
    aimless: Bool[Tensor, " b"]
    num_iterations: Int[Tensor, " b"]
    status: Int[Tensor, " b"]
    active: Bool[Tensor, " b"]


@dataclass(frozen=True)
class TrustRegion:
    """Settings of the method, for many parameters.

    Args:
        gtol: Converged where no gradient entry exceeds it.
        radius: Of the first region.
        max_radius: Of the largest.
    """

    gtol: float = 1e-6
    radius: float = 1.0
    max_radius: float = 1e3

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If radii are not positive, or in the wrong order.
        """
        if not 0 < self.radius <= self.max_radius:
            raise ValueError(
                "`TrustRegion` needs 0 < radius <= max_radius, got "
                f"{self.radius}, {self.max_radius}."
            )

    def init(
        self, x: Float[Tensor, "b d"], value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> TrustRegionState:
        """State at the start, from the value and gradient there."""
        counts = torch.zeros(len(x), dtype=torch.long, device=x.device)
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        return TrustRegionState(
            x=x,
            value=value,
            grad=grad,
            move=torch.zeros_like(x),
            promised=torch.zeros_like(value),
            radius=torch.full_like(value, self.radius),
            aimless=finite,
            num_iterations=counts,
            status=torch.where(finite, Status.OK, Status.NON_FINITE),
            active=finite & (_size(grad) > self.gtol),
        )

    def point(self, state: TrustRegionState) -> Float[Tensor, "b d"]:
        """Where the objective is to be evaluated next."""
        return state.x + state.move

    def step(
        self, state: TrustRegionState, value: Float[Tensor, " b"], grad: Float[Tensor, "b d"]
    ) -> TrustRegionState:
        """Digest the value and gradient at `point(state)`."""
        finite = value.isfinite() & grad.isfinite().all(dim=-1)
        rounding = 4 * torch.finfo(value.dtype).eps * state.value.abs()
        share = (state.value - value + rounding) / (state.promised + rounding)
        share = torch.where(finite, share, -1.0)
        length = torch.linalg.vector_norm(state.move, dim=-1)
        at_edge = length >= 0.99 * state.radius
        radius = torch.where(share < _POOR, 0.25 * length, state.radius)
        grown = (2 * state.radius).clamp(max=self.max_radius)
        radius = torch.where((share > _GOOD) & at_edge, grown, radius)
        accepted = state.active & finite & (share > _ACCEPTED)
        one = accepted[:, None]
        x = torch.where(one, self.point(state), state.x)
        new_grad = torch.where(one, grad, state.grad)
        size = 1 + torch.linalg.vector_norm(x, dim=-1)
        stuck = state.active & ~accepted & (radius <= _NARROWEST * size)
        floor = torch.finfo(value.dtype).eps ** 0.5 * state.value.abs().clamp(min=1.0)
        lost = stuck & (_size(state.grad) > floor)
        return replace(
            state,
            x=x,
            value=torch.where(accepted, value, state.value),
            grad=new_grad,
            radius=torch.where(state.active, radius, state.radius),
            aimless=state.active,
            num_iterations=state.num_iterations + accepted,
            status=state.status | torch.where(lost, Status.NOT_CONVERGED, Status.OK),
            active=state.active & ~stuck & (_size(new_grad) > self.gtol),
        )

    def aimed_by_products(
        self,
        state: TrustRegionState,
        rows: Int[Tensor, " k"],
        product: Callable[[Tensor], Tensor],
    ) -> TrustRegionState:
        """Steps of these problems, from products of their Hessians with vectors."""
        move, promised = steihaug(product, state.grad[rows], state.radius[rows])
        return replace(
            state,
            move=state.move.index_copy(0, rows, move),
            promised=state.promised.index_copy(0, rows, promised),
            aimless=state.aimless.index_fill(0, rows, False),
        )


def steihaug(
    product: Callable[[Tensor], Tensor], grad: Float[Tensor, "k d"], radius: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Approximate minima of the models inside their regions, and the decrease promised."""
    p, r = torch.zeros_like(grad), grad
    d, hp = -grad, torch.zeros_like(grad)
    norm = torch.linalg.vector_norm(grad, dim=-1)
    enough = norm * norm.sqrt().clamp(max=0.5)
    running = norm > 0
    for _ in range(2 * grad.shape[-1]):
        hd = product(d)
        bend = (d * hd).sum(dim=-1)
        rr = r.square().sum(dim=-1)
        alpha = rr / bend
        ahead = p + alpha[:, None] * d
        out = (bend <= 0) | (torch.linalg.vector_norm(ahead, dim=-1) >= radius)
        alpha = torch.where(out, _to_edge(p, d, radius), alpha).nan_to_num(0.0)
        go = torch.where(running, alpha, 0.0)[:, None]
        p, hp = p + go * d, hp + go * hd
        r = r + go * hd
        running = running & ~out & (torch.linalg.vector_norm(r, dim=-1) > enough)
        if not bool(running.any()):
            break
        beta = r.square().sum(dim=-1) / rr
        d = torch.where(running[:, None], -r + beta[:, None] * d, d)
    return p, -((grad * p).sum(dim=-1) + 0.5 * (p * hp).sum(dim=-1))


def _to_edge(p: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """The step along d to the edge of the region."""
    a, b = d.square().sum(dim=-1), (p * d).sum(dim=-1)
    c = radius.square() - p.square().sum(dim=-1)
    return (-b + (b.square() + a * c.clamp(min=0.0)).sqrt()) / a


def _size(t: Tensor) -> Tensor:
    return t.abs().amax(dim=-1)

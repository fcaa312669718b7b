r"""Minima under equations and inside boxes: the Lagrangian, augmented, and projection.

    min f(x)   subject to   c(x) = 0,   l ≤ x ≤ u

    L(x, λ) = f(x) + λᵀc(x) + ½ ρ ‖c(x)‖²,   λ ← λ + ρ c(x),   ρ ← 10 ρ where c shrinks too slowly

each L minimised inside the box by projected gradients, or by L-BFGS where there is no box. At a
minimum ∇f + Jᵀλ vanishes but for entries at an end of the box that point outward (Karush 1939;
Kuhn & Tucker 1951). Nocedal & Wright (2006), algorithm 17.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value, vmap

from probcalc.optimization.descent import ProjectedGradient
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import Method, descend
from probcalc.status import Status

_ROUNDS = 40
_STIFFER = 10.0
_ENOUGH = 0.25  # of the last violation: what a round must reach for ρ to stay
_STIFFEST = 1e12


@dataclass(frozen=True, eq=False)
class ConstrainedSolution:
    """Where it ended; shapes start with ``(*batch)``.

    Args:
        x: The point, inside the box.
        value: Objective there.
        multipliers: λ of the equations, ``(*batch, m)``: −∂f*/∂c.
        violation: Largest absolute entry of c.
        residual: Largest entry of x − P(x − ∇L), zero at a minimum.
        num_evals: Of the objective with its gradient, per problem.
        status: `NOT_CONVERGED` where either is above its tolerance.
    """

    x: Float[Tensor, "*batch d"]
    value: Float[Tensor, "*batch"]
    multipliers: Float[Tensor, "*batch m"]
    violation: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    num_evals: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]

    @property
    def ok(self) -> bool:
        """Whether every problem of the batch converged."""
        return Status.joined(self.status) == Status.OK


def minimize_constrained(
    fn: Callable[..., Tensor],
    init: Tensor,
    *,
    lower: Tensor | float | None = None,
    upper: Tensor | float | None = None,
    equality: Callable[..., Tensor] | None = None,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    gtol: float = 1e-6,
    ctol: float = 1e-8,
    max_evals: int = 5_000,
) -> ConstrainedSolution:
    """Minimise a smooth function inside a box and on a surface, or a batch of them.

    Args:
        fn: ``fn(x, *args)`` for one problem returns a scalar.
        init: Start ``(*batch, d)``; it is moved into the box.
        lower: Lower ends, broadcast over ``(d)``.
        upper: Upper ends.
        equality: ``equality(x, *args)`` returns the vector c that shall be zero.
        args: Further tensors with the same leading axes.
        batch_dims: Number of leading batch axes.
        gtol: For the residual.
        ctol: For the violation.
        max_evals: Evaluations in each round.

    Raises:
        ValueError: If the box is empty, the objective no scalar or c no vector.

    >>> found = minimize_constrained(
    ...     lambda x: x.square().sum(), torch.zeros(2), equality=lambda x: x.sum()[None] - 1
    ... )
    >>> found.x.round(decimals=4), found.multipliers.round(decimals=4)
    (tensor([0.5000, 0.5000]), tensor([-1.]))
    """
    batch, d = init.shape[:batch_dims], init.shape[-1]
    x = init.reshape(-1, d)
    own = tuple(a.reshape(-1, *a.shape[batch_dims:]) for a in args)
    low, high = _box(lower, upper, x)
    box = ProjectedGradient(gtol=0.1 * gtol, lower=low, upper=high)
    free = lower is None and upper is None
    x = torch.minimum(torch.maximum(x, low), high)
    constraint = equality or (lambda z, *_: z[:0])
    c = _violations(constraint, x, own)
    multipliers = torch.zeros_like(c)
    stiffness = torch.full_like(x[:, 0], 10.0)
    evals = torch.zeros(len(x), dtype=torch.long, device=x.device)
    method: Method = LBFGS(gtol=0.1 * gtol) if free else box
    for _ in range(_ROUNDS if equality is not None else 1):
        oracle = _augmented(fn, constraint, own, multipliers, stiffness)
        found = descend(oracle, x, method=method, max_evals=max_evals)
        x, evals = found.x, evals + found.num_evals
        before, c = _largest(c), _violations(constraint, x, own)
        multipliers = multipliers + stiffness[:, None] * c
        if bool((_largest(c) <= ctol).all()):
            break
        slow = _largest(c) > _ENOUGH * before
        stiffer = (_STIFFER * stiffness).clamp(max=_STIFFEST)
        stiffness = torch.where(slow, stiffer, stiffness)
    every = torch.arange(len(x), device=x.device)
    plain = _augmented(fn, constraint, own, multipliers, torch.zeros_like(stiffness))
    _, slope = plain(x, every)
    value = _augmented(fn, constraint, own, 0 * multipliers, 0 * stiffness)(x, every)[0]
    residual = _largest(x - torch.minimum(torch.maximum(x - slope, low), high))
    bad = (residual > gtol) | (_largest(c) > ctol) | ~value.isfinite()
    return ConstrainedSolution(
        x.reshape(*batch, d),
        value.reshape(batch),
        multipliers.reshape(*batch, c.shape[-1]),
        _largest(c).reshape(batch),
        residual.reshape(batch),
        evals.reshape(batch),
        torch.where(bad, Status.NOT_CONVERGED, Status.OK).reshape(batch),
    )


def _box(lower: Any, upper: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.as_tensor(-torch.inf if lower is None else lower).to(x)
    high = torch.as_tensor(torch.inf if upper is None else upper).to(x)
    if bool((low > high).any()):
        raise ValueError("the box is empty: `lower` is above `upper`.")
    return low, high


def _violations(constraint: Callable[..., Tensor], x: Tensor, own: tuple) -> Tensor:
    c = vmap(constraint)(x, *own)
    if c.ndim != 2:
        raise ValueError(f"`equality` must return a vector, got shape {tuple(c.shape[1:])}.")
    return c


def _augmented(
    fn: Callable[..., Tensor],
    constraint: Callable[..., Tensor],
    own: tuple,
    multipliers: Tensor,
    stiffness: Tensor,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def single(z: Tensor, weight: Tensor, rho: Tensor, *given: Tensor) -> Tensor:
        value = fn(z, *given)
        if value.ndim:
            raise ValueError(
                f"the objective must return a scalar, got shape {tuple(value.shape)}."
            )
        c = constraint(z, *given)
        return value + (weight * c).sum() + 0.5 * rho * c.square().sum()

    gradient = vmap(grad_and_value(single))

    def oracle(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        slope, value = gradient(x, multipliers[rows], stiffness[rows], *(a[rows] for a in own))
        return value, slope

    return oracle


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(dim=-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])

r"""One stochastic step as a flat graph: from parameters and base draws to value and gradient.

The guide's map, the density, the objective and the derivatives of all of them are traced once for
a number of draws and run afterwards without autograd. A graph is compared with the functions at
fresh numbers; where the trace fails or differs, they are called as they are.

Parameters are p = base + scale ∘ x for the optimiser's x, whose step sizes are then in units of
the guide's own standard errors: scale_i = 1/√F_ii with F the guide's Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc._tree import Layout
from probcalc.differentiation.graph import direct, is_random, mutates
from probcalc.differentiation.simplify import simplify
from probcalc.inference.objectives import Objective

# x, base and scale (r, p), base draws (r, n, b), numbers of rows -> values (r), gradients (r, p)
Call = Callable[..., tuple[Tensor, Tensor]]
ValueAndGrad = Callable[..., tuple[Tensor, Tensor]]

_FLOOR = 1e-6  # of an information, against the largest: such parameters do not matter yet
_FISHER_DRAWS, _FISHER_ELEMENTS = 64, 2**22


@dataclass(frozen=True, eq=False)
class Step:
    """A step of one objective.

    Args:
        call: See `Call`; a fit whose value or gradient is not finite gets NaN and zeros.
        is_traced: Whether it is a graph.
    """

    call: Call
    is_traced: bool


def step_of(
    value_and_grad: ValueAndGrad,
    guide: Any,
    layout: Layout,
    objective: Objective,
    example: tuple[Tensor, ...],
    *,
    trace: bool = True,
) -> Step:
    """Build the step, traced if it can be.

    Args:
        value_and_grad: Of the density at rows, with the rows of the data behind them, if any.
        guide: The family.
        layout: Of its parameters.
        objective: What goes up.
        example: Arguments of `Call`.
        trace: Whether to try.
    """
    plain = _plain(value_and_grad, guide, layout, objective)
    if not trace:
        return Step(plain, False)
    try:
        with torch.no_grad():
            graph = make_fx(plain)(*example)
            if is_random(graph.graph):
                return Step(plain, False)
            if not mutates(graph.graph):
                graph = direct(simplify(graph, *example))
            x, base, scale, eps, *rows = example
            fresh = (x + 0.01, base, scale, 0.9 * eps.roll(1, dims=-2), *rows)
            expected, got = plain(*fresh), graph(*fresh)
    except Exception:  # noqa: BLE001 (whatever the functions raise under tracing)
        return Step(plain, False)
    same = all(
        torch.allclose(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)
        for a, b in zip(expected, got, strict=True)
    )
    return Step(graph if same else plain, same)


def linked(value_and_grad: ValueAndGrad, *rows: Tensor) -> Callable[[Tensor], Tensor]:
    """The log density as a function whose first derivative is the gradient handed over."""

    def log_density(z: Tensor) -> Tensor:
        value, grad = value_and_grad(z.detach(), *rows)
        return _Linked.apply(z, value.detach(), grad.detach())

    return log_density


def fisher_scale(
    guide: Any, params: dict[str, Tensor], dim: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """1/√F_ii of every parameter ``(r, ...)``, F = E[(∂ log q)²] from a few draws."""
    if not getattr(guide, "has_density", True):
        return {name: torch.ones_like(t) for name, t in params.items()}
    first = next(iter(params.values()))
    r, b = len(first), guide.base_dim(dim)
    size = sum(t.numel() for t in params.values())
    n = max(4, min(_FISHER_DRAWS, _FISHER_ELEMENTS // size))
    strata = getattr(guide, "num_components", 1)
    eps = torch.randn(r, n, strata, b, generator=generator, dtype=first.dtype, device=first.device)
    with torch.enable_grad():
        leaves = {
            k: t.detach()[:, None].expand(r, n, *t.shape[1:]).clone().requires_grad_()
            for k, t in params.items()
        }
        fixed = {k: t.detach() for k, t in leaves.items()}
        z = guide.transform(fixed, eps)[0].detach()
        log_q = guide.log_prob(leaves, z).sum()
        grads = torch.autograd.grad(log_q, list(leaves.values()), allow_unused=True)
    # a sum over s strata has s times the information of one draw
    info = {
        k: torch.zeros_like(params[k]) if g is None else g.square().mean(dim=1) / strata
        for k, g in zip(leaves, grads, strict=True)
    }
    largest = max(float(f.max()) for f in info.values())
    floor = _FLOOR * largest if largest > 0 else 1.0
    return {k: torch.where(f > floor, f.clamp(min=floor).rsqrt(), 1.0) for k, f in info.items()}


def _plain(value_and_grad: ValueAndGrad, guide: Any, layout: Layout, objective: Objective) -> Call:
    def call(
        x: Float[Tensor, "r p"],
        base: Float[Tensor, "r p"],
        scale: Float[Tensor, "r p"],
        eps: Float[Tensor, "r n b"],
        *rows: Tensor,
    ) -> tuple[Float[Tensor, " r"], Float[Tensor, "r p"]]:
        with torch.enable_grad():
            leaf = (base + scale * x).detach().requires_grad_()
            density = linked(value_and_grad, *rows)
            value = objective.terms(density, guide, layout.unflatten(leaf), eps).mean(dim=-1)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        value, grad = value.detach(), scale * grad
        zero = 0.0 * value + (0.0 * grad).sum(dim=-1)  # NaN where one of them is not finite
        return value + zero, torch.where((zero == 0)[:, None], grad, 0.0)

    return call


class _Linked(torch.autograd.Function):
    """A value at rows, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "*n d"], value: Float[Tensor, "*n"], grad: Tensor
    ) -> Tensor:
        ctx.save_for_backward(grad)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return out[..., None] * ctx.saved_tensors[0], None, None

"""The one loop for deterministic objectives.

`minimize` takes a function written for one problem and solves a batch; `descend` is the loop
itself, for callers that have a batched value and gradient already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value, hessian, vmap

from probcalc._tree import Layout
from probcalc.optimization.lbfgs import LBFGS
from probcalc.result import Solution
from probcalc.status import Status

# oracle(x, rows): value and gradient of the problems `rows` at the points x
Oracle = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Curvature = Callable[[Tensor, Tensor], Tensor]  # (x, rows) to Hessians


@runtime_checkable
class Method(Protocol):
    """What `descend` asks of a method: a functional core with one evaluation a step."""

    def init(self, x: Tensor, value: Tensor, grad: Tensor) -> Any:
        """State at the start."""
        ...

    def point(self, state: Any) -> Tensor:
        """Where to evaluate next."""
        ...

    def step(self, state: Any, value: Tensor, grad: Tensor) -> Any:
        """State after that evaluation."""
        ...


@runtime_checkable
class SecondOrder(Method, Protocol):
    """A method whose state says where it is `aimless`: there it needs the Hessian."""

    def aimed(self, state: Any, rows: Tensor, hessian: Tensor) -> Any:
        """State with directions for the problems `rows`."""
        ...


def minimize(
    fn: Callable[..., Tensor],
    init: Tensor | dict[str, Tensor],
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    method: Method | None = None,
    max_evals: int = 10_000,
) -> Solution:
    """Minimise a smooth function, or a batch of them at once.

    Args:
        fn: ``fn(x, *args)`` for one problem returns a scalar.
        init: Start; its leading `batch_dims` axes are the batch.
        args: Further tensors, each with the same leading axes.
        batch_dims: Number of leading batch axes of `init` and `args`.
        method: Default `LBFGS()`; `Newton()`, or a first-order one such as `Adam()`.
        max_evals: Evaluations that each problem may spend.

    Returns:
        Solution with `x` shaped as `init`.

    Raises:
        ValueError: If `fn` does not return a scalar, `init` is empty, or the leading axes of
            `init` and `args` differ.

    >>> solution = minimize(lambda x: (x - 2).square().sum(), torch.zeros(3))
    >>> solution.x.round(decimals=3), solution.ok
    (tensor([2., 2., 2.]), True)
    """
    named = init if isinstance(init, dict) else {"x": init}
    batch = _common_batch(named, args, batch_dims)
    layout = Layout({name: tuple(t.shape[batch_dims:]) for name, t in named.items()})
    x = layout.flatten(named).reshape(-1, layout.size)
    rows_of_args = tuple(a.reshape(-1, *a.shape[batch_dims:]) for a in args)

    def single(flat: Tensor, *own: Tensor) -> Tensor:
        values = layout.unflatten(flat)
        out = fn(values if isinstance(init, dict) else values["x"], *own)
        if out.ndim:
            raise ValueError(
                f"the objective must return a scalar, got shape {tuple(out.shape)}; "
                "sum it, or give `batch_dims`."
            )
        return out

    gradient = vmap(grad_and_value(single))

    def oracle(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) == 1:  # without the cost of a batch
            return _one(single, points, tuple(a[0] for a in rows_of_args))
        g, value = gradient(points, *(a[rows] for a in rows_of_args))
        return value, g

    second = vmap(hessian(single))
    solution = descend(
        oracle,
        x,
        method=method or LBFGS(),
        max_evals=max_evals,
        curvature=lambda points, rows: second(points, *(a[rows] for a in rows_of_args)),
    )
    best = layout.unflatten(solution.x.reshape(*batch, layout.size))
    shaped = {
        name: getattr(solution, name).reshape(batch)
        for name in ("value", "grad_norm", "num_iterations", "num_evals", "status")
    }
    return Solution(
        best if isinstance(init, dict) else best["x"], **shaped, method=solution.method
    )


def _one(
    fn: Callable[..., Tensor], points: Float[Tensor, "1 d"], args: tuple[Tensor, ...]
) -> tuple[Float[Tensor, " 1"], Float[Tensor, "1 d"]]:
    """Value and gradient of one problem, by plain autograd."""
    with torch.enable_grad():
        leaf = points[0].detach().requires_grad_()
        value = fn(leaf, *args)
        if not value.requires_grad:
            raise ValueError(
                "the objective does not depend on `init`: no gradient comes back. Was it detached?"
            )
        (grad,) = torch.autograd.grad(value, leaf)
    return value.detach()[None], grad[None]


def _common_batch(
    named: dict[str, Tensor], args: tuple[Tensor, ...], batch_dims: int
) -> tuple[int, ...]:
    if not named:
        raise ValueError("`init` names no parameter: there is nothing to minimise over.")
    shapes = {name: tuple(t.shape) for name, t in named.items()}
    if any(t.ndim < batch_dims for t in named.values()):
        raise ValueError(f"`init` must have at least batch_dims={batch_dims} axes, got {shapes}.")
    batch = next(iter(named.values())).shape[:batch_dims]
    if any(t.shape[:batch_dims] != batch for t in (*named.values(), *args)):
        raise ValueError(
            f"the first {batch_dims} axes of `init` and `args` are the batch and must agree, got "
            f"{shapes} and {[tuple(a.shape) for a in args]}."
        )
    return batch


def descend(
    oracle: Oracle,
    x: Float[Tensor, "b d"],
    *,
    method: Method,
    max_evals: int,
    curvature: Curvature | None = None,
) -> Solution:
    """Run a method on a batch of problems until each has converged, failed or spent its budget.

    Problems that are done are not evaluated any more.

    Raises:
        ValueError: If the method needs second derivatives and there are none.
    """
    if not isinstance(method, SecondOrder):
        aim = _as_it_is
    elif curvature is None:
        raise ValueError(f"{type(method).__name__} needs second derivatives; use `LBFGS()`.")
    else:
        aim = partial(_aimed, method, curvature)
    every = torch.arange(x.shape[0], device=x.device)
    value, grad = oracle(x, every)
    state = aim(method.init(x, value, grad))
    num_evals = torch.ones_like(every)
    for _ in range(max_evals - 1):
        active = state.active
        if bool(active.all()):
            value, grad = oracle(method.point(state), every)
        elif bool(active.any()):
            value, grad = _partial(oracle, method.point(state), active, value, grad)
        else:
            break
        num_evals = num_evals + active
        state = aim(method.step(state, value, grad))
    unfinished = torch.where(state.active, Status.NOT_CONVERGED, Status.OK)
    return Solution(
        state.x,
        state.value,
        state.grad.abs().amax(dim=-1),
        state.num_iterations,
        num_evals,
        state.status | unfinished,
        type(method).__name__,
    )


def _as_it_is(state: Any) -> Any:
    return state


def _aimed(method: SecondOrder, curvature: Curvature, state: Any) -> Any:
    rows = (state.aimless & state.active).nonzero()[:, 0]
    return method.aimed(state, rows, curvature(state.x[rows], rows)) if len(rows) else state


def _partial(
    oracle: Oracle, points: Tensor, active: Tensor, value: Tensor, grad: Tensor
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d"]]:
    rows: Int[Tensor, " k"] = active.nonzero()[:, 0]
    some_values, some_grads = oracle(points[rows], rows)
    return value.index_copy(0, rows, some_values), grad.index_copy(0, rows, some_grads)

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
from torch.func import grad, grad_and_value, hessian, jvp, vmap

from probcalc._tree import Layout
from probcalc.optimization.lbfgs import LBFGS
from probcalc.result import Solution
from probcalc.status import Status

# oracle(x, rows): value and gradient of the problems `rows` at the points x
Oracle = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Curvature = Callable[[Tensor, Tensor], Tensor]  # (x, rows) to Hessians
# (x, rows, vectors) to products of Hessians with vectors
Products = Callable[[Tensor, Tensor, Tensor], Tensor]


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


@runtime_checkable
class MatrixFree(Method, Protocol):
    """The same with products of the Hessian and vectors only."""

    def aimed_by_products(
        self, state: Any, rows: Tensor, product: Callable[[Tensor], Tensor]
    ) -> Any:
        """State with steps for the problems `rows`."""
        ...


def minimize(
    fn: Callable[..., Tensor],
    init: Tensor | dict[str, Tensor],
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    method: Method | None = None,
    max_evals: int = 10_000,
    trajectory: bool = False,
) -> Solution:
    """Minimise a smooth function, or a batch of them at once.

    Args:
        fn: ``fn(x, *args)`` for one problem returns a scalar.
        init: Start; its leading `batch_dims` axes are the batch.
        args: Further tensors, each with the same leading axes.
        batch_dims: Number of leading batch axes of `init` and `args`.
        method: Default `LBFGS()`; `Newton()`, `TrustRegion()` for many parameters,
            `GradientDescent()`, or a first-order one such as `Adam()`.
        max_evals: Evaluations that each problem may spend.
        trajectory: Whether to keep every point that was evaluated.

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

    shape = next(iter(layout.shapes.values()))

    def single(flat: Tensor, *own: Tensor) -> Tensor:
        point = layout.unflatten(flat) if isinstance(init, dict) else flat.view(shape)
        out = fn(point, *own)
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
    along = vmap(lambda z, v, *own: jvp(lambda u: grad(single)(u, *own), (z,), (v,))[1])
    path: list[tuple[Tensor, Tensor]] | None = [] if trajectory else None
    solution = descend(
        oracle,
        x,
        method=method or LBFGS(),
        max_evals=max_evals,
        curvature=lambda points, rows: second(points, *(a[rows] for a in rows_of_args)),
        products=lambda points, rows, v: along(points, v, *(a[rows] for a in rows_of_args)),
        path=path,
    )

    def shaped(flat: Tensor, *front: int) -> Any:
        values = layout.unflatten(flat.reshape(*front, *batch, layout.size))
        return values if isinstance(init, dict) else values["x"]

    fields = ("value", "grad_norm", "num_iterations", "num_evals", "status")
    return Solution(
        shaped(solution.x),
        **{name: getattr(solution, name).reshape(batch) for name in fields},
        method=solution.method,
        trajectory=None if path is None else _as_trajectory(path, shaped, batch),
    )


def _as_trajectory(
    path: list[tuple[Tensor, Tensor]], shaped: Callable[..., Any], batch: tuple[int, ...]
) -> dict[str, Any]:
    points, values = (torch.stack(column) for column in zip(*path, strict=True))
    return {
        "x": shaped(points, len(points)),
        "value": values.reshape(len(values), *batch),
    }


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
        (slope,) = torch.autograd.grad(value, leaf)
    return value.detach()[None], slope[None]


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
    products: Products | None = None,
    path: list[tuple[Tensor, Tensor]] | None = None,
) -> Solution:
    """Run a method on a batch of problems until each has converged, failed or spent its budget.

    Problems that are done are not evaluated any more.

    Raises:
        ValueError: If the method needs second derivatives and there are none.
    """
    aim = _aim_of(method, curvature, products)
    every = torch.arange(x.shape[0], device=x.device)
    value, grad = oracle(x, every)
    state = aim(method.init(x, value, grad))
    if path is not None:
        path.append((x, value))
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
        if path is not None:
            path.append((method.point(state), value))
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


def _aim_of(
    method: Method, curvature: Curvature | None, products: Products | None
) -> Callable[[Any], Any]:
    """What gives directions to problems that have none."""
    if isinstance(method, MatrixFree):
        given = products
    elif isinstance(method, SecondOrder):
        given = curvature
    else:
        return lambda state: state
    if given is None:
        raise ValueError(f"{type(method).__name__} needs second derivatives; use `LBFGS()`.")

    def aim(state: Any) -> Any:
        rows = (state.aimless & state.active).nonzero()[:, 0]
        if not len(rows):
            return state
        x = state.x[rows]
        if isinstance(method, MatrixFree):
            return method.aimed_by_products(state, rows, partial(given, x, rows))
        return method.aimed(state, rows, given(x, rows))

    return aim


def _partial(
    oracle: Oracle, points: Tensor, active: Tensor, value: Tensor, grad: Tensor
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b d"]]:
    rows: Int[Tensor, " k"] = active.nonzero()[:, 0]
    some_values, some_grads = oracle(points[rows], rows)
    return value.index_copy(0, rows, some_values), grad.index_copy(0, rows, some_grads)

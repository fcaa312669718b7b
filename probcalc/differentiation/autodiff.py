r"""Exact derivatives of torch functions at a point: by the chain rule, forward and in reverse.

    ∂f_i/∂x_j     a column by one forward pass, a row by one reverse pass
    H v = d/dt ∇f(x + t v)     at t = 0, without forming H

Functions are written for one point; leading axes of the point that are a batch are mapped over.
Griewank & Walther (2008), Evaluating derivatives, chapters 3 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad as func_grad
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.utils import _pytree as pytree

Point = Any  # a tensor, or a dict of tensors
Function = Callable[..., Tensor]


def grad(fn: Function, x: Point, *, args: tuple[Any, ...] = (), batch_dims: int = 0) -> Point:
    """Gradient of a scalar function.

    Args:
        fn: ``fn(x, *args)``, of one point, with a scalar value.
        x: A tensor or a dict of tensors.
        args: Passed on; tensors are mapped over like `x`.
        batch_dims: Leading axes of `x` and `args` that are a batch.

    Returns:
        Of the structure and shapes of `x`.

    Raises:
        TypeError: If `x` holds no real floating-point numbers.
        ValueError: If the value is no scalar, or an axis of the batch is missing.

    >>> grad(lambda x: (x**2).sum(), torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """
    return _mapped(lambda x, *a: func_grad(_scalar(fn))(x, *a), batch_dims, x, args)


def partial(
    fn: Function,
    x: Float[Tensor, "*batch d"],
    index: int,
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
) -> Float[Tensor, "*batch *out"]:
    """Partial derivative in one coordinate of a vector, by one forward pass.

    Args:
        fn: ``fn(x, *args)``, of one vector; values of any shape.
        x: Where.
        index: Of the coordinate.
        args: Passed on.
        batch_dims: Leading axes that are a batch.

    Raises:
        IndexError: If there is no such coordinate.
    """
    d = x.shape[-1]
    if not -d <= index < d:
        raise IndexError(f"`index` must be from {-d} to {d - 1}, got {index}.")
    unit = torch.zeros_like(x)
    unit[..., index] = 1
    return directional_derivative(fn, x, unit, args=args, batch_dims=batch_dims)


def directional_derivative(
    fn: Function, x: Point, direction: Point, *, args: tuple[Any, ...] = (), batch_dims: int = 0
) -> Any:
    """Derivative of fn(x + t v) in t at 0, by one forward pass.

    Args:
        fn: ``fn(x, *args)``; values of any shape.
        x: Where.
        direction: The vector v, of the structure of `x`; it is not normalised.
        args: Passed on.
        batch_dims: Leading axes that are a batch.

    Raises:
        ValueError: If `direction` does not have the shapes of `x`.
    """
    _check_alike(x, direction)

    def one(pair: tuple[Point, Point], *rest: Any) -> Any:
        return jvp(lambda z: fn(z, *rest), (pair[0],), (pair[1],))[1]

    return _mapped(one, batch_dims, (x, direction), args)


def jacobian(
    fn: Function,
    x: Float[Tensor, "*batch_and_in"],
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    forward: bool | None = None,
) -> Float[Tensor, "*batch_out_in"]:
    """All partial derivatives.

    Args:
        fn: ``fn(x, *args)``, of one point; values of any shape.
        x: Where.
        args: Passed on.
        batch_dims: Leading axes that are a batch.
        forward: Whether columns come from forward passes, or rows from reverse ones; None: of the
            two what takes fewer.

    Returns:
        Of shape ``(*batch, *out, *in)``.

    >>> jacobian(lambda x: x.prod() * torch.ones(2), torch.tensor([2.0, 3.0]))
    tensor([[3., 2.],
            [3., 2.]])
    """

    def one(x: Tensor, *rest: Any) -> Tensor:
        columns = forward
        if columns is None:
            with torch.no_grad():
                columns = x.numel() <= fn(x.detach(), *rest).numel()
        return (jacfwd if columns else jacrev)(fn)(x, *rest)

    return _mapped(one, batch_dims, x, args)


def hessian(
    fn: Function,
    x: Float[Tensor, "*batch d"],
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
) -> Float[Tensor, "*batch d d"]:
    """Second derivatives of a scalar function of a vector: gradients, forward.

    Args:
        fn: ``fn(x, *args)``, of one vector, with a scalar value.
        x: Where.
        args: Passed on.
        batch_dims: Leading axes that are a batch.
    """
    return _mapped(lambda x, *a: jacfwd(func_grad(_scalar(fn)))(x, *a), batch_dims, x, args)


def hvp(
    fn: Function, x: Point, vector: Point, *, args: tuple[Any, ...] = (), batch_dims: int = 0
) -> Point:
    """Hessian of a scalar function times a vector, at the cost of a few evaluations.

    Args:
        fn: ``fn(x, *args)``, with a scalar value.
        x: Where.
        vector: Of the structure of `x`.
        args: Passed on.
        batch_dims: Leading axes that are a batch.

    Raises:
        ValueError: If `vector` does not have the shapes of `x`, or the value is no scalar.
    """
    _check_alike(x, vector)

    def one(pair: tuple[Point, Point], *rest: Any) -> Point:
        slope = func_grad(_scalar(fn))
        return jvp(lambda z: slope(z, *rest), (pair[0],), (pair[1],))[1]

    return _mapped(one, batch_dims, (x, vector), args)


def gauss_newton_product(
    model: Callable[..., Tensor],
    loss: Callable[..., Tensor],
    x: Point,
    vector: Point,
    *,
    args: tuple[Any, ...] = (),
) -> Point:
    r"""Jᵀ H_L J v: curvature of loss(model(x)) without that of the model.

    For the log loss of an exponential family in its natural parameters it is Fisher's information.
    Schraudolph (2002), Neural Computation 14.

    Args:
        model: ``model(x, *args)``; outputs of any shape.
        loss: Scalar, of the outputs.
        x: Where.
        vector: Of the structure of `x`.
        args: Passed on to the model.
    """
    _check_alike(x, vector)
    outputs, moved = jvp(lambda z: model(z, *args), (x,), (vector,))
    curved = jvp(func_grad(_scalar(loss)), (outputs,), (moved,))[1]
    _, back = torch.func.vjp(lambda z: model(z, *args), x)
    return back(curved)[0]


def fisher_product(
    log_likelihood: Callable[..., Float[Tensor, " n"]],
    x: Point,
    vector: Point,
    *,
    args: tuple[Any, ...] = (),
) -> Point:
    r"""Σ_i s_i s_iᵀ v, with s_i the score of observation i: the empirical information.

    Args:
        log_likelihood: ``log_likelihood(x, *args)``, one number an observation.
        x: Where.
        vector: Of the structure of `x`.
        args: Passed on.
    """
    _check_alike(x, vector)
    rows = lambda z: log_likelihood(z, *args)  # noqa: E731
    along = jvp(rows, (x,), (vector,))[1]
    return torch.func.vjp(rows, x)[1](along)[0]


def _scalar(fn: Function) -> Function:
    def checked(x: Point, *args: Any) -> Tensor:
        value = fn(x, *args)
        if not torch.is_tensor(value) or value.ndim:
            shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise ValueError(f"the function must have a scalar value of one point, got {shape}.")
        return value

    return checked


def _mapped(one: Callable[..., Any], batch_dims: int, x: Point, args: tuple[Any, ...]) -> Any:
    """Over the leading axes of all tensors."""
    for leaf in pytree.tree_leaves(x):
        if not torch.is_tensor(leaf) or not leaf.is_floating_point():
            kind = leaf.dtype if torch.is_tensor(leaf) else type(leaf).__name__
            raise TypeError(f"points must be floating-point tensors, got {kind}.")
        if leaf.ndim < batch_dims:
            raise ValueError(
                f"a point needs its {batch_dims} axes of the batch, got shape {tuple(leaf.shape)}."
            )
    mapped = one
    dims = [0 if torch.is_tensor(a) else None for a in args]
    for _ in range(batch_dims):
        mapped = vmap(mapped, in_dims=(0, *dims))
    return mapped(x, *args)


def _check_alike(x: Point, vector: Point) -> None:
    shapes = [[tuple(t.shape) for t in pytree.tree_leaves(tree)] for tree in (x, vector)]
    same = pytree.tree_structure(x) == pytree.tree_structure(vector)
    if shapes[0] != shapes[1] or not same:
        raise ValueError(
            f"the vector must have the shapes of the point, {shapes[0]}, got {shapes[1]}."
        )

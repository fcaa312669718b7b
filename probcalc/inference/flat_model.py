"""A model as a density of one unconstrained vector.

Constrained values x = T(z) come from `torch.distributions.biject_to`, and the density carries
the log Jacobian: log p(T(z)) + log |dT/dz|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints
from torch.func import vmap

from probcalc._tree import Layout
from probcalc.inference.scope import model_scope

Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class FlatModel:
    """One model, unbatched.

    Args:
        density: Maps ``z`` of shape ``(d,)`` to the log density with its log Jacobian, and to
            the by-product: the constrained values in the order of `layout`, then the log
            Jacobian.
        dim: Length d of the unconstrained vector.
        layout: Constrained values, latent ones first, then derived ones.
        unconstrain: Constrained values of the latent sites to ``z``; with its second argument
            the values are checked first, which needs the host.
        terms: Log density at ``z`` by site, for messages.
        notes: What the user should know about how the model was read.
    """

    density: Callable[[Float[Tensor, " d"]], tuple[Float[Tensor, ""], Float[Tensor, " p"]]]
    dim: int
    layout: Layout
    unconstrain: Callable[[Values, bool], Float[Tensor, " d"]]
    terms: Callable[[Float[Tensor, " d"]], dict[str, Tensor]]
    notes: tuple[str, ...] = ()


def from_function(
    log_joint: Callable[[Values], Tensor],
    shapes: dict[str, tuple[int, ...]],
    supports: dict[str, constraints.Constraint],
    *,
    log_likelihood: Callable[[Values, Any], Tensor] | None = None,
    data: Any = None,
    dtype: torch.dtype = torch.float64,
) -> FlatModel:
    """A density written over a dict of constrained values.

    With `log_likelihood` and `data` the first function is the log prior, and the likelihood of
    one observation is mapped over the rows of the data.

    Raises:
        ValueError: If a constraint names no parameter, has no bijection or does not fit a shape.
    """
    _check_names(shapes, supports)
    layout = Layout({name: tuple(shape) for name, shape in shapes.items()})
    maps = {name: _bijection(name, supports.get(name, constraints.real)) for name in shapes}
    free = Layout({n: _free_shape(n, maps[n], s) for n, s in layout.shapes.items()})

    def constrain(z: Tensor) -> tuple[Values, Tensor]:
        values, log_det = {}, z.new_zeros(())
        for name, u in free.unflatten(z).items():
            values[name] = maps[name](u)
            log_det = log_det + maps[name].log_abs_det_jacobian(u, values[name]).sum()
        return values, log_det

    @model_scope(dtype)
    def parts(values: Values) -> dict[str, Tensor]:
        if log_likelihood is None:
            return {"log_joint": _scalar("log_joint", log_joint(values))}
        one = lambda row: _scalar("log_likelihood", log_likelihood(values, row))  # noqa: E731
        rows = vmap(one)(data)
        return {"log_prior": _scalar("log_prior", log_joint(values)), "log_likelihood": rows.sum()}

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        values, log_det = constrain(z)
        by_product = torch.cat([layout.flatten(values), log_det[None]])
        return sum(parts(values).values()) + log_det, by_product

    def unconstrain(values: Values, check: bool) -> Tensor:
        if check:
            for name, shape in layout.shapes.items():
                require_inside(name, values, shape, supports.get(name, constraints.real))
        return free.flatten({name: maps[name].inv(values[name]) for name in maps})

    return FlatModel(density, free.size, layout, unconstrain, lambda z: parts(constrain(z)[0]))


def from_distribution(
    distribution: Distribution, name: str = "x", dtype: torch.dtype = torch.float64
) -> FlatModel:
    """A distribution as the target, its event the only parameter.

    Raises:
        ValueError: If it has batch dimensions, or is discrete.
    """
    if distribution.batch_shape:
        raise ValueError(
            f"a target is one distribution, got batch_shape {tuple(distribution.batch_shape)}; "
            "wrap it in torch.distributions.Independent, or take one element of the batch."
        )
    support = distribution.support
    if support.is_discrete:
        raise ValueError(
            f"{type(distribution).__name__} is discrete and has no density to fit; "
            "sum over its values instead."
        )
    return from_function(
        lambda values: distribution.log_prob(values[name]),
        {name: tuple(distribution.event_shape)},
        {name: support},
        dtype=dtype,
    )


def require_inside(
    name: str, values: Values, shape: tuple[int, ...], support: constraints.Constraint
) -> None:
    """A start value is refused where it is missing, misshapen or outside its support.

    Raises:
        ValueError: Saying which.
    """
    if name not in values:
        raise ValueError(f"`init` must give every site; {name!r} is missing.")
    value = values[name]
    if tuple(value.shape) != shape:
        raise ValueError(f"`init[{name!r}]` must have shape {shape}, got {tuple(value.shape)}.")
    if not bool(support.check(value).all()):
        raise ValueError(
            f"`init[{name!r}]` = {value.tolist()} violates its constraint {support}; "
            "give a value inside the support."
        )


def _scalar(name: str, value: Any) -> Tensor:
    if not torch.is_tensor(value) or value.ndim:
        got = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else type(value).__name__
        hint = " for one row of the data" if name == "log_likelihood" else ""
        raise ValueError(f"`{name}` must return a scalar tensor{hint}, got {got}; sum its terms.")
    return value


def _check_names(
    shapes: dict[str, tuple[int, ...]], supports: dict[str, constraints.Constraint]
) -> None:
    if not shapes:
        raise ValueError("`shapes` must name at least one parameter, got an empty dict.")
    extra = sorted(set(supports) - set(shapes))
    if extra:
        raise ValueError(
            f"`constraints` names {extra}, which `shapes` does not; it has {sorted(shapes)}."
        )


def _bijection(name: str, support: constraints.Constraint) -> Any:
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"no bijection from the real line is known for {support} of {name!r}; "
            "write the parameter through an unconstrained one."
        ) from error


def _free_shape(name: str, transform: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    needed = transform.codomain.event_dim
    if len(shape) < needed:
        raise ValueError(
            f"{name!r} has shape {shape}, but its constraint needs at least {needed} axes."
        )
    free = tuple(transform.inverse_shape(torch.Size(shape)))
    if math.prod(free) == 0:
        raise ValueError(f"{name!r} of shape {shape} has no free entry.")
    return free

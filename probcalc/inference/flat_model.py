"""A model as a density of one unconstrained vector.

Constrained values x = T(z) come from `torch.distributions.biject_to`, and the density carries
the log Jacobian: log p(T(z)) + log |dT/dz|.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.func import vmap
from torch.utils import _pytree as pytree

from probcalc._tree import Layout
from probcalc.inference.parameters import Parameters, Values
from probcalc.inference.scope import model_scope
from probcalc.inference.simulation import FunctionSimulator, Simulator


@dataclass(frozen=True, eq=False)
class Observed:
    """A likelihood of rows of data.

    Args:
        parameters: What it depends on.
        log_likelihood: Of the constrained values and one row.
        data: Tensors with the rows along the first axis.
    """

    parameters: Parameters
    log_likelihood: Callable[[Values, Any], Tensor]
    data: Any


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
        observed: The likelihood by rows, where the model was written so.
        rows_density: Maps ``z`` and numbers of rows to the log density with only these rows of
            the data in it, scaled up; where the model knows its rows.
        num_rows: How many there are.
        batch_size: How many the model itself takes at a time.
        hierarchical: Sites that could be explored in non-centred coordinates.
        simulator: Where data come from, where the model says it.
    """

    density: Callable[[Float[Tensor, " d"]], tuple[Float[Tensor, ""], Float[Tensor, " p"]]]
    dim: int
    layout: Layout
    unconstrain: Callable[[Values, bool], Float[Tensor, " d"]]
    terms: Callable[[Float[Tensor, " d"]], dict[str, Tensor]]
    notes: tuple[str, ...] = ()
    observed: Observed | None = None
    rows_density: Callable[[Tensor, Tensor], Tensor] | None = None
    num_rows: int | None = None
    batch_size: int | None = None
    hierarchical: tuple[str, ...] = ()
    simulator: Simulator | None = None


def from_function(
    log_joint: Callable[[Values], Tensor],
    shapes: dict[str, tuple[int, ...]],
    supports: dict[str, constraints.Constraint],
    *,
    log_likelihood: Callable[[Values, Any], Tensor] | None = None,
    data: Any = None,
    simulate: Callable[[Values, torch.Generator], Any] | None = None,
    prior: Callable[[int, torch.Generator], Values] | None = None,
    dtype: torch.dtype = torch.float64,
) -> FlatModel:
    """A density written over a dict of constrained values.

    With `log_likelihood` and `data` the first function is the log prior, and the likelihood of
    one observation is mapped over the rows of the data.

    Raises:
        ValueError: If a constraint names no parameter, has no bijection or does not fit a shape.
    """
    parameters = Parameters.of(shapes, supports)
    layout = parameters.layout

    @model_scope(dtype)
    def parts(values: Values, data: Any = data) -> dict[str, Tensor]:
        if log_likelihood is None:
            return {"log_joint": _scalar("log_joint", log_joint(values))}
        one = lambda row: _scalar("log_likelihood", log_likelihood(values, row))  # noqa: E731
        rows = vmap(one)(data)
        return {"log_prior": _scalar("log_prior", log_joint(values)), "log_likelihood": rows.sum()}

    def density(z: Tensor) -> tuple[Tensor, Tensor]:
        values, log_det = parameters.constrain_with_log_det(z)
        by_product = torch.cat([layout.flatten(values), log_det[None]])
        return sum(parts(values).values()) + log_det, by_product

    num_rows = None if data is None else len(pytree.tree_leaves(data)[0])

    def rows_density(z: Tensor, rows: Tensor) -> Tensor:
        values, log_det = parameters.constrain_with_log_det(z)
        some = parts(values, pytree.tree_map(lambda t: t.index_select(0, rows), data))
        scaled = num_rows / len(rows) * some["log_likelihood"]
        return some["log_prior"] + scaled + log_det

    def unconstrain(values: Values, check: bool) -> Tensor:
        if check:
            parameters.check(values)
        return parameters.unconstrain(values)

    observed = simulator = None
    if log_likelihood is not None:
        observed = Observed(parameters, log_likelihood, data)
        simulator = FunctionSimulator(
            parameters, log_joint, log_likelihood, data, simulate, prior, dtype
        )
    return FlatModel(
        density,
        parameters.free.size,
        layout,
        unconstrain,
        lambda z: parts(parameters.constrain(z)),
        observed=observed,
        rows_density=None if data is None else rows_density,
        num_rows=num_rows,
        simulator=simulator,
    )


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


def _scalar(name: str, value: Any) -> Tensor:
    if not torch.is_tensor(value) or value.ndim:
        got = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else type(value).__name__
        hint = " for one row of the data" if name == "log_likelihood" else ""
        raise ValueError(f"`{name}` must return a scalar tensor{hint}, got {got}; sum its terms.")
    return value

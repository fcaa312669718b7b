"""Named parameters with constraints, as one unconstrained vector and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from probcalc._tree import Layout

Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Parameters:
    """Shapes and maps of the parameters of one problem.

    Args:
        layout: Constrained values.
        free: Unconstrained ones.
        maps: From the latter to the former, by name.
        supports: Constraints by name.
    """

    layout: Layout
    free: Layout
    maps: dict[str, Any]
    supports: dict[str, constraints.Constraint]

    @classmethod
    def of(
        cls, shapes: dict[str, tuple[int, ...]], supports: dict[str, constraints.Constraint]
    ) -> Parameters:
        """From shapes, and constraints of those that are not any real numbers.

        Raises:
            ValueError: If a constraint names no parameter, has no bijection or does not fit a
                shape.
        """
        _check_names(shapes, supports)
        layout = Layout({name: tuple(shape) for name, shape in shapes.items()})
        every = {name: supports.get(name, constraints.real) for name in shapes}
        maps = {name: _bijection(name, every[name]) for name in shapes}
        free = Layout({n: _free_shape(n, maps[n], s) for n, s in layout.shapes.items()})
        return cls(layout, free, maps, every)

    @property
    def elementwise(self) -> bool:
        """Whether every entry is a function of one unconstrained entry."""
        return all(m.codomain.event_dim == 0 for m in self.maps.values())

    def constrain(self, z: Float[Tensor, "*batch d"]) -> Values:
        """Constrained values."""
        return {name: self.maps[name](u) for name, u in self.free.unflatten(z).items()}

    def constrain_with_log_det(self, z: Float[Tensor, " d"]) -> tuple[Values, Tensor]:
        """Constrained values of one vector, and the log of the map's Jacobian determinant."""
        values, log_det = {}, z.new_zeros(())
        for name, u in self.free.unflatten(z).items():
            values[name] = self.maps[name](u)
            log_det = log_det + self.maps[name].log_abs_det_jacobian(u, values[name]).sum()
        return values, log_det

    def vector(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch p"]:
        """Constrained values as one vector."""
        return self.layout.flatten(self.constrain(z))

    def unconstrain(self, values: Values) -> Float[Tensor, "*batch d"]:
        """The unconstrained vector of values inside their supports."""
        return self.free.flatten({name: self.maps[name].inv(values[name]) for name in self.maps})

    def check(self, values: Values) -> None:
        """Refuse values of one problem that are missing, misshapen or outside.

        Raises:
            ValueError: Saying which.
        """
        for name, shape in self.layout.shapes.items():
            require_inside(name, values, shape, self.supports[name])


class LowerCholeskyTransform(Transform):
    """From vectors to lower triangles with positive diagonals, one to one (torch's is not)."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowerCholeskyTransform)

    def _call(self, x: Tensor) -> Tensor:
        k = self.forward_shape(x.shape)[-1]
        rows, columns = torch.tril_indices(k, k, device=x.device)
        entries = torch.where(rows == columns, x.exp(), x)
        flat = x.new_zeros((*x.shape[:-1], k * k))
        return flat.index_copy(-1, rows * k + columns, entries).unflatten(-1, (k, k))

    def _inverse(self, y: Tensor) -> Tensor:
        k = y.shape[-1]
        rows, columns = torch.tril_indices(k, k, device=y.device)
        entries = y[..., rows, columns]
        diagonal = rows == columns
        return torch.where(diagonal, torch.where(diagonal, entries, 1.0).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum of the logarithms of the diagonal."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """From k (k + 1)/2 numbers to k rows and columns."""
        k = math.isqrt(2 * shape[-1])
        return torch.Size((*shape[:-1], k, k))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Back."""
        k = shape[-1]
        return torch.Size((*shape[:-2], k * (k + 1) // 2))


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
    if support is constraints.lower_cholesky:
        return LowerCholeskyTransform()
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

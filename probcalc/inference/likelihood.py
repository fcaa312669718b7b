"""Likelihoods of rows, of a batch of data sets at once: values, slopes, curvature, the maximum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value, hessian, jacfwd, vmap
from torch.utils import _pytree as pytree

from probcalc.inference.parameters import Parameters, Values
from probcalc.inference.scope import model_scope
from probcalc.linalg import symmetric
from probcalc.optimization.lbfgs import LBFGS
from probcalc.optimization.minimize import descend
from probcalc.optimization.newton import Newton
from probcalc.result import Solution
from probcalc.status import Status

_CHUNK = 2**19  # numbers a tensor of one block of data sets may have
_MAX_EVALS = 1_000


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-likelihoods of `b` data sets with `n` rows each, by unconstrained vectors.

    Args:
        parameters: Of one data set.
        rows: Constrained values and data of one data set to log-likelihoods, shape ``(n)``.
        data: Tensors ``(b, n, ...)``.
        weights: How often each row counts, ``(b, n)``.
        center: Where the entries that are not free stand, ``(b, d)``, or None.
        free: Indices of the free entries; None where all are.
    """

    parameters: Parameters
    rows: Callable[[Values, Any], Float[Tensor, " n"]]
    data: Any
    weights: Float[Tensor, "b n"]
    center: Float[Tensor, "b d"] | None = None
    free: Int[Tensor, " f"] | None = None

    @property
    def dim(self) -> int:
        """Free entries."""
        return self.parameters.free.size if self.free is None else len(self.free)

    @property
    def total(self) -> Float[Tensor, " b"]:
        """Sum of the weights."""
        return self.weights.sum(dim=-1)

    def full(self, z: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """All entries, from the free ones."""
        return z if self.free is None else self.center.index_copy(-1, self.free, z)

    def restricted(self, center: Float[Tensor, "b d"], free: Int[Tensor, " f"]) -> Likelihood:
        """The same with only some entries free."""
        return Likelihood(self.parameters, self.rows, self.data, self.weights, center, free)

    def taken(self, rows: Int[Tensor, " k"]) -> Likelihood:
        """Of some data sets."""
        return Likelihood(
            self.parameters,
            self.rows,
            pytree.tree_map(lambda t: t[rows], self.data),
            self.weights[rows],
            None if self.center is None else self.center[rows],
            self.free,
        )

    def value(self, z: Float[Tensor, "b f"]) -> Float[Tensor, " b"]:
        """Log-likelihoods."""
        return self._mapped(self._single, z)

    def value_and_grad(
        self, z: Float[Tensor, "b f"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b f"]]:
        """Log-likelihoods and scores."""
        grad, value = self._mapped(grad_and_value(self._single), z)
        return value, grad

    def hessian(self, z: Float[Tensor, "b f"]) -> Float[Tensor, "b f f"]:
        """Second derivatives."""
        return symmetric(self._mapped(hessian(self._single), z))

    def scores(self, z: Float[Tensor, "b f"]) -> Float[Tensor, "b n f"]:
        """First derivatives of every row, unweighted."""
        return self._mapped(jacfwd(self._single_rows), z)

    def row_values(self, z: Float[Tensor, "b f"]) -> Float[Tensor, "b n"]:
        """Log-likelihood of every row, unweighted."""
        return self._mapped(self._single_rows, z)

    def maximum(self, start: Float[Tensor, "b f"], *, gtol: float = 1e-9) -> Solution:
        """Newton's method, after L-BFGS where that does not arrive; `value` is −ℓ/Σw."""
        found = self._newton(start, gtol)
        astray = (found.status & int(Status.NOT_CONVERGED | Status.NON_FINITE)) != 0
        if not bool(astray.any()):
            return found
        rows = astray.nonzero()[:, 0]
        some = self.taken(rows)
        nearer = descend(some._oracle, start[rows], method=LBFGS(), max_evals=_MAX_EVALS)
        again = some._newton(nearer.x, gtol)
        better = (again.status == 0) | (again.value < found.value[rows])
        return _merged(found, again, rows, better)

    def _newton(self, start: Tensor, gtol: float) -> Solution:
        def curvature(z: Tensor, rows: Tensor) -> Tensor:
            own = self if len(rows) == len(self.weights) else self.taken(rows)
            return -own.hessian(z) / own.total[:, None, None]

        return descend(
            self._oracle,
            start,
            method=Newton(gtol=gtol),
            max_evals=_MAX_EVALS,
            curvature=curvature,
        )

    def _oracle(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        own = self if len(rows) == len(self.weights) else self.taken(rows)
        value, grad = own.value_and_grad(z)
        return -value / own.total, -grad / own.total[:, None]

    def _single_rows(self, z: Tensor, center: Tensor | None, data: Any, weights: Tensor) -> Tensor:
        full = z if self.free is None else center.index_copy(-1, self.free, z)
        return self.rows(self.parameters.constrain(full), data)

    def _single(self, z: Tensor, center: Tensor | None, data: Any, weights: Tensor) -> Tensor:
        return (weights * self._single_rows(z, center, data, weights)).sum()

    def _mapped(self, fn: Callable[..., Any], z: Tensor) -> Any:
        """`fn` of every data set, in blocks of a size that the cache can bear."""
        mapped = vmap(fn, in_dims=(0, None if self.center is None else 0, 0, 0))
        b, n = self.weights.shape
        size = max(1, _CHUNK // (n * max(1, self.dim)))
        parts = []
        with model_scope(torch.float64):
            for start in range(0, b, size):
                rows = slice(start, start + size)
                center = None if self.center is None else self.center[rows]
                data = pytree.tree_map(lambda t: t[rows], self.data)  # noqa: B023
                parts.append(mapped(z[rows], center, data, self.weights[rows]))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)


def _merged(found: Solution, again: Solution, rows: Tensor, better: Tensor) -> Solution:
    some = rows[better]

    def put(name: str) -> Tensor:
        return getattr(found, name).index_copy(0, some, getattr(again, name)[better])

    return Solution(
        put("x"),
        put("value"),
        put("grad_norm"),
        put("num_iterations"),
        found.num_evals.index_add(0, rows, again.num_evals),
        put("status"),
        found.method,
    )

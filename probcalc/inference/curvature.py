r"""Curvature of a log density at its mode, for Laplace's approximation.

    Hessian           −∇² ln p(z)
    EmpiricalFisher   −∇² ln prior + Σ_i s_i s_iᵀ          with the scores s_i of the rows
    GaussNewton       −∇² ln prior + Σ_i J_iᵀ Λ_i J_i      with outputs f_i, J_i = ∂f_i/∂z and
                                                           Λ_i = −∂² ln p(y_i | f_i)/∂f_i²

Gauss–Newton is the Fisher matrix where rows have an exponential family with natural parameter f,
and is never indefinite where Λ is not. Each may be cut to its diagonal, and a matrix that was
found otherwise may be given: whole, as a diagonal, or as Kronecker factors of blocks. What is not
positive definite is reported, never repaired. Schraudolph (2002), Neural Comput. 14; Martens &
Grosse (2015), ICML 32; Daxberger et al. (2021), Laplace redux, NeurIPS 34.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from probcalc.inference.parameters import Values
from probcalc.inference.scope import model_scope
from probcalc.inference.target import Target
from probcalc.linalg import cholesky_or_none, symmetric


@runtime_checkable
class Curvature(Protocol):
    """What gives the scale of the Gaussian."""

    def scale_tril(self, target: Target, z: Tensor) -> Tensor | None:
        """Lower factor of the covariance, or None where the curvature is not positive."""
        ...


@dataclass(frozen=True)
class Hessian:
    """Second derivatives of the log density.

    Args:
        diagonal: Whether only these are kept.
    """

    diagonal: bool = False

    def scale_tril(self, target: Target, z: Float[Tensor, " d"]) -> Tensor | None:
        """Lower factor of the covariance, or None where the curvature is not positive."""
        return _factor(-target.hessian(z[None])[0], self.diagonal)


@dataclass(frozen=True)
class EmpiricalFisher:
    """Squares of the scores of single rows, and the curvature of the prior.

    Args:
        diagonal: Whether only these are kept.
    """

    diagonal: bool = False

    def scale_tril(self, target: Target, z: Float[Tensor, " d"]) -> Tensor | None:
        """Lower factor of the covariance, or None where the curvature is not positive.

        Raises:
            ValueError: If the target has no likelihood of rows.
        """
        rows = _rows(target)
        with model_scope(z.dtype):
            scores = jacfwd(rows)(z)
            precision = _prior_curvature(target, rows, z) + scores.T @ scores
        return _factor(precision, self.diagonal)


@dataclass(frozen=True)
class GaussNewton:
    """Curvature of the likelihood in outputs, carried by their slopes.

    Args:
        outputs: ``outputs(values, row)``: a vector, such as a network's.
        log_likelihood: ``log_likelihood(outputs, row)``: a scalar.
        diagonal: Whether only the diagonal is kept.
    """

    outputs: Callable[[Values, Any], Tensor]
    log_likelihood: Callable[[Tensor, Any], Tensor]
    diagonal: bool = False

    def scale_tril(self, target: Target, z: Float[Tensor, " d"]) -> Tensor | None:
        """Lower factor of the covariance, or None where the curvature is not positive.

        Raises:
            ValueError: If the target has no likelihood of rows, or it is another one.
        """
        rows = _rows(target)
        observed = target.model.observed
        constrain = observed.parameters.constrain

        def out(z: Tensor, row: Any) -> Tensor:
            return torch.atleast_1d(self.outputs(constrain(z), row))

        def of_row(row: Any) -> tuple[Tensor, Tensor]:
            f = out(z, row)
            bent = -hessian(lambda g: self.log_likelihood(g, row))(f)
            slope = jacfwd(out)(z, row)
            return slope.T @ bent @ slope, self.log_likelihood(f, row)

        with model_scope(z.dtype):
            bent, values = vmap(of_row)(observed.data)
            if not torch.allclose(values, rows(z), rtol=1e-6, atol=1e-8):
                raise ValueError(
                    "`log_likelihood` of the outputs is not that of the target: at the mode the "
                    f"rows sum to {float(values.sum()):.6g} and {float(rows(z).sum()):.6g}."
                )
            precision = _prior_curvature(target, rows, z) + bent.sum(dim=0)
        return _factor(precision, self.diagonal)


@dataclass(frozen=True)
class Precision:
    """A curvature that is known: one matrix, its diagonal, or factors of blocks.

    Args:
        values: ``(d, d)``, ``(d)``, or pairs (A, G) of which each stands for A ⊗ G, in the order
            of the unconstrained vector.
    """

    values: Tensor | Sequence[tuple[Tensor, Tensor]]

    def scale_tril(self, target: Target, z: Float[Tensor, " d"]) -> Tensor | None:
        """Lower factor of the covariance, or None where the curvature is not positive.

        Raises:
            ValueError: If the sizes do not add up to the target's.
        """
        if torch.is_tensor(self.values):
            given = self.values.to(z)
            _check_size(given.shape[-1], target.dim)
            return _factor(torch.diag(given) if given.ndim == 1 else given, given.ndim == 1)
        _check_size(sum(len(a) * len(g) for a, g in self.values), target.dim)
        parts = []
        for pair in self.values:
            roots = [_factor(side.to(z), False) for side in pair]
            if roots[0] is None or roots[1] is None:
                return None
            parts.append(torch.kron(*roots))
        return torch.block_diag(*parts)


def _check_size(size: int, dim: int) -> None:
    if size != dim:
        raise ValueError(f"the curvature is of {size} parameters, and the target has {dim}.")


def _rows(target: Target) -> Callable[[Tensor], Tensor]:
    observed = target.model.observed
    if observed is None:
        raise ValueError(
            "this curvature needs the likelihood of single rows: make the target by "
            "`Target.from_function(log_prior, shapes, log_likelihood=..., data=...)`."
        )

    def rows(z: Tensor) -> Tensor:
        values = observed.parameters.constrain(z)
        return vmap(lambda row: observed.log_likelihood(values, row))(observed.data)

    return rows


def _prior_curvature(target: Target, rows: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Of everything but the rows: prior and log Jacobian."""
    return -hessian(lambda v: target.model.density(v)[0] - rows(v).sum())(z)


def _factor(precision: Tensor, diagonal: bool) -> Tensor | None:
    if diagonal:
        variance = 1 / precision.diagonal()
        good = bool((variance > 0).all()) and bool(variance.isfinite().all())
        return torch.diag(variance.sqrt()) if good else None
    factor = cholesky_or_none(symmetric(precision))
    if factor is None:
        return None
    return cholesky_or_none(symmetric(torch.cholesky_inverse(factor)))

"""Log-likelihood of every row of the data at every draw: what leave-one-out needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcalc.differentiation.batched import (
    BatchedDensity,
    TraceError,
    agrees,
    trace,
    untraced,
)
from probcalc.inference.parameters import Values
from probcalc.inference.posterior import Posterior
from probcalc.inference.scope import model_scope
from probcalc.inference.simulation import Simulator
from probcalc.inference.target import Target

_CHUNK_BYTES = 2**21
_NUM_CHECKS = 2
_RTOL = 1e-6


def pointwise_log_likelihood(target: Target, draws: Posterior | Values) -> Float[Tensor, "n rows"]:
    """Log-likelihood of each row of the data at each draw.

    Rows of a target made of functions are those of its data; those of a Pyro model are the
    entries of its observed sites, one site after the other.

    Args:
        target: With data: `log_likelihood` and `data`, or observed sites.
        draws: Constrained values with the draws along the first axis, or a posterior, whose
            weighted draws are taken replicate after replicate.

    Raises:
        ValueError: If the target does not know its rows.
    """
    if isinstance(draws, Posterior):
        return rows_at(own_target(target, draws), draws.z.flatten(0, 1))
    return rows_at(target, target.unconstrain_rows(draws))


def rows_at(target: Target, z: Float[Tensor, "n d"]) -> Float[Tensor, "n rows"]:
    """The same at unconstrained vectors."""
    simulator = simulator_of(target)
    sums_and_rows = lambda x: _with_sum(simulator.rows_at(x))  # noqa: E731
    with model_scope(target.dtype):
        batched = _batched(sums_and_rows, z)
        size = max(16, _CHUNK_BYTES // batched.row_bytes)
        parts = [batched.by_product(chunk) for chunk in z.split(size)]
    return torch.cat(parts)


def own_target(target: Target, posterior: Posterior) -> Target:
    """The target in the coordinates of the posterior's draws, which a fit may have chosen.

    Raises:
        ValueError: If the posterior is of another target.
    """
    own = posterior.target or target
    z, x = posterior.z[0, :_NUM_CHECKS], posterior.x[0, :_NUM_CHECKS]
    fits = posterior.names == target.names and bool(
        torch.isclose(own.constrained_vector(z), x, rtol=_RTOL, equal_nan=True).all()
    )
    if fits and own is not target:
        here = target.unconstrain_rows(target.layout.unflatten(x))
        fits = bool(
            torch.isclose(_constrained(own, z), _constrained(target, here), rtol=_RTOL).all()
        )
    if not fits:
        raise ValueError(
            "the posterior is of another target, or of the same in other coordinates; give the "
            "target that was fitted."
        )
    return own


def _constrained(target: Target, z: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Log density with respect to the constrained values."""
    return target.log_density(z) - target.log_abs_det_jacobian(z)


def simulator_of(target: Target) -> Simulator:
    """Where the target's data come from.

    Raises:
        ValueError: If the target has no rows of data.
    """
    simulator = target.model.simulator
    if simulator is None:
        raise ValueError(
            "the target does not know its data: make it by `Target.from_function` with "
            "`log_likelihood` and `data`, or by `Target.from_pyro` with observed sites."
        )
    return simulator


def _batched(
    fn: Callable[[Tensor], tuple[Tensor, Tensor]], z: Float[Tensor, "n d"]
) -> BatchedDensity:
    try:
        rows = trace(fn, z[0])
    except TraceError:
        return untraced(fn)
    return rows if agrees(rows, fn, z[: 1 + _NUM_CHECKS]) else untraced(fn)


def _with_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.sum(), rows

"""Log-likelihood of every row of the data at every draw: what leave-one-out needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from probcalc.inference.remembered import recall, remember
from probcalc.inference.same_target import in_coordinates_of
from probcalc.inference.scope import model_scope
from probcalc.inference.simulation import Simulator
from probcalc.inference.target import Target

if TYPE_CHECKING:
    from probcalc.inference.posterior import Posterior

_CHUNK_BYTES = 2**21
_NUM_CHECKS = 2


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
    if isinstance(draws, dict):
        return rows_at(target, target.unconstrain_rows(draws))
    return rows_at(in_coordinates_of(target, draws), draws.z.flatten(0, 1))


def rows_at(target: Target, z: Float[Tensor, "n d"]) -> Float[Tensor, "n rows"]:
    """The same at unconstrained vectors."""
    with model_scope(target.dtype):
        batched = _batched(simulator_of(target), target, z)
        size = max(16, _CHUNK_BYTES // batched.row_bytes)
        parts = [batched.by_product(chunk) for chunk in z.split(size)]
    return torch.cat(parts)


def num_rows(target: Target) -> int:
    """Rows of the target's data."""
    origin = torch.zeros(target.dim, dtype=target.dtype, device=target.device)
    return len(simulator_of(target).rows_at(origin))


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


def _batched(simulator: Simulator, target: Target, z: Float[Tensor, "n d"]) -> BatchedDensity:
    """Rows as the by-product of their sum, traced once for each model."""

    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = simulator.rows_at(x)
        return rows.sum(), rows

    known = (target.device, target.dtype)
    found = recall(simulator, known, fn, z[:_NUM_CHECKS])
    if found is not None:
        return found
    try:
        rows = trace(fn, z[0])
    except TraceError:
        return untraced(fn)
    if not agrees(rows, fn, z[: 1 + _NUM_CHECKS]):
        return untraced(fn)
    remember(simulator, known, rows)
    return rows

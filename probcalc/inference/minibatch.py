r"""Densities of a random subset of the observations, scaled so that their mean is the whole.

    log p̂(z) = log p(z) + (N/B) Σ_{i in batch} log p(y_i | z)

Hoffman, Blei, Wang & Paisley (2013), Stochastic variational inference, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from probcalc.differentiation.graph import is_random
from probcalc.inference.flat_model import FlatModel
from probcalc.inference.step import ValueAndGrad

if TYPE_CHECKING:
    from probcalc.inference.target import Target


def batched_density(target: Target, batch_size: int | None) -> tuple[ValueAndGrad, int, int]:
    """Value and gradient at points ``(..., d)`` by the rows with given numbers.

    Args:
        target: With a likelihood of rows, or a Pyro model with a subsampled plate.
        batch_size: Rows of a batch; None where the model says it.

    Returns:
        The density ``(z, rows)``, the number of rows of all data, and of a batch.

    Raises:
        ValueError: If the target has no rows, or the batch is larger than the data.
    """
    model = target.model
    if model.rows_density is None:
        raise ValueError(
            "`batch_size` needs a target that knows its observations: "
            "`Target.from_function(log_prior, ..., log_likelihood=..., data=...)`, or a Pyro "
            "model with `pyro.plate(..., subsample_size=...)`."
        )
    own = model.batch_size
    if own is not None and batch_size not in (None, own):
        raise ValueError(f"the model's plate takes {own} rows, not `batch_size` = {batch_size}.")
    size = own or batch_size
    if size > model.num_rows:
        raise ValueError(f"`batch_size` = {size} is more than the {model.num_rows} rows.")

    single = _traced_or_not(model, target, size)

    def value_and_grad(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        one = grad_and_value(lambda point: single(point, rows))
        grad, value = vmap(one)(z.reshape(-1, target.dim))
        return value.reshape(z.shape[:-1]), grad.reshape(z.shape)

    return value_and_grad, model.num_rows, size


def _traced_or_not(
    model: FlatModel, target: Target, size: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The density of one point and a batch as a graph, if that is the same function."""
    plain = model.rows_density
    points = 0.1 * torch.ones(2, target.dim, dtype=target.dtype, device=target.device)
    points[1] *= -0.7
    first = torch.arange(size, device=target.device)
    last = model.num_rows - 1 - first
    try:
        graph = make_fx(plain)(points[0], first)
    except Exception:  # noqa: BLE001 (whatever a model raises under tracing)
        return plain
    pairs = ((points[1], last), (points[0], first))
    same = all(torch.allclose(graph(*p), plain(*p), equal_nan=True) for p in pairs)
    return graph if same and not is_random(graph.graph) else plain

"""From a start to the maximum of a likelihood, or to the reason why there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcalc.inference.likelihood import Likelihood
from probcalc.inference.likelihood_fit import LikelihoodFit
from probcalc.inference.parameters import Values
from probcalc.status import Status

_SINGULAR = 1e-10  # of the largest eigenvalue: information in this direction is none
_EDGE = 500.0  # unconstrained numbers beyond it are at the edge of a range
_ANYWHERE = 0.3  # an unconstrained number like others
_ALSO = 0.5  # of the longest way that an entry went, from which on it is named too
_SHARE = 0.1  # of a direction's largest entry, from which on it is named


def fitted(
    likelihood: Likelihood,
    start: Float[Tensor, "b d"],
    batch: tuple[int, ...],
    *,
    exact: bool,
    family: tuple[Any, Values] | None,
    hopeless: Bool[Tensor, " b"] | None = None,
) -> LikelihoodFit:
    """Go up from a start, unless it is the maximum already, and judge what is there.

    Args:
        likelihood: Of the flattened batch.
        start: Where to begin.
        batch: Shape of the results.
        exact: Whether the start is the maximum.
        family: For the expected information.
        hopeless: Data sets that are known to have no maximum.
    """
    edge = ~start.isfinite().all(dim=-1) | (start.abs() > _EDGE).any(dim=-1)
    z, status = start.clone(), torch.where(edge & exact, int(Status.UNBOUNDED), 0)
    iterations = torch.zeros_like(status)
    if hopeless is not None:
        status = status | torch.where(hopeless, int(Status.UNBOUNDED), 0)
    rows = (status == 0).nonzero()[:, 0]
    if len(rows) and not exact:
        whole = len(rows) == len(start)
        found = (likelihood if whole else likelihood.taken(rows)).maximum(start[rows])
        z[rows], status[rows], iterations[rows] = found.x, found.status, found.num_iterations
    value = likelihood.value(z)
    bare = LikelihoodFit(likelihood, z, (len(z),), value, status, iterations, family=family)
    weak, direction = _weakest(bare)
    status = status | torch.where(weak & (status == 0), int(Status.INDEFINITE), 0)
    reasons = _reasons(bare, status, start, direction)
    return replace(
        bare,
        batch=batch,
        log_likelihood=value.reshape(batch),
        status=status.reshape(batch),
        num_iterations=iterations.reshape(batch),
        reasons=reasons,
    )


def _weakest(fit: LikelihoodFit) -> tuple[Tensor, Tensor]:
    """Where information is singular, and in which direction, per entry in its own scale."""
    information = -fit.likelihood.hessian(fit.z)
    finite = information.isfinite().all(dim=-1).all(dim=-1)
    one = torch.eye(information.shape[-1]).to(information)
    information = torch.where(finite[:, None, None], information, one)
    size = information.diagonal(dim1=-2, dim2=-1).abs().clamp(min=1e-300).sqrt()
    values, vectors = torch.linalg.eigh(information / size[:, :, None] / size[:, None, :])
    tiny = _SINGULAR * fit.likelihood.total
    lost = (information.diagonal(dim1=-2, dim2=-1) <= tiny[:, None]).any(dim=-1)
    weak = (values[:, 0] <= _SINGULAR * values[:, -1]) | lost
    return weak & finite, vectors[:, :, 0] / size


def _reasons(
    fit: LikelihoodFit, status: Tensor, start: Tensor, direction: Tensor
) -> tuple[str, ...]:
    bad = (status != 0).nonzero()[:, 0]
    if not len(bad):
        return ()
    i = int(bad[0])
    flag = Status(int(status[i]))
    labels = fit.likelihood.parameters.free.labels
    where = "" if len(status) == 1 else f" in {len(bad)} of {len(status)} data sets, first {i}"
    if Status.UNBOUNDED in flag or Status.NOT_CONVERGED in flag:
        gone = (fit.z[i] - start[i]).abs().nan_to_num(torch.inf)
        gone = torch.where(fit.z[i].isfinite(), gone, torch.inf)
        far = gone >= _ALSO * gone.max()
        names = [labels[k] for k in far.nonzero()[:, 0].tolist()]
        verb = "runs to the edge of its range" if len(names) == 1 else "run to their edges"
        what = f"there is no maximum: {', '.join(names)} {verb}"
        if not int(fit.num_iterations[i]):
            what = "there is no maximum: all rows are alike, or at an end of the support"
    elif Status.INDEFINITE in flag:
        size = direction[i].abs()
        names = [labels[k] for k in (size >= _SHARE * size.max()).nonzero()[:, 0].tolist()]
        what = f"the data do not tell apart {', '.join(names)}: information there is singular"
    else:
        tried = torch.where(start.isfinite(), start, _ANYWHERE)
        lost = (~fit.likelihood.row_values(tried)[i].isfinite()).nonzero()[:, 0]
        row = f"row {int(lost[0])} has no finite log-likelihood" if len(lost) else "overflow"
        what = f"{flag.words}: {row} at the start"
    return (f"{what}{where}",)
